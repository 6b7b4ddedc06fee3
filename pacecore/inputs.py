"""From the options `data` and `held_out` to the videos that a run learns from and measures on."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pacecore.config import RunOptions
from pacecore.datasets import VideoIndex, find_videos, probe_all
from pacecore.demo import make_demo
from pacecore.distributed import is_main
from pacecore.errors import PacecoreError
from pacecore.loader import FrameSource
from pacecore.runlog import Progress
from pacecore.source import VideoFiles

__all__ = ["DEMO_FOLDER", "Inputs", "open_index", "open_inputs", "worker_count"]

DEMO_FOLDER = "pacecore-demo"  # made in the current folder, once
_EVERY = 10  # one video in so many is held out where the data say nothing of a test split


@dataclass(frozen=True)
class Inputs:
    """The videos of a run."""

    train: FrameSource
    held_out: FrameSource | None
    words: str  # what they are, for the user
    identity: str  # of the training videos: names and frame counts, hashed
    unreadable: tuple[tuple[str, str], ...]  # left out, and why


def worker_count(wish: int, device: torch.device) -> int:
    """Decoding processes: `wish`, or for -1 one a core but what the training device needs itself.

    On a CPU the network takes the cores and decoding is a small share: one in eight, at least one.
    """
    if wish >= 0:
        return wish
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // 8) if device.type == "cpu" else max(1, min(cores - 1, 16))


def open_inputs(options: RunOptions) -> Inputs:
    """The training and held-out videos of `options`, their frames counted.

    Raises PacecoreError: data that are not there, without videos, or with more unreadable videos
    than max_bad.
    """
    data = options.data or str(_demo())
    index = find_videos(data, fold=options.fold)
    held: VideoIndex | None = None
    if options.held_out == "auto":
        index, held = _split(index)
    else:
        index = index.select("train")
        if options.held_out != "none":
            held = find_videos(options.held_out, fold=options.fold)
            held = held.select("test" if "test" in held.splits else None)
    index, bad = open_index(index, options.max_bad)
    if held is not None:
        held, more = open_index(held, options.max_bad)
        bad += more
    frames = sum(entry.num_frames or 0 for entry in index.entries)
    words = f"{len(index):,} training videos with {frames:,} frames, {index.layout} in {index.root}"
    words += f"; {len(held):,} held out" if held else "; none held out"
    if bad:
        words += f"; {len(bad)} unreadable: " + ", ".join(path for path, _ in bad[:5])
    return Inputs(
        VideoFiles(index),
        VideoFiles(held) if held else None,
        words,
        _identity(index),
        tuple(bad),
    )


def _demo() -> Path:
    folder = Path(DEMO_FOLDER)
    if not is_main():
        return folder  # rank 0 makes it; the others find it at the barrier of open_index
    fresh = not folder.exists()
    if fresh:
        print(f"no data named: making the demo set in {folder.resolve()}", flush=True)
    return make_demo(folder)


def _split(index: VideoIndex) -> tuple[VideoIndex, VideoIndex | None]:
    """Training and held-out videos: the data's own test or val split, else every tenth video."""
    for name in ("test", "val"):
        if name in index.splits and "train" in index.splits:
            return index.select("train"), index.select(name)
    index = index.select("train")
    if len(index) < _EVERY:
        return index, None
    held = index.entries[_EVERY - 1 :: _EVERY]
    names = {entry.name for entry in held}
    kept = tuple(entry for entry in index.entries if entry.name not in names)
    return replace(index, entries=kept), replace(index, entries=held)


def open_index(index: VideoIndex, max_bad: int) -> tuple[VideoIndex, list[tuple[str, str]]]:
    """`index` with counted frames and without the unreadable videos, which come beside it."""
    progress = Progress("reading", len(index), shows=is_main())
    counted, bad = probe_all(index, on_progress=_after_first_seconds(progress))
    if len(bad) > max_bad:
        raise PacecoreError(
            f"more than max_bad = {max_bad} videos cannot be read ({len(bad)} of {len(index)});"
            f" the first one: {bad[0].path}: {bad[0].reason}"
        )
    if not len(counted):
        raise PacecoreError(f"{index.root}: none of its {len(index)} videos can be read")
    return counted, [(each.path, each.reason) for each in bad]


def _after_first_seconds(progress: Progress) -> Callable[[int, int], None]:
    """Short reads show nothing."""

    def update(done: int, total: int) -> None:
        progress.update(done, "videos")
        if done == total and progress.live:
            progress.close()

    return update


def _identity(index: VideoIndex) -> str:
    digest = hashlib.sha256()
    for entry in index.entries:
        digest.update(f"{entry.name}\t{entry.num_frames}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
