"""The layers that all networks share, and how they run fastest on what device.

On a GPU maps are channels-last and their channels come by eights, as tensor cores take them: a
convolution may be asked for channels of zeros up to the next multiple of 8, and batch norm and the
next convolution go on with them. R(2+1)D's widths between its factors, 83, 230 or 921, need that;
parameters, buffers and results are those of the network without.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones.convolution import Triple, convolve, over_time

__all__ = ["BatchNorm3d", "Conv3d", "ConvNorm", "Triple", "conv3d", "on_tensor_cores"]

WIDE = 48
"""Channels from which a convolution's weight gradient is faster as matrix products."""


def on_tensor_cores(x: Tensor) -> bool:
    """Whether maps are laid out as a GPU's tensor cores take them."""
    return x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d)


class BatchNorm3d(nn.BatchNorm3d):
    """nn.BatchNorm3d that also takes channels of zeros beyond its own, and leaves them zeros.

    On a GPU channels-last maps are normalised as (B, C, T * H, W): of that layout torch has fast
    kernels in two dimensions only.
    """

    def forward(self, x: Tensor) -> Tensor:
        filling = x.shape[1] - self.num_features
        if not filling and not on_tensor_cores(x):
            return super().forward(x)
        average = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, variance = _filled(self.running_mean, filling), _filled(self.running_var, filling)
        flat = x.flatten(2, 3) if on_tensor_cores(x) else x
        weight, bias = _filled(self.weight, filling), _filled(self.bias, filling)
        y = F.batch_norm(flat, mean, variance, weight, bias, self.training, average, self.eps)
        if self.training and filling:
            self.running_mean.copy_(mean[:-filling])
            self.running_var.copy_(variance[:-filling])
        return y.unflatten(2, x.shape[2:4]) if flat is not x else y


def _filled(channels: Tensor, filling: int) -> Tensor:
    """(C,) with `filling` zeros after it."""
    return F.pad(channels, (0, filling)) if filling else channels


class ConvNorm(nn.Module):
    """Convolution and batch norm, with ReLU unless told otherwise."""

    def __init__(self, conv: nn.Module, channels: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class Conv3d(nn.Conv3d):
    """nn.Conv3d, run by `convolution` where clips are channels-last on a CPU.

    Of maps with channels of zeros beyond its own it takes no notice of these, and with `fills` its
    output has such up to the next multiple of 8. An image's three channels are filled up too where
    they are on tensor cores.

    Wide layers take their weight gradient from there. Narrow ones over time run in 2D, where oneDNN
    has vector code for the weight gradient; in 3D it takes a general matrix product, which is
    several times slower at few channels (benchmarks/backbones.py --layers).
    """

    def forward(self, x: Tensor, fills: bool = False) -> Tensor:
        if self.in_channels == 3 and on_tensor_cores(x):
            x = F.pad(x, (0,) * 7 + (5,))
        before, after = x.shape[1] - self.in_channels, -self.out_channels % 8 if fills else 0
        if before or after:
            weight = F.pad(self.weight, (0,) * 7 + (before, 0, after))
            bias = _filled(self.bias, after) if self.bias is not None else None
            return F.conv3d(x, weight, bias, self.stride, self.padding)
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
