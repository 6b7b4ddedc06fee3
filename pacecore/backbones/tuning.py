"""What makes a network fast on a device."""

import ctypes
from functools import lru_cache

import torch
from torch import nn

from pacecore.backbones.c3d import C3D
from pacecore.backbones.residual import R3D

__all__ = ["MEMORY_FORMAT", "keep_freed_memory", "memory_format", "prepare"]

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
