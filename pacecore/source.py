"""Where a loader's frames come from: video files, and a part of any source. See also store.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.video import counted_from, decode

__all__ = ["FrameSource", "Indexed", "Subset", "VideoFiles"]


class FrameSource(Protocol):
    """Videos by number, however their frames are kept."""

    classes: tuple[str, ...]  # names of the classes, by label; empty where nothing is labelled

    def __len__(self) -> int: ...

    def num_frames(self, video: int) -> int: ...

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        """Frames `wanted`, int64, ascending, each once; row i of the result is wanted[i]."""
        ...

    def path(self, video: int) -> Path: ...

    def label(self, video: int) -> int | None: ...


class Indexed:
    """What a source says of its videos, by an index that probe_all has counted."""

    def __init__(self, index: VideoIndex) -> None:
        self.index = index

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    def __len__(self) -> int:
        return len(self.index)

    def path(self, video: int) -> Path:
        return Path(self.index.entries[video].path)

    def label(self, video: int) -> int | None:
        return self.index.entries[video].label

    def num_frames(self, video: int) -> int:
        return self.index.entries[video].num_frames


class VideoFiles(Indexed):
    """The loader's FrameSource over files."""

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        """Frames `wanted`, (N,) int64, ascending, each once: row i is frame wanted[i].

        Raises VideoError where the video cannot be read.
        """
        counted = self.index.entries[video].counted  # of one that could not be, read anew
        return decode(self.path(video), wanted, counted_from(counted) if counted else None)


class Subset:
    """Some videos of another source, numbered anew; its frames are the other one's."""

    def __init__(self, source: FrameSource, videos: Sequence[int]) -> None:
        if isinstance(source, Subset):  # a part of a part is a part of the whole
            source, videos = source.source, [source.videos[video] for video in videos]
        self.source, self.videos = source, tuple(videos)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.videos)

    def path(self, video: int) -> Path:
        return self.source.path(self.videos[video])

    def label(self, video: int) -> int | None:
        return self.source.label(self.videos[video])

    def num_frames(self, video: int) -> int:
        return self.source.num_frames(self.videos[video])

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        return self.source.decode(self.videos[video], wanted)

    def rows(self, video: int, wanted: np.ndarray) -> np.ndarray:
        """As the other source's: where its table of all frames has these."""
        return self.source.rows(self.videos[video], wanted)
