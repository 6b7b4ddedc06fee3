"""`pacecore data check`: what is wrong with a data set, before training finds it."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np

from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.isolated import JobFailure, run_jobs
from pacecore.paper import OFFICIAL_SPLITS
from pacecore.sampling import loop_share
from pacecore.store import FrameStore
from pacecore.video import VideoError, VideoInfo, decode, decode_all, probe, turned

__all__ = ["data_check", "store_check"]

# What a person has to look at; other kinds are notes.
_SERIOUS = {"unreadable", "empty", "seeking", "count", "twice in two splits", "totals", "missing"}
_RUNS = 3  # pieces of each video that are decoded once more by seeking


@dataclass(frozen=True)
class Finding:
    """One thing said of one video."""

    path: str
    kind: str
    detail: str


@dataclass(frozen=True)
class _Checked:
    """What decoding one video whole has shown."""

    num_frames: int
    codec: str | None
    content: str  # digest of every luma sample
    findings: tuple[Finding, ...]


def data_check(
    index: VideoIndex,
    *,
    paces: tuple[Fraction, ...] = tuple(map(Fraction, (1, 2, 3, 4))),
    clip_frames: int = 16,
    fold: int | str = 1,
    workers: int = 0,
    timeout_seconds: float = 600.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Decodes every video once, and pieces of it again by seeking; what a person should know of it.

    workers: 0 or -1 is one process a core, 1 this process. timeout_seconds: for one video. Returns
    the report, as JSON has it: "videos", "frames", "splits", "classes", "lengths", "loops" (share
    of clips that leave the video, which betrays their pace), "findings", "serious" (how many).
    Raises PacecoreError for paces that are none, or no clip_frames.
    """
    for pace in paces:  # told before the hours, not after them
        loop_share([1], pace, clip_frames)
    paths = [entry.path for entry in index.entries]
    checked: dict[int, _Checked] = {}
    found = run_jobs(partial(_check_video, clip_frames), paths, workers, timeout_seconds)
    for done, (number, result) in enumerate(found, 1):
        if isinstance(result, JobFailure):
            finding = Finding(paths[number], "unreadable", result.reason)
            result = _Checked(0, None, "", (finding,))
        checked[number] = result
        if on_progress:
            on_progress(done, len(paths))
    results = [checked[number] for number in range(len(paths))]
    findings = [finding for result in results for finding in result.findings]
    findings += _miscounted(index, results)
    findings += _duplicates(index, results)
    for name, _ in index.missing:
        path = os.path.join(index.root, name)
        findings.append(Finding(path, "missing", "is listed and not there"))
    findings += _totals(index, fold)
    return _report(index, results, findings, paces, clip_frames)


def store_check(store: FrameStore, on_progress: Callable[[int, int], None] | None = None) -> dict:
    """Compares every frame of a store with its checksum.

    Returns the report, as JSON has it, with those entries of data_check's that a store has; a
    finding is a video with damaged frames, of which it names the first.
    """
    index = store.index
    bad = store.verify(on_progress)
    return {
        "root": str(store.folder),
        "layout": f"frame store of {store.size[0]} x {store.size[1]}",
        "videos": len(index),
        "readable": len(index) - len(bad),
        "frames": sum(entry.num_frames for entry in index.entries),
        "kinds": {"damaged": len(bad)} if bad else {},
        "serious": len(bad),
        "findings": [vars(Finding(one.path, "damaged", one.reason)) for one in bad],
    }


def _check_video(clip_frames: int, path: str) -> _Checked:
    """Runs in a worker process."""
    findings: list[Finding] = []

    def find(kind: str, detail: str) -> None:
        findings.append(Finding(path, kind, detail))

    if os.path.isfile(path) and os.path.getsize(path) == 0:
        find("empty", "has no bytes")
        return _Checked(0, None, "", tuple(findings))
    digests: list[bytes] = []
    sizes: dict[tuple[int, int], None] = {}  # in the order seen
    info = None
    try:
        info = probe(path)
        for part in decode_all(path):
            digests += _digests(part)
            sizes |= dict.fromkeys(map(tuple, part.table[:, 3:5].tolist()))
        if degrees := turned(path):
            find("turned", f"is to be shown turned by {degrees} degrees, and taken as it is stored")
    except VideoError as error:
        after = f" (after {len(digests)} frames)" if digests else ""
        find("unreadable", error.reason + after)
        return _Checked(0, info and info.codec, "", tuple(findings))
    if info.num_frames != len(digests):
        find("count", f"its packets tell {info.num_frames} frames, {len(digests)} decode")
    else:
        _check_seeking(path, info, digests, find)
    if info.claimed_frames not in (0, len(digests)):
        find("claim", f"its header claims {info.claimed_frames} frames, {len(digests)} decode")
    if info.variable_rate:
        find("variable rate", "frames are not equally far apart in time")
    if len(digests) < clip_frames:
        find("short", f"has {len(digests)} frames, a clip {clip_frames}")
    if len(sizes) > 1:
        find("changes size", " then ".join(f"{h} x {w}" for h, w in sizes))
    content = hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
    return _Checked(len(digests), info.codec, content, tuple(findings))


