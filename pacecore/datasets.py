"""From a folder, list or table of videos to a VideoIndex: which videos, which labels, which split.

The position of a video in its index is the number that all randomness is keyed by, so the order is
fixed: by path relative to the root, whatever the file system says.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pacecore.index import (
    SPLITS,
    BadVideo,
    DatasetError,
    VideoEntry,
    VideoIndex,
    read_index,
    write_index,
)
from pacecore.isolated import JobFailure, run_jobs
from pacecore.layouts import read_source
from pacecore.video import VideoError, VideoInfo, probe
from pacecore.workers import core_count

__all__ = [
    "BadVideo",
    "DatasetError",
    "VideoEntry",
    "VideoIndex",
    "find_videos",
    "probe_all",
    "read_index",
    "write_index",
]


def find_videos(
    source: str | Path,
    *,
    split: str | None = None,
    fold: int | str = 1,
    root: str | Path | None = None,
    missing: str = "error",
) -> VideoIndex:
    """Reads `source` in whichever layout it has.

    A folder: UCF101 and HMDB51 with their lists of splits, Kinetics with its tables, folders named
    train, val, test, pairs of lists train_NAME.txt and test_NAME.txt, class folders, folders of
    still pictures, or just videos. A file: a list of "path", "path label" or "path label frames",
    a csv of either kind, an index written by write_index, or one video.

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
    timeout_seconds: float | None = None,
) -> tuple[VideoIndex, list[BadVideo]]:
    """Counts the frames of every video, `workers` at a time (0: one a core).

    timeout_seconds: for one video, each in a process that may die or hang alone (run_jobs); None:
    in threads of this one. Returns the index of the readable ones, with num_frames and info, and
    the others with the reason. on_progress(done, total) is called after each.
    """
    if timeout_seconds is None:
        found = _in_threads(_probe_entry, index.entries, workers)
    else:
        found = run_jobs(_probe_entry, index.entries, workers, timeout_seconds)
    results: dict[int, VideoInfo | str] = {}
    for done, (number, result) in enumerate(found, 1):
        results[number] = result.reason if isinstance(result, JobFailure) else result
        if on_progress:
            on_progress(done, len(index))
    kept: list[VideoEntry] = []
    bad: list[BadVideo] = []
    for number, entry in enumerate(index.entries):
        result = results[number]
        if isinstance(result, VideoInfo):
            kept.append(replace(entry, num_frames=result.num_frames, info=result))
        else:
            bad.append(BadVideo(entry.path, result))
    return replace(index, entries=tuple(kept)), bad


def _in_threads(function: Callable, jobs: Sequence, workers: int) -> Iterator[tuple[int, Any]]:
    with ThreadPoolExecutor(workers or core_count()) as pool:
        yield from enumerate(pool.map(function, jobs))


def _probe_entry(entry: VideoEntry) -> VideoInfo | str:
    if entry.info is not None:
        return entry.info
    try:
        return probe(entry.path)
    except VideoError as error:
        return error.reason
