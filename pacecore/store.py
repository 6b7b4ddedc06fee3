"""The frame store: videos decoded once, at the size that training uses, in one file and one index.

A folder holds `frames.bin` and `index.json`. Every frame is a record of the same length: its Y, U
and V planes packed tight, then a CRC-32 of them, filled up to a multiple of 64 bytes. The file is
mapped into memory.
"""

import json
import mmap
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from pacecore.errors import PacecoreError
from pacecore.files import (
    NO_RESERVE,
    expanded,
    for_one_process,
    made_folder,
    read_text,
    reason_of,
    write_json_lines,
    write_text,
)
from pacecore.frames import FRAME_COLUMNS, Frames
from pacecore.index import BadVideo, VideoEntry, VideoIndex, absolute
from pacecore.isolated import JobFailure, process_count, run_jobs
from pacecore.media import state_of
from pacecore.resample import plane_shapes, resample
from pacecore.source import Indexed
from pacecore.video import VideoError, decode_all

__all__ = ["FrameStore", "StoreError", "folder_to_pack", "pack", "record_bytes", "store_bytes"]

_FRAMES, _INDEX, _JOURNAL, _LOCK = "frames.bin", "index.json", "journal.jsonl", ".lock"
_LINE = 64  # records begin at cache lines
_MOST_SIDE = 8192  # rows, and columns, of a frame


class StoreError(PacecoreError):
    """A frame store cannot be written, or cannot be trusted; names the folder and the reason."""


def pixel_bytes(size: tuple[int, int]) -> int:
    """Bytes of one frame's planes, size (height, width)."""
    return sum(rows * columns for rows, columns in plane_shapes(size))


