"""Convolutions of channels-last clips on a CPU, with the weight gradient as matrix products.

oneDNN's forward pass and its gradient to the input are fastest over channels-last maps, but its
weight gradient is slow there: R(2+1)D's 64 -> 144, 1x3x3 over 56 x 56 took 215, 192 and 511 ms on
one AVX2 core, against 287, 280 and 250 ms over contiguous maps. As matrix products of shifted rows,
below, the weight gradient takes 245 ms in either layout. Measured of the layer alone.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Triple", "convolve", "over_time", "weight_gradient"]

Triple = tuple[int, int, int]

_ROWS = 4096
"""Rows of a matrix product: few enough to stay in the cache from tap to tap. 2,048, 6,144 and
16,384 rows took 245, 244 and 281 ms for the layer above."""


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple
    ) -> Tensor:
        if _only_over_time(weight.shape[2:], stride):
            return over_time(x, weight, bias, stride[0], padding[0])
        return F.conv3d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _input_gradient(grad, x, weight, stride, padding)
        if ctx.needs_input_grad[1] and torch.is_grad_enabled():  # it is differentiated in its turn
            weight_grad = _backward(grad, x, weight, stride, padding, (False, True, False))[1]
        elif ctx.needs_input_grad[1]:
            weight_grad = weight_gradient(x, grad, tuple(weight.shape[2:]), stride, padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            bias_grad = grad.sum(dim=(0, 2, 3, 4))
        return x_grad, weight_grad, bias_grad, None, None


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple
) -> Tensor:
    """F.conv3d of channels-last clips x (B, Ci, T, H, W) on a CPU, the first derivative faster."""
    return _Convolve.apply(x, weight, bias, stride, padding)


def over_time(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A kernel (Co, Ci, t, 1, 1) over channels-last clips, as t x 1 in 2D over (T, H * W).

    H and W lie side by side in memory there, so the other shape costs nothing.
    """
    out = F.conv2d(_images(x), weight.squeeze(-1), bias, (stride, 1), (padding, 0))
    return _clips(out, x.shape[3:])


def weight_gradient(
    x: Tensor, grad: Tensor, kernel: Triple, stride: Triple, padding: Triple
) -> Tensor:
    """Gradient (Co, Ci, *kernel) of a convolution of x (B, Ci, T, H, W) whose output's is `grad`.

    Both are channels-last, so a position is a row of channels. A tap of the kernel adds up grad's
    rows times x's rows some way on: one matrix product.
    """
    if _only_over_time(kernel, stride) and stride[0] == 1:
        sums = _taps_over_time(x, grad, kernel[0], padding[0])
    elif _only_over_time(kernel, stride):  # oneDNN's own is faster there
        weight = x.new_empty(grad.shape[1], x.shape[1], *kernel)
        return _backward(grad, x, weight, stride, padding, (False, True, False))[1]
    else:
        sums = _taps_over_grids(x, grad, kernel, stride, padding)
    return sums.reshape(*kernel, *sums.shape[1:]).permute(3, 4, 0, 1, 2)


def _taps_over_time(x: Tensor, grad: Tensor, taps: int, padding: int) -> Tensor:
    """(taps, Co, Ci): a tap's rows lie whole frames on; past either end of a clip is nothing."""
    batch, _, _, height, width = x.shape
    rows_in, rows_out = (t.permute(0, 2, 3, 4, 1).flatten(1, 3) for t in (x, grad))
    ends, length = rows_in.shape[1], rows_out.shape[1]
    streams = _streams(batch)
    sums = x.new_zeros(taps, streams, grad.shape[1], x.shape[1])
    for first in range(0, batch, streams):
        clips = slice(first, min(first + streams, batch))
        for start in range(0, length, _ROWS):
            for tap in range(taps):
                shift = (tap - padding) * height * width
                low, high = max(start, -shift), min(start + _ROWS, length, ends - shift)
                if low < high:
                    sums[tap, : clips.stop - first].baddbmm_(
                        rows_out[clips, low:high].mT, rows_in[clips, low + shift : high + shift]
                    )
    return sums.sum(dim=1)