def _check_seeking(
    path: str, info: VideoInfo, digests: list[bytes], find: Callable[[str, str], None]
) -> None:
    """Short pieces at even places, the last up to the end, against the decode from the start."""
    length = min(4, len(digests))
    for start in np.linspace(0, len(digests) - length, _RUNS).astype(np.int64):
        wanted = np.arange(start, start + length)
        try:
            same = _digests(decode(path, wanted, info)) == digests[start : start + length]
        except VideoError as error:
            find("seeking", error.reason)
            return
        if not same:
            find("seeking", f"frames {start} to {wanted[-1]} differ from a decode from the start")
            return


def _digests(frames: Frames) -> list[bytes]:
    """A digest of each frame's luma (or packed RGB), without the padding of its rows."""
    digests = []
    for row in frames.table.tolist():
        width = row[4] if row[7] else 3 * row[4]
        plane = frames.data.as_strided((row[3], width), (row[5], 1), row[0]).contiguous()
        digests.append(hashlib.blake2b(plane.numpy(), digest_size=16).digest())
    return digests


def _miscounted(index: VideoIndex, results: list[_Checked]) -> list[Finding]:
    """Videos that changed since they were counted, or lists whose columns mean something else."""
    pairs = zip(index.entries, results, strict=True)
    return [
        Finding(entry.path, "claim", f"listed with {said} frames, {found.num_frames} decode")
        for entry, found in pairs
        if (said := entry.num_frames) and found.num_frames not in (0, said)
    ]


def _duplicates(index: VideoIndex, results: list[_Checked]) -> list[Finding]:
    """Videos whose every frame equals another's; across splits they let the test leak."""
    groups = defaultdict(list)
    for entry, result in zip(index.entries, results, strict=True):
        if result.content:
            groups[result.content].append(entry)
    findings = []
    for first, *others in groups.values():
        for other in others:
            kind = "twice" if other.split == first.split else "twice in two splits"
            findings.append(Finding(other.path, kind, f"shows the same as {first.name}"))
    return findings


def _totals(index: VideoIndex, fold: int | str) -> list[Finding]:
    """UCF101 and HMDB51 are compared with the totals that were published."""
    name = index.layout.split(",")[0]
    classes, splits = OFFICIAL_SPLITS.get(name, (0, {}))
    known = splits.get(int(fold) if str(fold).isdecimal() else 0)
    if known is None or len(index.classes) != classes:
        return []
    found = Counter(entry.split for entry in index.entries)
    return [
        Finding(index.root, "totals", f"{name} has {count} {split} videos, here are {found[split]}")
        for split, count in zip(("train", "test"), known, strict=True)
        if found[split] and found[split] != count
    ]


def _report(
    index: VideoIndex,
    results: list[_Checked],
    findings: list[Finding],
    paces: tuple[Fraction, ...],
    clip_frames: int,
) -> dict:
    lengths = np.array([result.num_frames for result in results if result.num_frames], np.int64)
    per_class: dict[str, Counter] = defaultdict(Counter)
    for entry in index.entries:
        per_class[entry.class_name or "no class"][entry.split or "no split"] += 1
    kinds = Counter(finding.kind for finding in findings)
    return {
        "root": index.root,
        "layout": index.layout,
        "videos": len(index),
        "readable": len(lengths),
        "frames": int(lengths.sum()),
        "splits": dict(Counter(entry.split or "no split" for entry in index.entries)),
        "classes": {name: dict(counts) for name, counts in sorted(per_class.items())},
        "codecs": dict(Counter(result.codec for result in results if result.codec)),
        "lengths": _histogram(lengths),
        "loops": {str(p): loop_share(lengths, p, clip_frames) for p in paces if len(lengths)},
        "clip_frames": int(clip_frames),
        "kinds": dict(kinds),
        "serious": sum(count for kind, count in kinds.items() if kind in _SERIOUS),
        "findings": [vars(finding) for finding in findings],
    }


def _histogram(lengths: np.ndarray) -> dict:
    """Least, quartiles and most, and counts in bins that double."""
    if not len(lengths):
        return {}
    edges = [0, *(16 * 2**k for k in range(12))]
    counts = np.histogram(lengths, bins=[*edges, 2**62])[0]
    names = [f"{low} to {high - 1}" for low, high in pairwise(edges)]
    names.append(f"{edges[-1]} or more")
    words = ("least", "quarter", "median", "three quarters", "most")
    places = np.percentile(lengths, [0, 25, 50, 75, 100]).tolist()
    quartiles = dict(zip(words, places, strict=True))
    bins = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return quartiles | {"bins": bins}
