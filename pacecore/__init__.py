"""pacecore: learning video representations without labels, by pace prediction."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # else at first use, as below
    from pacecore import ops
    from pacecore.backbones import build_backbone
    from pacecore.convert import load_weights
    from pacecore.ops import info_nce, pace_clip
    from pacecore.sampling import frame_indices

__all__ = ["build_backbone", "frame_indices", "info_nce", "load_weights", "ops", "pace_clip"]

try:
    __version__ = version("pacecore")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0"

# Name -> module that has it; loaded at first use, so that importing pacecore does not import torch.
_HOMES = {
    "build_backbone": "pacecore.backbones",
    "frame_indices": "pacecore.sampling",
    "info_nce": "pacecore.ops",
    "load_weights": "pacecore.convert",
    "pace_clip": "pacecore.ops",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("pacecore.ops")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pacecore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
