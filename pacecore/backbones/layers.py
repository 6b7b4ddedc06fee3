"""The layers that all networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv3d", "ConvNorm", "Triple", "conv3d"]

Triple = tuple[int, int, int]


class ConvNorm(nn.Module):
    """Convolution and batch norm, with ReLU unless told otherwise."""

    def __init__(self, conv: nn.Module, channels: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class Conv3d(nn.Conv3d):
    """nn.Conv3d that runs t x 1 x 1 kernels over channels-last clips on a CPU as t x 1 in 2D.

    H and W lie side by side in memory there, so (T, H, W) seen as (T, H * W) costs nothing, and
    oneDNN has vector code for the weight gradient in 2D where in 3D it takes a general matrix
    product, which is several times slower at few channels (benchmarks/backbones.py --layers).
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type == "cpu"
            and self.kernel_size[0] > 1
            and self.kernel_size[1:] == self.stride[1:] == (1, 1)
            and x.is_contiguous(memory_format=torch.channels_last_3d)
        ):
            return self._over_time(x)
        return super().forward(x)

    def _over_time(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(batch, frames, height * width, channels)
        out = F.conv2d(
            rows.permute(0, 3, 1, 2),
            self.weight.squeeze(-1),
            self.bias,
            stride=(self.stride[0], 1),
            padding=(self.padding[0], 0),
        )
        _, channels, frames, _ = out.shape
        rows = out.permute(0, 2, 3, 1).reshape(batch, frames, height, width, channels)
        return rows.permute(0, 4, 1, 2, 3)


def conv3d(
    in_channels: int,
    out_channels: int,
    kernel: Triple,
    stride: Triple = (1, 1, 1),
    bias: bool = False,
) -> Conv3d:
    """A convolution padded so that an odd kernel at stride 1 keeps the size."""
    padding = tuple(size // 2 for size in kernel)
    return Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)
