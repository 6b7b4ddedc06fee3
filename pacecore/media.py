"""What counts as a video, and as a frame of one, by its name; and whether it has changed since."""

import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["is_video_name", "picture_files", "state_of"]

# fmt: off
_VIDEO_ENDINGS = {  # not mod, as of some cameras: a module of music or of Go's too
    "avi", "mp4", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "ts", "m2ts", "mts", "flv", "wmv",
    "asf", "ogv", "3gp", "3g2", "vob", "gif", "mxf", "y4m", "dv", "divx", "m2v", "mk3d",
}
# fmt: on
# What TSN and MMAction2 lay beside the frames img_00001.jpg: the optical flow, in pictures too.
_FLOW = re.compile(r"(flow_)?[xy]_\d+")
_PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def is_video_name(name: str) -> bool:
    """Whether a file's ending is that of a video."""
    return name.rpartition(".")[2].lower() in _VIDEO_ENDINGS


def picture_files(folder: str | Path) -> list[Path]:
    """The pictures in a folder, by the numbers in their names: img_2 before img_10; not hidden
    ones, such as the ._img_2 that macOS leaves beside each, nor optical flow beside frames.
    """
    visible = (p for p in Path(folder).iterdir() if not p.name.startswith("."))
    pictures = [p for p in visible if p.suffix.lower() in _PICTURE_ENDINGS]
    pictures = [p for p in pictures if not _FLOW.fullmatch(p.stem)] or pictures
    return sorted(pictures, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))


def state_of(path: str | Path) -> list[int]:
    """By which a file, or a folder of pictures, is told from what it is once it has changed: its
    bytes and its date, in nanoseconds, or the sums of its pictures'. [] of one that is gone.
    """
    with suppress(OSError):
        files = picture_files(path) if os.path.isdir(path) else [path]
        about = [os.stat(each) for each in files]
        return [sum(each.st_size for each in about), sum(each.st_mtime_ns for each in about)]
    return []
