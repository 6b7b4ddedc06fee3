"""The layers that all networks share."""

import torch
from torch import Tensor, nn

from pacecore.backbones.convolution import Triple, convolve, over_time

__all__ = ["Conv3d", "ConvNorm", "Triple", "conv3d"]

WIDE = 48
"""Channels from which a convolution's weight gradient is faster as matrix products."""


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
    """nn.Conv3d, run by `convolution` where clips are channels-last on a CPU.

    Wide layers take their weight gradient from there. Narrow ones over time run in 2D, where oneDNN
    has vector code for the weight gradient; in 3D it takes a general matrix product, which is
    several times slower at few channels (benchmarks/backbones.py --layers).
    """

    def forward(self, x: Tensor) -> Tensor:
        taps = self.weight[0, 0].numel()
        if (
            taps == 1
            or x.device.type != "cpu"
            or not x.is_contiguous(memory_format=torch.channels_last_3d)
        ):
            return super().forward(x)
        if self._wide() and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")):
            return convolve(x, self.weight, self.bias, self.stride, self.padding)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1):
            return over_time(x, self.weight, self.bias, self.stride[0], self.padding[0])
        return super().forward(x)

    def _wide(self) -> bool:
        return min(self.in_channels, self.out_channels) >= WIDE


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
