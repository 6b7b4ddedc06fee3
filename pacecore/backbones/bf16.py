"""Whether bf16 convolutions can be trusted on a device: beside fp32 ones, of results and times."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Bf16Check", "check_bf16_conv3d"]


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
