"""The dispatcher namespace that the ops live in, and the one place that says torch.ops.

Ops reach their kernels through `ops()`, and give themselves a fake kernel and a backward with
`@registration`. Both follow a namespace, because the tests load the CUDA sources, compiled for the
CPU, under a second one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pacecore._extension import extension
from pacecore.errors import PacecoreError

__all__ = [
    "NAMESPACE",
    "add_namespace",
    "expected_errors",
    "ops",
    "registration",
    "use_namespace",
]

NAMESPACE = "pacecore"
_active = NAMESPACE
_registrations: list[Callable[[str], None]] = []

extension()


def ops() -> torch._ops._OpNamespace:
    """The ops of the namespace in use, torch.ops.pacecore but in tests."""
    return getattr(torch.ops, _active)


def registration(function: Callable[[str], None]) -> Callable[[str], None]:
    """Decorates `function(namespace)`, which registers an op's fake and backward under that
    namespace.
    """
    _registrations.append(function)
    function(NAMESPACE)
    return function


def add_namespace(library_path: str, namespace: str) -> None:
    """Loads another build of the ops and gives its namespace the same fakes and backwards."""
    torch.ops.load_library(library_path)
    for function in _registrations:
        function(namespace)


@contextmanager
def expected_errors(op: str) -> Iterator[None]:
    """The refusals of the kernels of `op` as PacecoreError; anything else as it is."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith(f"{op}: "):
            raise PacecoreError(str(error).partition("\n")[0]) from None
        raise


@contextmanager
def use_namespace(namespace: str) -> Iterator[None]:
    """Within the block the public functions call the kernels of `namespace`."""
    global _active
    previous, _active = _active, namespace
    try:
        yield
    finally:
        _active = previous
