"""Frames straight from the video files of an index; FrameStore is the other source of a loader."""

from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np

from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.video import VideoInfo, decode, probe

__all__ = ["VideoFiles"]


class VideoFiles:
    """The loader's FrameSource over files. Each is scanned once, the first time it is used, unless
    probe_all has done so; methods may be called from several threads.
    """

    def __init__(self, index: VideoIndex) -> None:
        self._entries = list(index.entries)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, video: int) -> Path:
        return Path(self._entries[video].path)

    def label(self, video: int) -> int | None:
        return self._entries[video].label

    def num_frames(self, video: int) -> int:
        """Frames of a video. Raises VideoError where it cannot be read."""
        known = self._entries[video].num_frames
        return self._info(video).num_frames if known is None else known

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        """Frames `wanted`, (N,) int64, ascending, each once: row i is frame wanted[i].

        Raises VideoError where the video cannot be read.
        """
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
