"""From the options `data` and `held_out` to the videos that a run learns from and measures on."""

import hashlib
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pacecore.config import RunOptions
from pacecore.datasets import find_videos, probe_all
from pacecore.demo import make_demo
from pacecore.distributed import (
    barrier,
    is_main,
    local_world_size,
    merge_over_ranks,
    of_all_ranks,
    patient_group,
    rank,
    world_size,
)
from pacecore.errors import PacecoreError
from pacecore.files import expanded
from pacecore.frames import Frames
from pacecore.index import BadVideo, VideoEntry, VideoIndex, none_readable, recordings
from pacecore.runlog import Progress, tell
from pacecore.source import FrameSource, Subset, VideoFiles
from pacecore.store import FrameStore
from pacecore.workers import core_count

__all__ = [
    "Inputs", "identity_of", "learned_from", "open_index", "open_inputs", "resident_frames",
    "worker_count",
]  # fmt: skip

DEMO_FOLDER = "pacecore-demo"  # made in the current folder, once
_MEASURED = ("test", "val")  # the split that is held out, the first of these that there is
_KINETICS_CLIP = re.compile(r".{11}_\d{6}_\d{6}")
_EVERY = 10  # one recording in so many is held out where the data say nothing of a test split


@dataclass(frozen=True)
class Inputs:
    """The videos of a run: a source holds one at least, but `train` of data that have a test or val
    split alone.
    """

    train: FrameSource
    held_out: FrameSource | None
    words: str  # what they are, for the user
    identity: str  # of all these videos: names and frame counts, hashed
    listed: dict[str, Any]  # also what is left out: "names", hashed, and "frames" of each, or 0
    unreadable: tuple[tuple[str, str], ...]  # left out, and why
    repeat: int = 10  # how often an epoch visits each video, where the options leave it open

    @property
    def stored(self) -> dict[str, Any]:
        """What a checkpoint keeps of them, by which a run goes on with the same."""
        return {"identity": self.identity, "listed": self.listed}


