"""Whether bf16 convolutions can be trusted on a device: beside fp32 ones, of results and times."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones.layers import Conv3d

__all__ = ["Bf16Check", "check_bf16_conv3d", "errors_of_layers"]


@dataclass(frozen=True)
class Bf16Check:
    """bf16 convolutions of one device beside fp32 ones: errors relative to the largest value."""

    device: str
    errors: dict[str, float]  # case -> largest error of output and gradients
    bf16_seconds: float
    fp32_seconds: float

    # Of the largest value. Rounding a result to bf16 is 2**-9 of it; a sum of taps kept in bf16,
    # as oneDNN's gradient to the input of a strided kernel, measured 0.022; a lost tap is over 0.3.
    ERROR_ALLOWED = 2**-4
    SLOWNESS_ALLOWED = 1.25  # bf16 seconds over fp32 seconds

    @property
    def wrong(self) -> list[str]:
        """The cases whose error is past what rounding explains (NaN is)."""
        return [case for case, error in self.errors.items() if not error <= self.ERROR_ALLOWED]

    @property
    def slow(self) -> bool:
        return self.bf16_seconds > self.SLOWNESS_ALLOWED * self.fp32_seconds

    @property
    def usable(self) -> bool:
        return not self.wrong and not self.slow

    def report(self) -> str:
        """One line: whether to use bf16 here, and why not."""
        times = f"{self.bf16_seconds * 1e3:.2f} ms, fp32 {self.fp32_seconds * 1e3:.2f} ms"
        if self.wrong:
            case = self.wrong[0]
            return (
                f"bf16 conv3d on {self.device} is wrong: {case} is off by {self.errors[case]:.2g} "
                f"of the largest value, {self.ERROR_ALLOWED:.2g} is allowed; use fp32"
            )
        if self.slow:
            return f"bf16 conv3d on {self.device} is slow ({times}); use fp32"
        return f"bf16 conv3d on {self.device} agrees with fp32 ({times})"


# kernel, stride, frames: the stem of R3D, the two factors of R(2+1)D, the plain 3D convolution, and
# the last stage, which has two frames left of sixteen: there torch 2.13 on CPUs with AVX512_BF16
# gives weight gradients that are noise or infinite, from 32 channels on.
_CASES = {
    "3x7x7": ((3, 7, 7), (1, 2, 2), 8),
    "3x3x3": ((3, 3, 3), (2, 2, 2), 8),
    "1x3x3": ((1, 3, 3), (1, 1, 1), 8),
    "3x1x1": ((3, 1, 1), (1, 1, 1), 8),
    "3x3x3 over two frames": ((3, 3, 3), (1, 1, 1), 2),
    "3x1x1 over two frames": ((3, 1, 1), (1, 1, 1), 2),
}
_LAYOUTS = {torch.channels_last_3d: "channels-last", torch.contiguous_format: "plain"}

_ROUNDS = 5  # of timing, at most


def check_bf16_conv3d(
    device: str | torch.device,
    convolution: Callable[..., Tensor] = F.conv3d,
) -> Bf16Check:
    """Runs the networks' kinds of convolution in bf16 and in fp32 on the same bf16 values.

    Some versions of torch and cuDNN compute bf16 conv3d, or its gradients, wrongly, or several
    times slower than fp32. Both layouts are tried; the fp32 side runs without TF32.
    `convolution` is for tests.
    """
    device = torch.device(device)
    small = device.type == "cpu"
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, float] = {}
    steps: dict[torch.dtype, list[Callable]] = {torch.bfloat16: [], torch.float32: []}
    for case, (kernel, stride, frames) in _CASES.items():
        shape = (4, 64, frames, 56, 56)
        if small:
            shape = (1, 16, 4, 8, 8) if frames > 2 else (4, 64, frames, 8, 8)
        clips = torch.randn(shape, generator=generator).bfloat16()
        weight = torch.randn(shape[1], shape[1], *kernel, generator=generator).bfloat16()
        weight /= weight[0].numel() ** 0.5
        for layout, name in _LAYOUTS.items():
            results = {}
            for dtype in steps:
                x = clips.to(device, dtype, memory_format=layout)
                w = weight.to(device, dtype, memory_format=layout)
                step = partial(_with_gradients, convolution, x, w, stride, kernel)
                with _true_fp32():
                    results[dtype] = step()
                if layout is torch.channels_last_3d:  # which the networks are trained in
                    steps[dtype].append(step)
            pairs = zip(results[torch.bfloat16], results[torch.float32], strict=True)
            errors[f"{case} {name}"] = max(_error(ours, exact) for ours, exact in pairs)
    return _timed(str(device), errors, steps)


def errors_of_layers(
    network: nn.Module, clips: tuple[int, ...], gradients: bool
) -> dict[str, float]:
    """The largest error of each kind of convolution of a network on a CPU, as the network runs it
    on clips of this shape (B, 3, T, H, W): of its output in bf16 beside fp32, and of its gradients.

    network: on the meta device. What is wrong of a layer goes with its size: torch 2.13 with AMX
    leaves outputs of kernels over time unwritten where there is one frame of fewer than 16
    channels, and the weight gradient of 24 to 56 channels, 1x3x3, over 4 frames of 56 x 56 is off
    by a quarter, where that over 8 frames is right.
    """
    layers: dict[tuple, tuple[str, Conv3d]] = {}

    def note(name: str) -> Callable:
        def hook(layer: Conv3d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            size = tuple(inputs[0].shape)
            kind = size, layer.out_channels, layer.kernel_size, layer.stride
            layers.setdefault(kind, (f"{name} of {' x '.join(map(str, size))}", layer))

        return hook

    for name, layer in network.named_modules():
        if isinstance(layer, Conv3d):
            layer.register_forward_hook(note(name))
    network(torch.empty(clips, device="meta"))
    return {
        name: _error_of_layer(layer, kind[0], gradients) for kind, (name, layer) in layers.items()
    }


def _error_of_layer(layer: Conv3d, size: tuple[int, ...], gradients: bool) -> float:
    """Of random input and weights, laid out as the networks have them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).bfloat16()
    weight = torch.randn(layer.weight.shape, generator=generator).bfloat16()
    weight /= weight[0].numel() ** 0.5
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        own = copy.deepcopy(layer).to_empty(device="cpu")
        own.weight.data = weight.float()
        if own.bias is not None:
            nn.init.zeros_(own.bias)
        own = own.to(memory_format=torch.channels_last_3d)
        taken = x.to(dtype, memory_format=torch.channels_last_3d).requires_grad_(gradients)
        with (
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
        ):
            out = own(taken)
        gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        gradient = gradient.bfloat16().to(out.dtype)
        found = torch.autograd.grad(out, (taken, own.weight), gradient) if gradients else ()
        results.append([out.detach(), *found])
    return max(_error(ours, exact) for ours, exact in zip(*results, strict=True))


