"""Video files to decoded frames: the only package that imports av (FFmpeg) to read."""

from typing import TYPE_CHECKING, Any

from pacecore.video.container import VideoError
from pacecore.video.counted import counted_from, counted_text, described, holds
from pacecore.video.probing import VideoInfo, probe

if TYPE_CHECKING:  # else at first use: frames are torch's, which a process that probes does without
    from pacecore.video.decoding import decode, decode_all, turned

__all__ = [
    "VideoError", "VideoInfo", "counted_from", "counted_text", "decode", "decode_all", "described",
    "holds", "probe", "turned",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pacecore.video' has no attribute {name!r}")
    from pacecore.video import decoding

    return getattr(decoding, name)
