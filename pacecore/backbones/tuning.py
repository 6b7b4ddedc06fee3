"""What makes a network fast on a device, and the check that bf16 convolutions can be trusted."""

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones.c3d import C3D
from pacecore.backbones.residual import R3D

__all__ = [
    "MEMORY_FORMAT",
    "Bf16Check",
    "check_bf16_conv3d",
    "keep_freed_memory",
    "memory_format",
    "prepare",
]

MEMORY_FORMAT = torch.channels_last_3d
"""The layout of tensor cores; cuDNN would otherwise convert before and after each convolution."""


def memory_format(network: nn.Module, device: str | torch.device) -> torch.memory_format:
    """The layout of weights and clips in which `network` trains fastest on `device`.

    MEMORY_FORMAT, but on a CPU contiguous for the undivided 3 x 3 x 3 convolutions at full width:
    C3D's, and with AVX-512 also R3D's. There, full steps took, as multiples of plain contiguous
    eager's time in the same run:

        16 x 112 x 112, one thread     AVX2            AVX-512
        R(2+1)D                        0.71 to 0.75    0.82
        R3D                            0.91 to 0.98    1.13 (1.17 with two threads)
        C3D                            1.05            1.15
        S3D-G                          1.01            0.89

    and at a quarter of the width R(2+1)D 0.8, R3D 0.9, C3D 0.84 to 0.93.
    """
    if torch.device(device).type == "cpu":
        undivided = (C3D, R3D) if torch.backends.cpu.get_cpu_capability() == "AVX512" else (C3D,)
        if any(
            isinstance(part, undivided) and part.feature_dim >= 512 for part in network.modules()
        ):
            return torch.contiguous_format
    return MEMORY_FORMAT


def prepare(network: nn.Module, device: str | torch.device) -> nn.Module:
    """`network` on `device`, its weights laid out by `memory_format`; clips should be so too.

    On a CPU it also has the process keep the memory it frees: see `keep_freed_memory`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    if memory_format(network, device) is MEMORY_FORMAT:
        return network.to(device=device, memory_format=MEMORY_FORMAT)
    return network.to(device=device)


@lru_cache
def keep_freed_memory() -> bool:
    """Lets glibc's allocator reuse large blocks; False where the C library offers no such setting.

    By default each block over 32 MiB comes fresh from the kernel and goes back when freed, and the
    kernel hands out its pages one fault at a time. A training step at full batch frees and asks for
    such blocks by the dozen: measured with R(2+1)D at a quarter of the width, 30 clips of
    16 x 56 x 56, faults were about 0.5 s of the 3.7 s of processor time that a step took.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


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
        for layout, name in ((MEMORY_FORMAT, "channels-last"), (torch.contiguous_format, "plain")):
            results = {}
            for dtype in steps:
                x = clips.to(device, dtype, memory_format=layout)
                w = weight.to(device, dtype, memory_format=layout)
                step = partial(_with_gradients, convolution, x, w, stride, kernel)
                with _true_fp32():
                    results[dtype] = step()
                if layout is MEMORY_FORMAT:
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