def _timed(
    device: str, errors: dict[str, float], steps: dict[torch.dtype, list[Callable]]
) -> Bf16Check:
    """The check with the shortest time of each step, taken again while bf16 seems slow.

    A step takes less than a millisecond, which other processes on a busy machine easily double; but
    hardly in every round.
    """
    shortest = {dtype: [float("inf")] * len(each) for dtype, each in steps.items()}
    for _ in range(_ROUNDS):
        for dtype, each in steps.items():
            with _true_fp32():
                times = [_seconds(step, torch.device(device)) for step in each]
            shortest[dtype] = list(map(min, times, shortest[dtype]))
        seconds = {dtype: sum(times) for dtype, times in shortest.items()}
        check = Bf16Check(device, errors, seconds[torch.bfloat16], seconds[torch.float32])
        if check.wrong or not check.slow:
            break
    return check


def _true_fp32() -> AbstractContextManager:
    # `enabled` is said because the manager's own default turns cuDNN off.
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _with_gradients(
    convolution: Callable[..., Tensor], x: Tensor, w: Tensor, stride: tuple, kernel: tuple
) -> list[Tensor]:
    """Output, and gradients of its sum weighted by a fixed wave, to input and weight."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    out = convolution(x, w, stride=stride, padding=tuple(k // 2 for k in kernel))
    wave = torch.sin(torch.arange(out.numel(), device=out.device).reshape(out.shape) * 0.7)
    return [out.detach(), *torch.autograd.grad(out, (x, w), wave.bfloat16().to(out.dtype))]


def _error(ours: Tensor, exact: Tensor) -> float:
    return ((ours.float() - exact).abs().max() / exact.abs().max()).item()


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """The shortest of three runs, warmed up."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step()
    times = []
    for _ in range(3):
        synchronize()
        before = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - before)
    return min(times)
