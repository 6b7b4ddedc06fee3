"""Where the loader's frames come from: one interface for video files and the store."""

from dataclasses import replace
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np

from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.video import VideoInfo, decode, probe

__all__ = ["FrameSource", "VideoFiles"]


@runtime_checkable
class FrameSource(Protocol):
    """Frames of numbered videos. All methods may be called from several threads at once."""

    def __len__(self) -> int:
        """How many videos there are; they are numbered from 0."""
        ...

    def path(self, video: int) -> str:
        """The name of a video in messages."""
        ...

    def num_frames(self, video: int) -> int:
        """Frames of a video. Raises VideoError where it cannot be read."""
        ...

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        """The frames `wanted`, (N,) int64, ascending, each once: row i is frame wanted[i].

        Raises VideoError where the video cannot be read.
        """
        ...


class VideoFiles:
    """Straight from the files of an index; each file is scanned once, the first time it is used."""

    def __init__(self, index: VideoIndex) -> None:
        self._entries = list(index.entries)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, video: int) -> str:
        return self._entries[video].path

    def num_frames(self, video: int) -> int:
        known = self._entries[video].num_frames
        return self._info(video).num_frames if known is None else known

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        return decode(self.path(video), wanted, self._info(video))

    def _info(self, video: int) -> VideoInfo:
        info = self._entries[video].info
        if info is None:
            info = probe(self.path(video))
            with self._lock:
                entry = self._entries[video]
                self._entries[video] = replace(entry, info=info, num_frames=info.num_frames)
        return info

    def __getstate__(self) -> dict:
        return {"entries": self._entries}

    def __setstate__(self, state: dict) -> None:
        self._entries, self._lock = state["entries"], Lock()
