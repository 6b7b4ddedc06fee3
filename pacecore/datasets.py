"""From a folder, list or table of videos to a VideoIndex: which videos, which labels, which split.

The position of a video in its index is the number that all randomness is keyed by, so the order is
fixed: by path relative to the root, whatever the file system says.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pacecore.errors import PacecoreError
from pacecore.files import expanded, there
from pacecore.index import (
    SPLITS,
    BadVideo,
    DatasetError,
    VideoIndex,
    is_index,
    none_readable,
    write_index,
)
from pacecore.isolated import JobFailure, run_jobs
from pacecore.layouts import read_source
from pacecore.video import VideoError, counted_text, probe

__all__ = ["data_index", "find_videos", "probe_all"]

_LONG_SECONDS = 10.0
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

    A folder: UCF101 and HMDB51 with their lists of splits, Kinetics with its tables, lists
    train_NAME and test_NAME (.txt, .csv or .json), folders named train, val, test, or all with such
    a word, class folders, folders of still pictures, or just videos; tables and lists may lie in
    annotations or labels, too. A file: a list of "path", "path label", "path label frames" or, over
    folders of pictures, "path frames label"; a csv of any, its columns parted by semicolons too, or
    whose first line names them (path, label, frames, split; others are left alone); a JSON array of
    objects, as Something-Something and Diving48 have; an index written by write_index, or one
    video.

    split: only this one. fold: 1 to 3 of UCF101 and HMDB51; of other lists the name, the number in
    it, or the rank.
    root: folder that listed paths are relative to, where it is not found by itself. missing: what
    to do with a listed video that is not there, "error" or "skip" (Kinetics tables always skip:
    its videos vanish). Raises DatasetError: names the file, the line, the rule and the value.
    """
    path = expanded(source)
    if split is not None and split not in SPLITS:
        raise DatasetError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if missing not in ("error", "skip"):
        raise DatasetError(f"missing must be error or skip, got {missing!r}")
    try:
        if not there(path):
            raise DatasetError(f"{path}: no such file or folder")
        if not (path.is_file() or path.is_dir() or _is_shells_pipe(path)):
            rule = "must be a folder, a file or a shell's pipe, as of <(ls *.mp4)"
            raise DatasetError(f"{path}: {rule}, got a device, a socket or a named pipe")
        with _told_if_long(path):
            near = expanded(root) if root else None
            index = read_source(path, split, fold, near, missing)
    except OSError as error:
        raise DatasetError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    ordered = sorted(index.entries, key=lambda entry: (entry.name, entry.split or ""))
    return replace(index, entries=tuple(ordered)).select(split)


def _is_shells_pipe(path: Path) -> bool:
    """Whether somebody writes to it: a pipe in a folder waits for one, perhaps for ever."""
    return path.is_fifo() and not os.path.exists(os.path.realpath(path))


@contextmanager
def _told_if_long(path: Path) -> Iterator[None]:
    """As of a large set on a network's disk, where nothing would be seen for minutes."""

    def tell() -> None:
        with suppress(OSError):
            print(f"finding the videos of {path}", file=sys.stderr, flush=True)

    late = threading.Timer(_LONG_SECONDS, tell)
    late.daemon = True
    if os.environ.get("RANK", "0") == "0":  # all ranks look at the same time
        late.start()
    try:
        yield
    finally:
        late.cancel()


def probe_all(
    index: VideoIndex,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_seconds: float = 600.0,
) -> tuple[VideoIndex, list[BadVideo]]:
    """Counts the frames of every video not counted yet, `workers` at a time (0 or -1: one a core).

    Each in a process that may die, or hang for timeout_seconds, alone (run_jobs); workers=1: in
    this one. Returns the index of the readable ones, with num_frames and counted, and the others
    with the reason. on_progress(done, total) is called after each.
    """
    entries = list(index.entries)
    left = [number for number, entry in enumerate(entries) if not entry.counted]
    paths = [entries[number].path for number in left]
    done, reasons = len(entries) - len(left), {}
    if done and on_progress:
        on_progress(done, len(entries))
    for place, result in run_jobs(_probe, paths, workers, timeout_seconds, _JOBS_EACH):
        number, done = left[place], done + 1
        if isinstance(result, JobFailure):
            reasons[number] = result.reason
        elif isinstance(result, str):
            reasons[number] = result
        else:
            entries[number] = replace(entries[number], num_frames=result[0], counted=result[1])
        if on_progress:
            on_progress(done, len(entries))
    bad = [BadVideo(entries[number].path, reasons[number]) for number in sorted(reasons)]
    kept = tuple(entry for number, entry in enumerate(entries) if number not in reasons)
    return replace(index, entries=kept), bad


def _probe(path: str) -> tuple[int, str] | str:
    """(frames, all that was found, as text), or why it cannot be read."""
    try:
        info = probe(path)
    except VideoError as error:
        return error.reason
    return info.num_frames, counted_text(info, path)


def data_index(
    index: VideoIndex,
    path: str | Path,
    *,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[VideoIndex, list[BadVideo]]:
    """Counts every video in processes of their own, and writes the index as JSON lines.

    Returns the index of the readable ones and the others with the reason; both are in the file.
    Raises PacecoreError, before it counts, for a `path` in no folder that can be written in, or
    where something else than an index is; after it, and writes nothing, where none is readable.
    """
    path = Path(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PacecoreError(f"{path}: cannot be written: {path.parent} is no folder for new files")
    if path.exists() and not is_index(path):
        raise PacecoreError(f"{path}: exists and is no index of pacecore; give another name")
    counted, bad = probe_all(index, workers, on_progress)
    if not counted.entries:
        raise PacecoreError(f"{path}: is not written, as {none_readable(len(index), bad)}")
    write_index(counted, path, bad)
    return counted, bad