def record_bytes(size: tuple[int, int]) -> int:
    """Bytes that one frame of `size` (height, width) takes in the store."""
    return -(-(pixel_bytes(size) + 4) // _LINE) * _LINE


def store_bytes(index: VideoIndex, size: tuple[int, int]) -> int:
    """Bytes of frames.bin for an index whose videos have been counted (probe_all)."""
    return sum(_counted(entry) for entry in index.entries) * record_bytes(size)


def _counted(entry: VideoEntry) -> int:
    if entry.num_frames is None:
        raise StoreError(f"{entry.path}: its frames have not been counted")
    return entry.num_frames


@dataclass(frozen=True)
class _Job:
    """One video to pack: from its file to its records."""

    video: int
    path: str
    frames: int
    first: int  # record of its first frame
    file: str
    size: tuple[int, int]


def pack(
    index: VideoIndex,
    folder: str | Path,
    size: tuple[int, int],
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple["FrameStore", list[BadVideo]]:
    """Decodes every video once into a store at `size` (height, width), `workers` processes at once.

    index: counted by probe_all. workers: 0 or -1 is one a core, 1 is this process.
    on_progress(done, total) counts videos. A pack that was broken off goes on where it stood, but
    for files that have changed. Returns the store of the videos that decoded, in the order of the
    index, and the others with the reason. Raises StoreError: no room on the disk, or the folder
    holds something else; PacecoreError where another process is packing into it, or for another
    `size` or `workers`, or an index without videos.
    """
    process_count(workers)  # refused before the folder is made
    size = _whole_size(size)
    if not index.entries:
        raise PacecoreError("pack: the index has no videos")
    folder = folder_to_pack(folder)
    try:
        with for_one_process(folder / _LOCK, "is packing into it"):
            folder_to_pack(folder)  # another process may have finished it since
            jobs = _jobs(index, folder, size)
            done = _resumed(folder, index, jobs, size)
            with (folder / _JOURNAL).open("a", encoding="utf-8") as journal:
                remaining = [job for job in jobs if job.video not in done]
                for count, (video, result) in enumerate(_run(remaining, workers), len(done) + 1):
                    done[video] = result
                    journal.write(json.dumps({"video": video} | result) + "\n")
                    journal.flush()
                    if on_progress:
                        on_progress(count, len(jobs))
            _finish(folder, index, size, jobs, done)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {reason_of(error)}") from error
    bad = [BadVideo(j.path, done[j.video]["bad"]) for j in jobs if "bad" in done[j.video]]
    return FrameStore.open(folder), bad


def _whole_size(size: tuple[int, int]) -> tuple[int, int]:
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not pair or not all(isinstance(n, Integral) and 0 < n <= _MOST_SIDE for n in size):
        rule = f"size must be (height, width), each of 1 to {_MOST_SIDE}"
        raise PacecoreError(f"pack: {rule}, got {size!r}")
    return int(size[0]), int(size[1])


def folder_to_pack(folder: str | Path) -> Path:
    """`folder`, made. Raises StoreError where it holds a finished store, or something else."""
    folder = made_folder(folder)
    names = {path.name for path in folder.iterdir()}
    if _INDEX in names:
        raise StoreError(f"{folder}: holds a finished store already; delete it to pack anew")
    begun = {name for name in names if re.fullmatch(rf"\.\d+\.({_JOURNAL}|{_INDEX})", name)}
    others = sorted(names - begun - {_FRAMES, _LOCK})
    if others and _JOURNAL not in names:
        raise StoreError(f"{folder}: a store takes a new or an empty folder, this has {others[0]}")
    return folder


def _jobs(index: VideoIndex, folder: Path, size: tuple[int, int]) -> list[_Job]:
    jobs, first = [], 0
    for video, entry in enumerate(index.entries):
        frames = _counted(entry)
        jobs.append(_Job(video, entry.path, frames, first, str(folder / _FRAMES), size))
        first += frames
    return jobs


def _resumed(
    folder: Path, index: VideoIndex, jobs: list[_Job], size: tuple[int, int]
) -> dict[int, dict]:
    """What an earlier run finished, of files that are what they were; a new journal and an empty
    frames.bin where there was none.
    """
    total = store_bytes(index, size)
    head = {
        "size": list(size),
        "videos": [[entry.name, entry.num_frames] for entry in index.entries],
    }
    journal, frames = folder / _JOURNAL, folder / _FRAMES
    if journal.exists():
        lines = list(_journal_lines(journal))
        if not lines or lines[0] != head:
            raise StoreError(f"{folder}: holds an unfinished store of other videos or another size")
        if not frames.exists() or frames.stat().st_size != total:
            raise StoreError(f"{folder}: {_FRAMES} of its unfinished store is gone or cut")
        done = [each for each in lines[1:] if _is_of(each, jobs)]
        # Written anew, so that a line cut short by the interruption does not stay.
        write_json_lines(journal, [head, *done])
        return {line["video"]: line for line in done}
    free = shutil.disk_usage(folder).free
    if total > free:
        raise StoreError(f"{folder}: needs {total:,} bytes, {free:,} are free")
    with frames.open("wb") as file:
        file.truncate(total)
    write_json_lines(journal, [head])
    return {}


def _is_of(line: dict, jobs: list[_Job]) -> bool:
    """Whether a line of the journal says how a video went that is still as it was then."""
    with suppress(KeyError, TypeError, IndexError, AttributeError):
        said = type(line["format"]) is int if "format" in line else isinstance(line["bad"], str)
        video = line["video"]
        return said and video >= 0 and line["stamp"] == state_of(jobs[video].path)
    return False


def _journal_lines(journal: Path) -> Iterator[dict]:
    for text in journal.read_bytes().splitlines():
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            return  # cut short, or damaged


def _run(jobs: list[_Job], workers: int) -> Iterator[tuple[int, dict]]:
    """(video, {"stamp": stamp, "format": code}, or "bad": reason for a format) as they get done."""
    for number, result in run_jobs(_pack_video, jobs, workers, _patience):
        if isinstance(result, JobFailure):
            result = {"stamp": state_of(jobs[number].path), "bad": result.reason}
        yield jobs[number].video, result


def _patience(job: _Job) -> float:
    """Seconds. Ten frames a second are a slow machine's at 4K: whoever takes longer hangs."""
    return max(600.0, job.frames / 10)


def _mapped(path: Path, size: int) -> torch.Tensor:
    """(size,) uint8, the file's bytes, which may be more than memory holds. To be read only: torch
    wants to be able to write, and what is written would be this process's own.
    """
    with open(path, "rb") as file:
        flags = mmap.MAP_PRIVATE | NO_RESERVE
        memory = mmap.mmap(file.fileno(), size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _pack_video(job: _Job) -> dict:
    """Decodes one video into its records; what is wrong with it, if anything is."""
    record, pixels = record_bytes(job.size), pixel_bytes(job.size)
    written, code = 0, None
    stamp = {"stamp": state_of(job.path)}  # before it is read, and may change
    try:
        with open(job.file, "r+b") as file:  # buffered: it writes all, or raises
            for part in decode_all(job.path, planar=True):
                codes = part.table[:, 7].unique().tolist()
                if code not in (None, codes[0]) or len(codes) > 1:
                    what = "its colour matrix, range or chroma siting"
                    raise VideoError(job.path, f"changes {what} within")
                code = codes[0]
                if written + len(part) > job.frames:
                    raise VideoError(job.path, f"has more than the {job.frames} frames counted")
                records = np.zeros((len(part), record), dtype=np.uint8)
                records[:, :pixels] = resample(part, job.size).numpy()
                for row in records:
                    row[pixels : pixels + 4].view("<u4")[0] = zlib.crc32(row[:pixels])
                file.seek((job.first + written) * record)
                file.write(records)
                written += len(part)
        if written != job.frames:
            raise VideoError(job.path, f"gave {written} of {job.frames} frames")
    except VideoError as error:
        return stamp | {"bad": error.reason}
    return stamp | {"format": code}


def _finish(
    folder: Path, index: VideoIndex, size: tuple[int, int], jobs: list[_Job], done: dict[int, dict]
) -> None:
    """Writes index.json: only a whole store has one."""
    videos, bad = [], []
    for job, entry in zip(jobs, index.entries, strict=True):
        result = done[job.video]
        if "bad" in result:
            bad.append({"name": entry.name, "reason": result["bad"]})
            continue
        said = {"label": entry.label, "class": entry.class_name, "split": entry.split}
        place = {"first": job.first, "frames": job.frames, "format": result["format"]}
        videos.append({"name": entry.name, "path": absolute(entry.path)} | said | place)
    if not videos:
        first = "".join(f"; the first, {video['name']}: {video['reason']}" for video in bad[:1])
        raise StoreError(f"{folder}: none of the {len(jobs)} videos decodes{first}")
    content = {
        "pacecore_store": 1,
        "size": size,
        "root": absolute(index.root),
        "layout": index.layout,
        "classes": index.classes,
        "videos": videos,
        "bad": bad,
    }
    write_text(folder / _INDEX, json.dumps(content | {"checksum": _checksum(content)}))
    (folder / _JOURNAL).unlink()


def _checksum(content: dict) -> int:
    """Of an index: with a digit of it another, a video would have the frames of others."""
    return zlib.crc32(json.dumps(content).encode())


class FrameStore(Indexed):
    """The loader's FrameSource over a packed store.

    Frames are checked against their checksum the first time a process serves them.
    """

    def __init__(self, folder: Path, content: dict, data: torch.Tensor) -> None:
        entries = tuple(
            VideoEntry(v["path"], v["name"], v["label"], v["class"], v["split"], v["frames"])
            for v in content["videos"]
        )
        classes = tuple(content["classes"])
        super().__init__(VideoIndex(content["root"], content["layout"], entries, classes))
        self.folder = folder
        self.size: tuple[int, int] = tuple(content["size"])
        self._videos = content["videos"]
        self._data = data  # (records * record_bytes,) uint8, mapped
        self._checked = np.zeros(len(data) // record_bytes(self.size), dtype=bool)

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder holds a store, be it unfinished, which `open` then says."""
        return os.path.isfile(expanded(folder) / _FRAMES)

    @classmethod
    def open(cls, folder: str | Path) -> "FrameStore":
        """Raises StoreError where there is no store, or one unfinished, cut or of another kind."""
        folder = expanded(folder)
        try:
            content = json.loads(read_text(folder / _INDEX))
            if content["pacecore_store"] != 1:
                raise ValueError("of another version")
            if content.pop("checksum") != _checksum(content):
                raise ValueError("it has a wrong checksum")
            size = tuple(content["size"])
            total = max(v["first"] + v["frames"] for v in content["videos"]) * record_bytes(size)
            have = (folder / _FRAMES).stat().st_size
        except FileNotFoundError:
            begun = (folder / _JOURNAL).exists()
            state = "an unfinished store; pack again to go on" if begun else "no frame store in it"
            raise StoreError(f"{folder}: {state}") from None
        except OSError as error:
            raise StoreError(f"{folder}: {_INDEX} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{folder}: {_INDEX} is damaged ({error})") from None
        if have < total:
            raise StoreError(f"{folder}: {_FRAMES} has {have:,} bytes of {total:,}")
        try:
            data = _mapped(folder / _FRAMES, total)
        except (OSError, ValueError) as error:
            raise StoreError(f"{folder}: {_FRAMES} cannot be read: {reason_of(error)}") from None
        return cls(folder, content, data)

    def rows(self, video: int, wanted: np.ndarray) -> np.ndarray:
        """Rows of frames `wanted`, (N,) int64 in any order, in `whole()` and in what `to_device`
        gives. Raises StoreError for a damaged frame, as `decode` does.
        """
        given, count = np.asarray(wanted), self.num_frames(video)
        if given.dtype.kind not in "iu":
            rule = "wanted frames must be whole numbers"
            raise StoreError(f"{self.path(video)}: {rule}, got {given}")
        wanted = given.astype(np.int64)
        if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0 or wanted.max() >= count:
            raise StoreError(
                f"{self.path(video)}: has {count} frames in the store, {wanted} were asked for"
            )
        rows = wanted + self._videos[video]["first"]
        self._check(rows, video)
        return rows

    def whole(self) -> Frames:
        """Every frame of the store, one row each, mapped and not yet checked."""
        table = np.zeros((len(self._checked), len(FRAME_COLUMNS)), dtype=np.int64)
        for video in self._videos:
            rows = np.arange(video["first"], video["first"] + video["frames"])
            table[rows] = self._table(rows * record_bytes(self.size), video["format"])
        return Frames(self._data, torch.from_numpy(table))

    def decode(self, video: int, wanted: np.ndarray) -> Frames:
        """Frames `wanted` of a video in a buffer of their own, which batches are joined from.

        wanted: (N,) int64; row i is frame wanted[i]. Raises StoreError for a damaged frame.
        """
        rows = self.rows(video, wanted)
        record = record_bytes(self.size)
        data = torch.from_numpy(self._data.view(-1, record).numpy()[rows]).view(-1)
        table = self._table(np.arange(len(rows)) * record, self._videos[video]["format"])
        return Frames(data, torch.from_numpy(table))

    def to_device(
        self, device: torch.device | str, on_progress: Callable[[int, int], None] | None = None
    ) -> Frames:
        """The whole store in one tensor on `device`, rows as in `whole()`; `rows` tells of the
        damaged ones.
        """
        whole, record = self.whole(), record_bytes(self.size)
        data = torch.empty(len(self._data), dtype=torch.uint8, device=device)
        for done, video in enumerate(self._videos, 1):
            first, stop = video["first"], video["first"] + video["frames"]
            with suppress(StoreError):  # told by `rows`, which looks where nobody has yet
                self._check(np.arange(first, stop), done - 1)
            data[first * record : stop * record] = self._data[first * record : stop * record]
            if on_progress:
                on_progress(done, len(self))
        return Frames(data, whole.table.to(device))

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> list[BadVideo]:
        """Checks every frame; the videos with damaged ones."""
        bad = []
        for video in range(len(self)):
            try:
                self.rows(video, np.arange(self.num_frames(video)))
            except StoreError as error:
                bad.append(BadVideo(str(self.path(video)), str(error)))
            if on_progress:
                on_progress(video + 1, len(self))
        return bad

    def _check(self, rows: np.ndarray, video: int) -> None:
        record, pixels = record_bytes(self.size), pixel_bytes(self.size)
        for row in rows[~self._checked[rows]]:
            bytes_ = self._data[row * record : (row + 1) * record].numpy()
            if zlib.crc32(bytes_[:pixels]) != bytes_[pixels : pixels + 4].view("<u4")[0]:
                frame = row - self._videos[video]["first"]
                raise StoreError(f"{self.folder}: frame {frame} of {self.path(video)} is damaged")
            self._checked[row] = True

    def _table(self, offsets: np.ndarray, code: int) -> np.ndarray:
        """Rows of Frames.table for frames whose records begin at `offsets`."""
        (height, width), (rows, columns), _ = plane_shapes(self.size)
        table = np.empty((len(offsets), len(FRAME_COLUMNS)), dtype=np.int64)
        table[:, 0] = offsets
        table[:, 1] = offsets + height * width
        table[:, 2] = table[:, 1] + rows * columns
        table[:, 3:] = (height, width, width, columns, code)
        return table
