"""The ops on the emulated device: every kernel under three orders of its threads, compared."""

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pacecore.ops  # noqa: F401  every op registered, before a namespace is added
from pacecore.ops import library

from . import build

__all__ = [
    "SCHEDULES",
    "ScheduleError",
    "emulation",
    "emulation_missing",
    "hardware",
    "library_path",
]

SCHEDULES = {"forwards": 0, "backwards": 1, "shuffled": 2}
LIBRARY_VARIABLE = "PACECORE_EMULATION_LIBRARY"  # a library built before, say with sanitizers


class ScheduleError(AssertionError):
    """A kernel's result depends on the order in which its threads run."""


def emulation_missing() -> str | None:
    """Why the kernels cannot run on the CPU here, or None."""
    return build.compiler_missing()


@functools.cache
def library_path() -> Path:
    """The emulated ops' library, built if need be, and loaded under its namespace."""
    path = Path(os.environ.get(LIBRARY_VARIABLE) or build.build())
    library.add_namespace(str(path), build.NAMESPACE)
    return path


def set_schedule(name: str, seed: int = 0) -> None:
    ctypes.CDLL(str(library_path())).cuda_on_cpu_set_schedule(
        SCHEDULES[name], ctypes.c_uint64(seed)
    )


def tensors(result: object) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether equal in shape and in every bit, NaNs included."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


class EverySchedule(TorchDispatchMode):
    """Runs each emulated op under all three schedules; they must agree."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != build.NAMESPACE:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} writes its arguments, so it cannot be run thrice")
        results = {}
        try:
            for seed, name in enumerate(SCHEDULES):
                set_schedule(name, seed)
                results[name] = func(*args, **kwargs)
        finally:
            set_schedule("forwards")
        first = tensors(results["forwards"])
        for name, result in results.items():
            for place, (a, b) in enumerate(zip(first, tensors(result), strict=True)):
                if not same_bits(a, b):
                    raise ScheduleError(
                        f"{func}: result {place} differs between threads run forwards and {name}: "
                        "a barrier is missing, or memory is read that was never written"
                    )
        return results["forwards"]


@contextmanager
def emulation() -> Iterator[None]:
    """Within the block the ops run the CUDA kernels on CPU tensors, and torch.empty gives NaN."""
    library_path()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with library.use_namespace(build.NAMESPACE), EverySchedule():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def hardware() -> Iterator[None]:
    """Within the block ops run on the GPU."""
    yield
