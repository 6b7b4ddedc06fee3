"""S3D-G (Xie et al., ECCV 2018): Inception blocks, convolutions split in space and time, gates.

At 64 x 224 x 224:

    conv1     3x7x7, stride 2            64 x 32 x 112 x 112    pool1  1,3,3, stride 1,2,2
    conv2     1x1x1, separable, gate    192 x 32 x  56 x  56    pool2  1,3,3, stride 1,2,2
    mixed3b   mixed3c                   480 x 32 x  28 x  28    pool3  3,3,3, stride 2
    mixed4b   ... mixed4f               832 x 16 x  14 x  14    pool4  2,2,2, stride 2
    mixed5b   mixed5c                  1024 x  8 x   7 x   7
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones.base import Backbone, scale_channels
from pacecore.backbones.layers import ConvNorm, Triple, conv3d

__all__ = ["S3DG"]

MIXED = {
    "mixed3b": (64, 96, 128, 16, 32, 32),
    "mixed3c": (128, 128, 192, 32, 96, 64),
    "mixed4b": (192, 96, 208, 16, 48, 64),
    "mixed4c": (160, 112, 224, 24, 64, 64),
    "mixed4d": (128, 128, 256, 24, 64, 64),
    "mixed4e": (112, 144, 288, 32, 64, 64),
    "mixed4f": (256, 160, 320, 32, 128, 128),
    "mixed5b": (256, 160, 320, 32, 128, 128),
    "mixed5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of an Inception block: pointwise branch, then reduced and final ones of the two
separable branches, then the pooled branch."""


class S3DG(Backbone):
    """S3D-G with a 3x7x7 stem: 9,125,072 parameters."""

    stage_names = (
        *("conv1", "pool1", "conv2", "pool2", "mixed3b", "mixed3c", "pool3"),
        *("mixed4b", "mixed4c", "mixed4d", "mixed4e", "mixed4f", "pool4", "mixed5b", "mixed5c"),
    )
    p4_stage = "mixed4f"
    p4_pool = (2, 2, 2)

    def __init__(self, width: float = 1.0) -> None:
        c1, c2 = scale_channels(64, width), scale_channels(192, width)
        mixed = {n: [scale_channels(c, width) for c in sizes] for n, sizes in MIXED.items()}
        super().__init__(feature_dim=_block_channels(mixed["mixed5c"]))
        self.conv1 = ConvNorm(conv3d(3, c1, (3, 7, 7), (2, 2, 2)), c1)
        self.pool1 = SamePool((1, 3, 3), (1, 2, 2))
        self.conv2 = nn.Sequential(pointwise(c1, c1), separable(c1, c2), Gate(c2))
        self.pool2 = SamePool((1, 3, 3), (1, 2, 2))
        self.pool3 = SamePool((3, 3, 3), (2, 2, 2))
        self.pool4 = SamePool((2, 2, 2), (2, 2, 2))
        in_channels = c2
        for name, sizes in mixed.items():
            self.add_module(name, Mixed(in_channels, sizes))
            in_channels = _block_channels(sizes)


class Mixed(nn.Module):
    """Four branches over the same map, each gated, side by side in the channels."""

    def __init__(self, in_channels: int, sizes: list[int]) -> None:
        super().__init__()
        plain, reduced1, out1, reduced2, out2, pooled = sizes
        self.plain = nn.Sequential(pointwise(in_channels, plain), Gate(plain))
        self.wide = nn.Sequential(
            pointwise(in_channels, reduced1), separable(reduced1, out1), Gate(out1)
        )
        self.narrow = nn.Sequential(
            pointwise(in_channels, reduced2), separable(reduced2, out2), Gate(out2)
        )
        self.pooled = nn.Sequential(
            nn.MaxPool3d(3, stride=1, padding=1), pointwise(in_channels, pooled), Gate(pooled)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.plain, self.wide, self.narrow, self.pooled)
        return torch.cat([branch(x) for branch in branches], dim=1)


class Gate(nn.Module):
    """Each channel times the sigmoid of a linear map of all channels' global averages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.linear(x.mean(dim=(2, 3, 4))))
        return x * gates[:, :, None, None, None]


class SamePool(nn.Module):
    """Max-pooling of a map that is nowhere negative, padded with zeros by kernel - stride in all.

    The smaller half goes before, and the last window may reach past the end: the padding of
    TensorFlow's "SAME" for even sizes, and what the published PyTorch S3D-G does for odd ones.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.excess = [k - s for k, s in zip(kernel, stride, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        # On an even size the padding holds at most the end of the last window, which may overhang
        # anyway: leaving it out saves a copy of the map.
        if any(e and size % 2 for e, size in zip(self.excess, sizes, strict=True)):
            padding = [side for e in reversed(self.excess) for side in (e // 2, e - e // 2)]
            x = F.pad(x, padding)
        return F.max_pool3d(x, self.kernel, self.stride, ceil_mode=True)


def pointwise(in_channels: int, out_channels: int) -> ConvNorm:
    return ConvNorm(conv3d(in_channels, out_channels, (1, 1, 1)), out_channels)


def separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x3x3 and 3x1x1, each with BN and ReLU."""
    return nn.Sequential(
        ConvNorm(conv3d(in_channels, out_channels, (1, 3, 3)), out_channels),
        ConvNorm(conv3d(out_channels, out_channels, (3, 1, 1)), out_channels),
    )


def _block_channels(sizes: list[int]) -> int:
    plain, _, out1, _, out2, pooled = sizes
    return plain + out1 + out2 + pooled
