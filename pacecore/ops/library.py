"""The dispatcher namespace that the ops live in, and the one place that says torch.ops.

Ops reach their kernels through `ops()`; the `register` of each gives a namespace its fake kernel
and its backward, because the tests load the CUDA sources, compiled for the CPU, under a second one.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pacecore._extension import extension
from pacecore.errors import PacecoreError

__all__ = ["NAMESPACE", "expected_errors", "has_tangent", "ops"]

NAMESPACE = "pacecore"  # tests put another in its place

_extension = extension()


def ops() -> torch._ops._OpNamespace:
    """The ops of the namespace in use, torch.ops.pacecore but in tests."""
    return getattr(torch.ops, NAMESPACE)


def _words() -> str:
    """Of the last failure of torch's within an op, which its C interface keeps from the op itself.
    Before torch 2.13 no one learns them; what an op asks of torch is memory, above all.
    """
    last = getattr(
        ctypes.CDLL(_extension.__file__), "torch_exception_get_what_without_backtrace", 0
    )
    if not last:
        return "most likely out of memory"
    last.restype = ctypes.c_char_p
    return last().decode(errors="replace")


# What the dispatcher says of an argument that the schema has no place for.
_WRONG_TYPE = re.compile(
    r"\w+::\w+\(\) Expected a value of type '(.+?)' for argument '(\w+)' but instead found type"
    r" '(.+?)'.*\n.*\nValue: (.*)\n(Declaration: )?"
)


@contextmanager
def expected_errors(op: str) -> Iterator[None]:
    """What `op` and torch refuse of its arguments, as PacecoreError, and a failure of torch's
    within it in torch's words; anything else as it is.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        line = text.partition("\n")[0]
        if text.startswith(f"{op}: "):
            raise PacecoreError(line) from None
        if wrong := _WRONG_TYPE.match(text):
            kind, name, found, value, whole = wrong.groups()
            got = value if whole and "Tensor" not in kind else found  # arrays take many lines
            raise PacecoreError(f"{op}: {name} must be of type {kind}, got {got}") from None
        there = "pacecore doctor says what was built"
        if re.search("no kernel image|unsupported toolchain|driver version is insufficient", text):
            raise PacecoreError(f"{op}: {line}; {there}") from None
        if none := re.match(r"Could not run .* from the '(\w+)' backend", text):
            raise PacecoreError(f"{op}: has no kernel for {none[1]} tensors; {there}") from None
        if "API call failed" in text:
            words = _words()
            kind = torch.OutOfMemoryError if "out of memory" in words else RuntimeError
            raise kind(f"{op}: {words}") from error
        if "functorch transforms" in text:
            raise PacecoreError(
                f"{op}: has no derivative by torch.func, only by autograd"
            ) from None
        raise


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation has come to `tensor`. No op passes it on, and torch
    would take what comes out for a constant.
    """
    return forward_ad.unpack_dual(tensor).tangent is not None
