"""The layers that all networks share, and how they run fastest on what device.

On a GPU maps are channels-last and their channels come by eights, as tensor cores take them: a
convolution may be asked for channels of zeros up to the next multiple of 8, and batch norm and the
next convolution go on with them. R(2+1)D's widths between its factors, 83, 230 or 921, need that;
parameters, buffers and results are those of the network without.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones.convolution import Triple, convolve, over_time

__all__ = ["BatchNorm3d", "Conv3d", "ConvNorm", "Triple", "conv3d", "normed", "on_tensor_cores"]

WIDE = 48
"""Channels from which a convolution's weight gradient is faster as matrix products."""


def on_tensor_cores(x: Tensor) -> bool:
    """Whether maps are laid out as a GPU's tensor cores take them."""
    return x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d)


class BatchNorm3d(nn.BatchNorm3d):
    """nn.BatchNorm3d, with ReLU after it where asked for.

    It also takes channels of zeros beyond its own, and leaves them zeros.

    On a GPU channels-last maps are normalised as (B, C, T * H, W): of that layout torch has fast
    kernels in two dimensions only. ReLU is done in that shape too: in place on the view that
    follows it would have autograd copy the whole map. On a CPU a training's mean and variance of
    such maps come from `_moments`.
    """

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        filling = x.shape[1] - self.num_features
        usual = self.track_running_stats and self.momentum is not None
        by_moments = usual and self.training and self.affine and _is_long_on_cpu(x)
        if not filling and not (usual and on_tensor_cores(x)):
            y = self._by_moments(x) if by_moments else super().forward(x)
            return F.relu_(y) if relu else y
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, variance = _filled(self.running_mean, filling), _filled(self.running_var, filling)
        flat = x.flatten(2, 3) if on_tensor_cores(x) else x
        weight, bias = _filled(self.weight, filling), _filled(self.bias, filling)
        y = F.batch_norm(flat, mean, variance, weight, bias, self.training, self.momentum, self.eps)
        if relu:
            F.relu_(y)
        if self.training and filling:
            self.running_mean.copy_(mean[:-filling])
            self.running_var.copy_(variance[:-filling])
        return y.unflatten(2, x.shape[2:4]) if flat is not x else y

    def _by_moments(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mean, variance = _moments(x, self.running_mean.dtype)
            rows = x.numel() // self.num_features
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)
        return _Normalised.apply(x, self.weight, self.bias, mean, variance, self.eps)


GROUP = 1024
"""Rows that a CPU adds up in float32."""


def _is_long_on_cpu(x: Tensor) -> bool:
    """Whether torch would add up more than two groups of rows of a channel one after the other."""
    return (
        x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and not x.is_contiguous()
        and x.numel() >= 2 * GROUP * x.shape[1]  # last, as an export is held to what it says
    )


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance (over n) of each channel of channels-last maps (B, C, T, H, W), both (C,).

    torch adds up the rows of such maps, all that a thread has, in one float32 number a channel:
    beyond 100,000 of them, after a ReLU, the variance was 2e-4 off, of 1.5 million 5e-3. Here the
    same kernel takes groups of rows, as if each were other channels, and they are joined in
    float64: 1e-6 off at most, in the same time.
    """
    rows = x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])
    groups = len(rows) // GROUP
    even = len(rows) // groups * groups
    wide = rows[:even].reshape(len(rows) // groups, -1)
    # Of the parameters' type are its results where `like` is, whatever the type of the maps.
    like = x.new_zeros(wide.shape[1], dtype=dtype)
    found = torch.batch_norm_update_stats(wide, like, like, 0.0)
    means, variances = (each.view(groups, -1).double() for each in found)
    rest = rows[even:].double()
    mean = (len(wide) * means.sum(0) + rest.sum(0)) / len(rows)
    squares = len(wide) * (variances + (means - mean).square()).sum(0)
    squares += (rest - mean).square().sum(0)
    return mean.to(dtype), (squares / len(rows)).to(dtype)


class _Normalised(torch.autograd.Function):
    """Batch norm by the moments of the batch, given: forward as torch does it in evaluation, back
    as it does in training.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, scale, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *found, None, None, None


def normed(norm: nn.Module, x: Tensor, relu: bool) -> Tensor:
    """`norm` of x, with ReLU where asked for; the norm may have been replaced by another module,
    nn.SyncBatchNorm for one.
    """
    if isinstance(norm, BatchNorm3d):
        return norm(x, relu)
    y = norm(x)
    # Of nn.Identity it is the convolution's output, which may be a view that is not to be changed.
    return (F.relu if y is x else F.relu_)(y) if relu else y


def _filled(channels: Tensor, filling: int) -> Tensor:
    """(C,) with `filling` zeros after it."""
    return F.pad(channels, (0, filling)) if filling else channels


class ConvNorm(nn.Module):
    """Convolution and batch norm, with ReLU unless told otherwise."""

    def __init__(self, conv: nn.Module, channels: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm3d(channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.norm, self.conv(x), self.relu)


class Conv3d(nn.Conv3d):
    """nn.Conv3d, run by `convolution` where clips are channels-last on a CPU.

    Of maps with channels of zeros beyond its own it takes no notice of these, and with `fills` its
    output has such up to the next multiple of 8. R(2+1)D's first layer, over space alone, runs in
    2D with the three channels of an image filled up: cuDNN has no tensor core code for it in 3D, in
    which it took 6.6 ms of a step of 73 on an H200, for 60 clips.

    Wide layers take their weight gradient from there. Narrow ones over time run in 2D, where oneDNN
    has vector code for the weight gradient; in 3D it takes a general matrix product, which is
    several times slower at few channels: of R(2+1)D a quarter as wide the layers from 32 to 16 and
    from 72 to 32, each alone, forward and with both gradients, took 9.5 and 4.2 times as long on a
    core of an Intel Xeon.
    """

    def forward(self, x: Tensor, fills: bool = False) -> Tensor:
        before, after = x.shape[1] - self.in_channels, -self.out_channels % 8 if fills else 0
        over_space = self.kernel_size[0] == self.stride[0] == 1
        if self.in_channels == 3 and over_space and on_tensor_cores(x):
            return self._over_frames(x, after)
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
        wide = min(self.in_channels, self.out_channels) >= WIDE
        if wide and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")):
            return convolve(x, self.weight, self.bias, self.stride, self.padding)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1):
            return over_time(x, self.weight, self.bias, self.stride[0], self.padding[0])
        return super().forward(x)

    def _over_frames(self, x: Tensor, filling: int) -> Tensor:
        """The convolution of each frame in 2D, with 8 - 3 channels of zeros before it."""
        frames = F.pad(x, (0,) * 7 + (5,)).transpose(1, 2).flatten(0, 1)  # (B * T, 8, H, W)
        weight = F.pad(self.weight.squeeze(2), (0,) * 5 + (5, 0, filling))
        y = F.conv2d(frames, weight, None, self.stride[1:], self.padding[1:])
        if self.bias is not None:
            y = y + _filled(self.bias, filling)[:, None, None]
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


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