def worker_count(wish: int, device: torch.device) -> int:
    """Decoding processes: `wish`, or for -1 one a core but what the training device needs itself.

    On a CPU the network takes the cores and decoding is a small share: one in eight, at least one.
    The ranks on a machine share its cores.
    """
    if wish >= 0:
        return wish
    if multiprocessing.current_process().daemon:  # as of a Pool: it may have none of its own
        return 0
    cores = core_count() // local_world_size()
    return max(1, cores // 8) if device.type == "cpu" else max(1, min(cores - 1, 16))


def open_inputs(
    options: RunOptions, *, trains: bool = True, before: Mapping[str, Any] | None = None
) -> Inputs:
    """The training and held-out videos of `options`, their frames counted.

    trains: whether there must be videos to train on. before: `listed` of the run that goes on: of
    the same list it has the videos that were readable then, be they so now or not. Every rank must
    call it. Raises PacecoreError: data that are not there, without videos, with more unreadable
    videos than max_bad, or with others on another rank.
    """
    data = options.data or str(_demo())
    index, store = _found(data, options.fold)
    if trains and options.data_on == "device" and not store:
        raise PacecoreError("data_on device needs a frame store: make one with pacecore data pack")
    if trains and index.splits and "train" not in index.splits:
        raise PacecoreError(f"{data}: has no split 'train'; its splits: {', '.join(index.splits)}")
    held, held_store, unused = None, store, 0
    if options.held_out == "auto":
        missing = len(index.missing)
        unused = len(index.select("val")) if set(_MEASURED) <= set(index.splits) else 0
        index, held = _split(index, trains)
    else:
        index = _to_train_on(index, trains)
        missing = len(index.missing)
        if options.held_out != "none":
            held, held_store = _found(options.held_out, options.fold)
            held = held.select(next((name for name in _MEASURED if name in held.splits), None))
            missing += len(held.missing)
    if len(merge_over_ranks({_identity(index, held): ""})) > 1:
        raise PacecoreError(
            f"the ranks do not find the same videos in {data}: rank {rank()} has {len(index):,}"
            f" training videos, {index.layout} in {index.root}; {len(held or ()):,} held out"
        )
    bad: list[tuple[str, str]] = []
    listed = index, held
    if not store:
        index, bad = open_index(index, options.max_bad, data)
    if held is not None and not held_store:
        named = data if options.held_out == "auto" else options.held_out
        # What pacecore itself holds out of readable videos may be none of them.
        chosen = options.held_out == "auto" and not set(held.splits) & set(_MEASURED)
        held, more = open_index(held, options.max_bad, named, or_none=chosen and bool(index))
        bad += more
    if before and before["names"] == _names(*listed):
        index, held = _as_before(listed, (index, held), before["frames"].tolist())
    frames = sum(entry.num_frames for entry in index.entries)
    words = (
        f"{len(index):,} training videos with {frames:,} frames" if index else "no training videos"
    )
    words += f", {index.layout} in {index.root}"
    words += f"; {len(held):,} held out" if held else "; none held out"
    if not index.fold and options.fold not in ("1", "01"):
        words += f"; there are no folds, so that fold {options.fold} is not used"
    if unused:
        words += f"; {unused:,} of val are not used"
    if held and options.held_out == "auto" and not set(held.splits) & set(_MEASURED):
        grouped = len(set(recordings(entry.name for entry in held.entries))) < len(held)
        how = (
            "by recordings, which their names tell (_gNN_)," if grouped else f"one of each {_EVERY}"
        )
        words += f", {how} as there is no test split; --held-out names others"
    if missing:
        words += f"; {missing:,} more are listed but not there"
    said = {entry.name: entry.num_frames for entry in listed[0].entries}
    if others := sum(said[each.name] not in (None, each.num_frames) for each in index.entries):
        words += f"; {others:,} have other numbers of frames than listed"
    if bad:
        words += f"; {len(bad)} unreadable: " + ", ".join(path for path, _ in bad[:5])
    if store:
        words += f"; from the frame store of {store.size[0]} x {store.size[1]} pixels"
        if options.resize and tuple(options.resize) != store.size:
            words += f", which are resized once more, to {options.resize[0]} x {options.resize[1]}"
    return Inputs(
        _source(index, store),
        _source(held, held_store) if held else None,
        words,
        _identity(index, held),
        {"names": _names(*listed), "frames": _frames(listed, (index, held))},
        tuple(bad),
        1 if _is_kinetics(index) else 10,
    )


def identity_of(*parts: Iterable[tuple[str | Path, int | None]]) -> str:
    """Of videos, (path, frames) each, in any order: their names from the folder on that all have in
    common, wherever that is and by whatever path it was named, and their frame counts, hashed.
    """
    real = [[(os.path.realpath(path), frames) for path, frames in part] for part in parts]
    common = os.path.commonpath([os.path.dirname(path) for part in real for path, _ in part])
    above = os.path.dirname(common)
    return _hashed(
        sorted((os.path.relpath(path, above), frames) for path, frames in part) for part in real
    )


def learned_from(trainings: Iterable[Mapping[str, Any]], source: FrameSource) -> int:
    """How many videos of `source` were trained on, by the files' real paths.

    trainings: the options of each training that the weights have had, by name; {} of none. Videos
    that are not there any more do not count.
    """
    learned: set[str] = set()
    for options in trainings:
        if not options:
            continue
        with suppress(PacecoreError):
            index, _ = _found(options["data"] or DEMO_FOLDER, options["fold"])
            index = _split(index)[0] if options["held_out"] == "auto" else index.select("train")
            learned.update(os.path.realpath(entry.path) for entry in index.entries)
    return sum(os.path.realpath(source.path(n)) in learned for n in range(len(source)))


def _found(place: str, fold: int | str) -> tuple[VideoIndex, FrameStore | None]:
    """The videos named, and the store that they are in."""
    if not FrameStore.is_at(place):
        return find_videos(place, fold=fold), None
    store = FrameStore.open(place)
    return store.index.of_fold(fold, place), store


def _source(index: VideoIndex, store: FrameStore | None) -> FrameSource:
    """The videos of `index`, from the store that they are a part of, or from their files."""
    if store is None:
        return VideoFiles(index)
    numbers = {entry.name: number for number, entry in enumerate(store.index.entries)}
    return Subset(store, [numbers[entry.name] for entry in index.entries])


def resident_frames(source: FrameSource, data_on: str, device: torch.device) -> Frames | None:
    """All frames of a store on `device`, where an option `data_on` wants them there; else None.

    "auto" holds them on a GPU when they take at most half of its free memory.
    """
    store = source.source if isinstance(source, Subset) else source
    if not isinstance(store, FrameStore) or data_on == "host":
        return None
    if data_on == "auto" and device.type == "cpu":
        return None
    size = store.whole().data.numel()
    if data_on == "auto" and size > torch.cuda.mem_get_info(device)[0] // 2:
        return None
    progress = Progress(f"frames to {device}", len(store), shows=is_main())
    frames = store.to_device(device, lambda done, _: progress.update(done, "videos"))
    progress.close()
    if is_main():
        tell(f"all frames are held on {device}: {size / 1e9:.2f} GB")
    return frames


def _is_kinetics(index: VideoIndex) -> bool:
    """By its tables, or because all videos are called as its clips are, ID_START_END."""
    if index.layout.split(",")[0] == "Kinetics":
        return True
    return all(_KINETICS_CLIP.fullmatch(Path(entry.name).stem) for entry in index.entries)


def _demo() -> Path:
    """The demo set's folder; rank 0 makes what is missing while the others wait."""
    folder = Path(DEMO_FOLDER)
    if is_main():
        if not folder.exists():
            tell(f"no data named: making the demo set in {folder.resolve()}")
        make_demo(folder)
    barrier()
    return folder


def _to_train_on(index: VideoIndex, trains: bool) -> VideoIndex:
    """The training videos; none, unless it `trains`, of data that have none."""
    if not trains and index.splits and "train" not in index.splits:
        return replace(index, entries=())
    return index.select("train")


def _split(index: VideoIndex, trains: bool = True) -> tuple[VideoIndex, VideoIndex | None]:
    """Training and held-out videos: the data's own test or val split, else one in ten recordings
    (one, where there are fewer), so that no clips of one lie on both sides.
    """
    own = next((name for name in _MEASURED if name in index.splits), None)
    if own:
        return _to_train_on(index, trains), index.select(own)
    index = index.select("train")
    cut_from = recordings(entry.name for entry in index.entries)
    order = list(dict.fromkeys(cut_from))
    if len(index) < _EVERY or len(order) == 1:
        return index, None
    held = _one_in_ten(index.entries, cut_from, order)
    if not held:
        return index, None
    parts: tuple[list[VideoEntry], list[VideoEntry]] = ([], [])
    for entry, recording in zip(index.entries, cut_from, strict=True):
        parts[recording in held].append(entry)
    kept, held_out = (replace(index, entries=tuple(part)) for part in parts)
    return kept, held_out


def _one_in_ten(entries: Sequence[VideoEntry], cut_from: list[str], order: list[str]) -> set[str]:
    """Of each ten recordings the last that leaves each of its classes a video to train on, which
    the tenth mostly does.
    """
    labels: dict[str, Counter] = {recording: Counter() for recording in order}
    for entry, recording in zip(entries, cut_from, strict=True):
        if entry.label is not None:
            labels[recording][entry.label] += 1
    left = sum(labels.values(), Counter())
    tens = [order[end - _EVERY : end] for end in range(_EVERY, len(order) + 1, _EVERY)] or [order]
    held = set()
    for ten in tens:
        for recording in reversed(ten):
            if all(count < left[label] for label, count in labels[recording].items()):
                held.add(recording)
                left -= labels[recording]
                break
    return held


def open_index(
    index: VideoIndex, max_bad: int, named: str, or_none: bool = False
) -> tuple[VideoIndex, list[tuple[str, str]]]:
    """`index`, as the user named it, with counted frames and without the unreadable videos, which
    come beside it. or_none: where none is left, which else raises PacecoreError, too.

    Each rank counts a share of the videos; every rank must call it, with the same index.
    """
    if not index.entries:
        return index, []
    share = replace(index, entries=index.entries[rank() :: world_size()])
    progress = Progress("reading", len(share), shows=is_main())
    # At least 2, as 1 would be this process, which a video then could take along.
    processes = max(2, core_count() // local_world_size())
    patient = patient_group()  # a rank may have all the videos that hang
    own = probe_all(share, processes, lambda done, _: progress.update(done, "videos"))
    progress.close()
    parts = of_all_ranks(own, patient)
    counted = {entry.name: entry for part, _ in parts for entry in part.entries}
    kept = tuple(
        replace(found, path=entry.path)  # which stays this machine's
        for entry in index.entries
        if (found := counted.get(entry.name))
    )
    bad = sorted((each.path, each.reason) for _, part in parts for each in part)
    if len(bad) > max_bad:
        raise PacecoreError(
            f"more than max_bad = {max_bad} videos cannot be read ({len(bad)} of {len(index)});"
            f" the first one: {bad[0][0]}: {bad[0][1]}"
        )
    if not kept and not or_none:
        path, reason = bad[0]
        if path == str(expanded(named)):  # one video
            raise PacecoreError(f"{path}: {reason}")
        raise PacecoreError(f"{named}: {none_readable(len(index), [BadVideo(path, reason)])}")
    return replace(index, entries=kept), bad


_Parts = tuple[VideoIndex | None, VideoIndex | None]  # to train on, and held out


def _as_before(listed: _Parts, readable: _Parts, frames: list[int]) -> _Parts:
    """Of the videos `listed` those that had frames when the run began, with as many, where they
    cannot be read any more.
    """
    parts, counts = [], iter(frames)
    for every, part in zip(listed, readable, strict=True):
        now = {entry.name: entry for entry in _entries(part)}
        kept = tuple(
            now.get(each.name) or replace(each, num_frames=count)
            for each, count in zip(_entries(every), counts, strict=False)
            if count
        )
        parts.append(None if part is None else replace(part, entries=kept))
    return parts[0], parts[1]


def _frames(listed: _Parts, kept: _Parts) -> Tensor:
    """Of each listed video its frames, int32; 0 where it is not kept."""
    counts: list[int] = []
    for every, part in zip(listed, kept, strict=True):
        found = {entry.name: entry.num_frames for entry in _entries(part)}
        counts += [found.get(entry.name) or 0 for entry in _entries(every)]
    return torch.tensor(counts, dtype=torch.int32)


def _identity(*parts: VideoIndex | None) -> str:
    return _hashed([(entry.name, entry.num_frames) for entry in _entries(part)] for part in parts)


def _names(*parts: VideoIndex | None) -> str:
    return _hashed([(entry.name, None) for entry in _entries(part)] for part in parts)


def _entries(part: VideoIndex | None) -> tuple[VideoEntry, ...]:
    return part.entries if part else ()


def _hashed(parts: Iterable[Iterable[tuple[str, int | None]]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for name, frames in part:
            digest.update(f"{name}\t{frames}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]
