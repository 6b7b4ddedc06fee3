"""R3D and R(2+1)D (Tran et al., CVPR 2018), as the pace prediction paper sizes them.

One skeleton, two kinds of 3D convolution. At 16 x 112 x 112, one block a stage:

    conv1   3x7x7, stride 1,2,2    64 x 16 x 56 x 56
    conv2   block                  64 x 16 x 56 x 56
    conv3   block, stride 2       128 x  8 x 28 x 28
    conv4   block, stride 2       256 x  4 x 14 x 14
    conv5   block, stride 2       512 x  2 x  7 x  7
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pacecore.backbones.base import Backbone, multiple_of_8, scale_channels
from pacecore.backbones.layers import (
    BatchNorm3d,
    ConvNorm,
    Triple,
    conv3d,
    normed,
    on_tensor_cores,
)

__all__ = ["R3D", "Factored", "R2Plus1D", "middle_channels"]

Convolution = Callable[[int, int, Triple, Triple], nn.Module]  # in, out, kernel, stride


def middle_channels(in_channels: int, out_channels: int, kernel: Triple) -> int:
    """The width between the factors at which both hold as many weights as the 3D convolution."""
    t, h, w = kernel
    whole = t * h * w * in_channels * out_channels
    return whole // (h * w * in_channels + t * out_channels)


class Factored(nn.Module):
    """A 3D convolution in two: 1 x h x w over space, BN, ReLU, then t x 1 x 1 over time."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, middle: int
    ) -> None:
        super().__init__()
        (t, h, w), (st, sh, sw) = kernel, stride
        self.spatial = conv3d(in_channels, middle, (1, h, w), (1, sh, sw))
        self.norm = BatchNorm3d(middle)
        self.temporal = conv3d(middle, out_channels, (t, 1, 1), (st, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fills = on_tensor_cores(x) and isinstance(self.norm, BatchNorm3d)
        middle = self.spatial(x, fills=True) if fills else self.spatial(x)
        return self.temporal(normed(self.norm, middle, relu=True))


class Block(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a shortcut: plain, or 1 x 1 x 1 where the size changes."""

    def __init__(self, conv: Convolution, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        kernel, strides = (3, 3, 3), (stride,) * 3
        self.conv1 = ConvNorm(conv(in_channels, channels, kernel, strides), channels)
        self.conv2 = ConvNorm(conv(channels, channels, kernel, (1, 1, 1)), channels, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            pointwise = conv(in_channels, channels, (1, 1, 1), strides)
            self.shortcut = ConvNorm(pointwise, channels, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Residual(Backbone):
    stage_names = ("conv1", "conv2", "conv3", "conv4", "conv5")
    p4_stage = "conv4"
    p4_pool = (2, 2, 2)

    def __init__(self, conv: Convolution, blocks: Sequence[int], width: float) -> None:
        c1, c3, c4, c5 = (scale_channels(c, width) for c in (64, 128, 256, 512))
        super().__init__(feature_dim=c5)
        self.conv1 = ConvNorm(conv(3, c1, (3, 7, 7), (1, 2, 2)), c1)
        self.conv2 = _stage(conv, c1, c1, blocks[0], stride=1)
        self.conv3 = _stage(conv, c1, c3, blocks[1], stride=2)
        self.conv4 = _stage(conv, c3, c4, blocks[2], stride=2)
        self.conv5 = _stage(conv, c4, c5, blocks[3], stride=2)


def _stage(
    conv: Convolution, in_channels: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    first = Block(conv, in_channels, channels, stride)
    return nn.Sequential(first, *(Block(conv, channels, channels, 1) for _ in range(blocks - 1)))


class R3D(Residual):
    """R3D: 14,361,792 parameters with one block a stage, 33,166,272 with two."""

    def __init__(self, blocks: Sequence[int] = (1, 1, 1, 1), width: float = 1.0) -> None:
        super().__init__(conv3d, blocks, width)


class R2Plus1D(Residual):
    """R(2+1)D: 14,365,303 parameters with one block a stage, 33,178,423 with two."""

    def __init__(self, blocks: Sequence[int] = (1, 1, 1, 1), width: float = 1.0) -> None:
        def factored(in_channels: int, out_channels: int, kernel: Triple, stride: Triple):
            middle = middle_channels(in_channels, out_channels, kernel)
            if width != 1:
                middle = multiple_of_8(middle)
            return Factored(in_channels, out_channels, kernel, stride, middle)

        super().__init__(factored, blocks, width)
