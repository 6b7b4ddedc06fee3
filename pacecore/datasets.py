"""From a folder, list or table of videos to a VideoIndex: which videos, which labels, which split.

The position of a video in its index is the number that all randomness is keyed by, so the order is
fixed: by path relative to the root, whatever the file system says.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from pacecore.errors import PacecoreError
from pacecore.index import (
    SPLITS,
    BadVideo,
    DatasetError,
    VideoEntry,
    VideoIndex,
    is_index,
    read_index,
    write_index,
)
from pacecore.isolated import JobFailure, run_jobs
from pacecore.layouts import read_source
from pacecore.video import VideoError, VideoInfo, probe

__all__ = [
    "BadVideo",
    "DatasetError",
    "VideoEntry",
    "VideoIndex",
    "data_index",
    "find_videos",
    "probe_all",
    "read_index",
    "write_index",
]

_JOBS_EACH = 64  # videos that are counted in the time that a process takes to start


def find_videos(
    source: str | Path,
    *,
    split: str | None = None,
    fold: int | str = 1,
    root: str | Path | None = None,
    missing: str = "error",
) -> VideoIndex:
    """Reads `source` in whichever layout it has.

    A folder: UCF101 and HMDB51 with their lists of splits, Kinetics with its tables, there or in
    annotations, folders named train, val, test, lists train_NAME and test_NAME (.txt or .csv),
    class folders, folders of still pictures, or just videos. A file: a list of "path", "path
    label", "path label frames" or, over folders of pictures, "path frames label"; a csv of any, its
    columns parted by semicolons too, or whose first line names them (path, label, frames, split;
    others are left alone); a JSON array of objects, as Something-Something and Diving48 have; an
    index written by write_index, or one video.

    split: only this one. fold: 1 to 3 of UCF101 and HMDB51; of other lists the name, the number in
    it, or the rank.
    root: folder that listed paths are relative to, where it is not found by itself. missing: what
    to do with a listed video that is not there, "error" or "skip" (Kinetics tables always skip:
    its videos vanish). Raises DatasetError: names the file, the line, the rule and the value.
    """
    path = Path(source).expanduser()
    if split is not None and split not in SPLITS:
        raise DatasetError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if missing not in ("error", "skip"):
        raise DatasetError(f"missing must be error or skip, got {missing!r}")
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    index = read_source(path, split, fold, Path(root).expanduser() if root else None, missing)
    ordered = sorted(index.entries, key=lambda entry: (entry.name, entry.split or ""))
    _require_unique(index, ordered)
    return replace(index, entries=tuple(ordered)).select(split)


def _require_unique(index: VideoIndex, ordered: list[VideoEntry]) -> None:
    for one, other in pairwise(ordered):
        if one.name == other.name:
            where = f" (in {one.split} and {other.split})" if one.split != other.split else ""
            raise DatasetError(f"{index.root}: {one.name} is listed twice{where}")


def probe_all(
    index: VideoIndex,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_seconds: float = 600.0,
) -> tuple[VideoIndex, list[BadVideo]]:
    """Counts the frames of every video without info, `workers` at a time (0: one a core).

    Each in a process that may die, or hang for timeout_seconds, alone (run_jobs); workers=1: in
    this one. Returns the index of the readable ones, with num_frames and info, and the others with
    the reason. on_progress(done, total) is called after each.
    """
    results: dict[int, VideoInfo | str] = {
        number: entry.info for number, entry in enumerate(index.entries) if entry.info
    }
    left = [number for number in range(len(index)) if number not in results]
    paths = [index.entries[number].path for number in left]
    if results and on_progress:
        on_progress(len(results), len(index))
    for place, result in run_jobs(_probe, paths, workers, timeout_seconds, _JOBS_EACH):
        results[left[place]] = result.reason if isinstance(result, JobFailure) else result
        if on_progress:
            on_progress(len(results), len(index))
    kept: list[VideoEntry] = []
    bad: list[BadVideo] = []
    for number, entry in enumerate(index.entries):
        result = results[number]
        if isinstance(result, VideoInfo):
            kept.append(replace(entry, num_frames=result.num_frames, info=result))
        else:
            bad.append(BadVideo(entry.path, result))
    return replace(index, entries=tuple(kept)), bad


def _probe(path: str) -> VideoInfo | str:
    try:
        return probe(path)
    except VideoError as error:
        return error.reason


def data_index(
    index: VideoIndex,
    path: str | Path,
    *,
    workers: int = 0,
    timeout_seconds: float = 600.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[VideoIndex, list[BadVideo]]:
    """Counts every video in processes of their own, and writes the index as JSON lines.

    Returns the index of the readable ones and the others with the reason; both are in the file.
    Raises PacecoreError, before it counts, for a `path` in no folder that can be written in, or
    where something else than an index is.
    """
    path = Path(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PacecoreError(f"{path}: cannot be written: {path.parent} is no folder for new files")
    if path.exists() and not is_index(path):
        raise PacecoreError(f"{path}: exists and is no index of pacecore; give another name")
    counted, bad = probe_all(index, workers, on_progress, timeout_seconds)
    write_index(counted, path, bad)
    return counted, bad
