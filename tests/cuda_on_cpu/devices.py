"""The ops on the emulated device: every kernel under three orders of its threads, compared."""

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pacecore.ops import library
from pacecore.ops.info_nce import register as register_info_nce
from pacecore.ops.pace_clip import register as register_pace_clip

from . import build

__all__ = [
    "NAMESPACE",
    "SCHEDULES",
    "ScheduleError",
    "emulation",
    "emulation_missing",
    "library_path",
    "shared_bytes",
]

NAMESPACE = "pacecore_every_schedule"
SCHEDULES = {"forwards": 0, "backwards": 1, "shuffled": 2}
SCHEDULES_VARIABLE = "PACECORE_EMULATION_SCHEDULES"  # fewer of them, "shuffled", to save time
LIBRARY_VARIABLE = "PACECORE_EMULATION_LIBRARY"  # a library built before, say with sanitizers
_kept: list[torch.library.Library] = []  # definitions live as long as these


class ScheduleError(AssertionError):
    """A kernel's result depends on the order in which its threads run."""


def emulation_missing() -> str | None:
    """Why the kernels cannot run on the CPU here, or None."""
    return build.compiler_missing()


@functools.cache
def library_path() -> Path:
    """The library of the emulated kernels, built if need be, its ops under torch.ops.NAMESPACE.

    The library's own namespace has the kernels as they are. NAMESPACE has ops of the same schemas
    that run these under every schedule, and the fakes and backwards of the real ones.
    """
    path = Path(os.environ.get(LIBRARY_VARIABLE) or build.build())
    torch.ops.load_library(path)
    definitions = torch.library.Library(NAMESPACE, "DEF")
    _kept.append(definitions)
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, op = name.partition("::")
        if namespace == build.NAMESPACE:
            kernel = getattr(getattr(torch.ops, namespace), op).default
            if kernel._schema.is_mutable:
                raise RuntimeError(f"{kernel} writes its arguments: it cannot be run thrice")
            definitions.define(str(kernel._schema).partition("::")[2])
            definitions.impl(op, functools.partial(run_every_schedule, kernel), "CPU")
    register_info_nce(NAMESPACE)
    register_pace_clip(NAMESPACE)
    return path


def set_schedule(name: str, seed: int = 0) -> None:
    ctypes.CDLL(str(library_path())).cuda_on_cpu_set_schedule(
        SCHEDULES[name], ctypes.c_uint64(seed)
    )


def shared_bytes(kernel: str) -> int | None:
    """Dynamic shared memory that "pace_clip_kernel<float, false>" was last launched with."""
    function = ctypes.CDLL(str(library_path())).cuda_on_cpu_shared_bytes
    function.restype = ctypes.c_int64
    found = function(kernel.encode())
    return None if found < 0 else found


def tensors(result: object) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether equal in shape and in every bit, NaNs included."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def run_every_schedule(kernel: torch._ops.OpOverload, *args, **kwargs) -> object:
    """What the kernel returns, under three orders of its threads that must agree in every bit."""
    names = os.environ.get(SCHEDULES_VARIABLE, " ".join(SCHEDULES)).split()
    results = {}
    try:
        for seed, name in enumerate(names):
            set_schedule(name, seed)
            results[name] = kernel(*args, **kwargs)
    finally:
        set_schedule("forwards")
    first = tensors(results[names[0]])
    for name, result in results.items():
        for place, (a, b) in enumerate(zip(first, tensors(result), strict=True)):
            if not same_bits(a, b):
                raise ScheduleError(
                    f"{kernel}: result {place} differs between threads run {names[0]} and {name}: "
                    "a barrier is missing, or memory is read that was never written"
                )
    return results[names[0]]


@contextmanager
def emulation(architecture: int) -> Iterator[None]:
    """Within the block the ops run the CUDA kernels on CPU tensors, and torch.empty gives NaN.

    architecture: of the GPU that is played, 86 (no clusters, little shared memory) or 90; or 80,
        which is code for sm_80 on the GPU of 90.
    """
    ctypes.CDLL(str(library_path())).cuda_on_cpu_set_device(architecture)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    usual, library.NAMESPACE = library.NAMESPACE, NAMESPACE
    try:
        yield
    finally:
        library.NAMESPACE = usual
        torch.use_deterministic_algorithms(deterministic)
