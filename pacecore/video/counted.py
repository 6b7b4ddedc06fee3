"""What counting found of a video, as text: an index keeps it, for as long as the file stays as it
was, since counting reads every byte. In memory too it is a tenth of what it stands for.
"""

import base64
import json
import os
import stat
import zlib
from dataclasses import fields
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pacecore.timeline import CodedOrder, Timeline
from pacecore.video.probing import VideoInfo

__all__ = ["counted_from", "counted_text", "described", "holds"]

_FFMPEG = ".".join(map(str, av.library_versions["libavformat"]))
_RULES = 5  # raise it with every change of what counting finds
_MOST_BYTES = 1 << 28  # of one video's text
_ARRAYS = ("stamps", "key_frames", "key_stamps", "key_places")


def counted_text(info: VideoInfo, path: str) -> str:
    """`info` of the file at `path`, after what tells that file, as it is, from another."""
    timeline = {name: _list(getattr(info.timeline, name)) for name in _ARRAYS}
    coded = info.timeline.coded
    if coded is not None:
        timeline["coded"] = vars(coded) | {"is_b": _list(coded.is_b)}
    said = {each.name: getattr(info, each.name) for each in fields(info)}
    said |= {"rate": info.rate and str(info.rate), "timeline": timeline}
    text = json.dumps(said, separators=(",", ":")).encode()
    return f"{_identity(path)} {base64.b64encode(zlib.compress(text, 9)).decode()}"


def holds(text: Any, path: str) -> bool:
    """Whether `text` is whole and what counted_text gives of the file at `path`, by the file's size
    and date, these rules and FFmpeg; never of a folder of pictures, which is soon counted again.
    """
    try:
        return text.rpartition(" ")[0] == _identity(path) and bool(_unpacked(text))
    except (AttributeError, ValueError, zlib.error):  # another program wrote it
        return False


def described(text: str) -> dict[str, Any]:
    """The fields of VideoInfo as JSON has them."""
    return json.loads(_unpacked(text))


def counted_from(text: str) -> VideoInfo:
    """What `counted_text` was given."""
    said = described(text)
    timeline = said["timeline"]
    arrays = {name: _array(timeline[name]) for name in _ARRAYS}
    coded = timeline.get("coded")
    if coded is not None:
        coded = CodedOrder(
            frames=tuple(map(tuple, coded["frames"])),
            lost=tuple(map(tuple, coded["lost"])),
            is_b=_array(coded["is_b"]).astype(bool),
            key_packets=tuple(coded["key_packets"]),
        )
    said["rate"] = said["rate"] and Fraction(said["rate"])
    said["timeline"] = Timeline(said["num_frames"], **arrays, coded=coded)
    return VideoInfo(**said)


def _unpacked(text: str) -> bytes:
    reader = zlib.decompressobj()
    found = reader.decompress(base64.b64decode(text.rpartition(" ")[2]), _MOST_BYTES)
    if not reader.eof:  # before its end is its checksum
        raise ValueError
    return found


def _identity(path: str) -> str | None:
    """Of a file as it is, and of what counts it."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return f"{about.st_size} {int(about.st_mtime)} {_RULES} {_FFMPEG}"


def _list(array: np.ndarray | None) -> list[int] | None:
    """Differences, which compress well."""
    return None if array is None else np.diff(array.astype(np.int64), prepend=0).tolist()


def _array(differences: list[int] | None) -> np.ndarray | None:
    return None if differences is None else np.cumsum(np.array(differences, np.int64))