def _taps_over_grids(
    x: Tensor, grad: Tensor, kernel: Triple, stride: Triple, padding: Triple
) -> Tensor:
    """(taps, Co, Ci), by copies of a few clips at a time into grids with zeros between the lines.

    With a stride, x falls into as many grids as the stride has steps, and a tap reads one of them:
    its offset o is step o % stride, o // stride positions on. One gap at the end of a line holds
    the zeros that are read past that line and before the next.
    """
    x, grad = (t.permute(0, 2, 3, 4, 1) for t in (x, grad))  # (B, T, H, W, C)
    if kernel[0] == stride[0] == 1:  # frames are clips of one frame
        x, grad = (t.flatten(0, 1).unsqueeze(1) for t in (x, grad))
    offsets = [
        [divmod(tap - p, s) for tap in range(k)]
        for k, s, p in zip(kernel, stride, padding, strict=True)
    ]  # of each axis: (positions on, step)
    reach = [max(abs(on) for on, _ in axis) for axis in offsets]
    grid = [
        max(out, -(-size // s)) + gap
        for out, size, s, gap in zip(grad.shape[1:4], x.shape[1:4], stride, reach, strict=True)
    ]
    pitch = (grid[1] * grid[2], grid[2], 1)
    cells = grid[0] * pitch[0]
    margin = sum(r * p for r, p in zip(reach, pitch, strict=True))

    streams = _streams(len(x))
    share = max(1, min(_ROWS // cells, -(-len(x) // streams)))  # clips of a stream at a time
    length = share * cells
    rows_out = grad.new_zeros(streams, length, grad.shape[-1])
    rows_in = {
        steps: x.new_zeros(streams, margin + length + margin, x.shape[-1])
        for steps in product(*({step for _, step in axis} for axis in offsets))
    }
    taps = [
        (
            rows_in[tuple(s for _, s in tap)],
            sum(on * p for (on, _), p in zip(tap, pitch, strict=True)),
        )
        for tap in product(*offsets)
    ]
    sums = x.new_zeros(len(taps), streams, grad.shape[-1], x.shape[-1])
    for first in range(0, len(x), streams * share):
        for stream in range(streams):
            clips = slice(first + stream * share, first + (stream + 1) * share)
            _fill(rows_out[stream].view(share, *grid, -1), grad[clips])
            for steps, rows in rows_in.items():
                picks = (slice(a, None, s) for a, s in zip(steps, stride, strict=True))
                grids = rows[stream, margin : margin + length].view(share, *grid, -1)
                _fill(grids, x[(clips, *picks)])
        for start in range(0, length, _ROWS):
            end = min(start + _ROWS, length)
            for total, (rows, shift) in zip(sums, taps, strict=True):
                at = margin + shift
                total.baddbmm_(rows_out[:, start:end].mT, rows[:, at + start : at + end])
    return sums.sum(dim=1)


def _fill(grids: Tensor, maps: Tensor) -> None:
    """Maps into the corner of their grids; 0 where there are fewer maps than grids."""
    count, frames, height, width = maps.shape[:4]
    grids[:count, :frames, :height, :width] = maps
    if count < len(grids):
        grids[count:] = 0


def _streams(batch: int) -> int:
    """Matrix products side by side: one a thread, each adding to a sum of its own."""
    return max(1, min(torch.get_num_threads(), batch))


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Triple, padding: Triple
) -> Tensor:
    wanted = (True, False, False)
    if not _only_over_time(weight.shape[2:], stride):
        return _backward(grad, x, weight, stride, padding, wanted)[0]
    images = (_images(grad), _images(x), weight.squeeze(-1))
    found = _backward(*images, (stride[0], 1), (padding[0], 0), wanted)[0]
    return _clips(found, x.shape[3:])


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple, padding: tuple, wanted: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    ones, zeros = [1] * len(stride), [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, ones, False, zeros, 1, wanted
    )


def _only_over_time(kernel: tuple[int, ...], stride: Triple) -> bool:
    return tuple(kernel[1:]) == tuple(stride[1:]) == (1, 1)


def _images(clips: Tensor) -> Tensor:
    """Channels-last (B, C, T, H, W) as channels-last (B, C, T, H * W)."""
    return clips.permute(0, 2, 3, 4, 1).flatten(2, 3).permute(0, 3, 1, 2)


def _clips(images: Tensor, size: torch.Size) -> Tensor:
    """`_images` undone: `size` is (H, W)."""
    return images.permute(0, 2, 3, 1).unflatten(2, tuple(size)).permute(0, 4, 1, 2, 3)
