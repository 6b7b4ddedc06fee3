"""What counting found of a video, as text that an index keeps, for as long as the file stays as it
was: counting reads every byte.
"""

import base64
import json
import os
import stat
import zlib
from dataclasses import asdict, fields
from fractions import Fraction

import av
import numpy as np

from pacecore.timeline import CodedOrder, Timeline
from pacecore.video.probing import VideoInfo

__all__ = ["counted_from", "counted_text"]

_FFMPEG = ".".join(map(str, av.library_versions["libavformat"]))
_RULES = 2  # raise it with every change of what counting finds
_MOST_BYTES = 1 << 28  # of one video's text
_ARRAYS = ("stamps", "key_frames", "key_stamps", "key_places")


def counted_text(info: VideoInfo, path: str) -> str | None:
    """`info` of the file at `path`; None of what is no file, as a folder of pictures is, which is
    soon counted again.
    """
    file = _identity(path)
    if file is None:
        return None
    timeline = {name: _list(getattr(info.timeline, name)) for name in _ARRAYS}
    coded = info.timeline.coded
    if coded is not None:
        timeline["coded"] = asdict(coded) | {"is_b": _list(coded.is_b)}
    said = {each.name: getattr(info, each.name) for each in fields(info)}
    said |= {"rate": info.rate and str(info.rate), "timeline": timeline}
    text = json.dumps({"file": file, "info": said}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def counted_from(text: str, path: str) -> VideoInfo | None:
    """What `counted_text` was given; None where the file at `path` is another by now, by its size
    and date, or would be counted otherwise, by these rules or another FFmpeg.
    """
    try:
        reader = zlib.decompressobj()
        kept = json.loads(reader.decompress(base64.b64decode(text), _MOST_BYTES))
        if not reader.eof or kept["file"] != _identity(path):  # before its end is its checksum
            return None
        said, timeline = kept["info"], kept["info"]["timeline"]
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
    except (ValueError, KeyError, TypeError, zlib.error):  # another program wrote it
        return None


def _identity(path: str) -> list | None:
    """Of a file as it is, and of what counts it."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return [about.st_size, int(about.st_mtime), _RULES, _FFMPEG]


def _list(array: np.ndarray | None) -> list[int] | None:
    """Differences, which compress well."""
    return None if array is None else np.diff(array.astype(np.int64), prepend=0).tolist()


def _array(differences: list[int] | None) -> np.ndarray | None:
    return None if differences is None else np.cumsum(np.array(differences, np.int64))
