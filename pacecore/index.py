"""The index of a data set: its videos in a fixed order, in memory and as JSON lines."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pacecore.errors import PacecoreError
from pacecore.files import write_json_lines
from pacecore.video import described, holds

__all__ = [
    "MOST_FRAMES",
    "SPLITS",
    "BadVideo",
    "DatasetError",
    "VideoEntry",
    "VideoIndex",
    "absolute",
    "is_index",
    "none_readable",
    "read_index",
    "recordings",
    "write_index",
]

SPLITS = ("train", "val", "test")
MOST_FRAMES = 10**9  # that a list or an index may say of a video


class DatasetError(PacecoreError):
    """A data set cannot be read as one; the message names the file, the line and the rule."""


@dataclass(frozen=True)
class VideoEntry:
    """One video. path: a file, or a folder of still pictures; name: it relative to the root."""

    path: str
    name: str
    label: int | None = None  # 0-based, into VideoIndex.classes
    class_name: str | None = None
    split: str | None = None  # "train", "val", "test"; None where the source does not say
    num_frames: int | None = None  # None: not counted yet
    counted: str | None = field(default=None, repr=False, compare=False)  # see counted_text


@dataclass(frozen=True)
class VideoIndex:
    """The videos of a source, in the order that randomness is keyed by."""

    root: str
    layout: str  # how the source was read, in words
    entries: tuple[VideoEntry, ...]
    classes: tuple[str, ...] = ()  # names by label; empty where nothing is labelled
    # Listed videos that are not there, and the split that each would be of.
    missing: tuple[tuple[str, str | None], ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, in the order train, val, test."""
        present = {entry.split for entry in self.entries}
        return tuple(split for split in SPLITS if split in present)

    def select(self, split: str | None) -> "VideoIndex":
        """The videos of one split. A source that knows no splits is all "train"; None is
        everything.

        Raises DatasetError for a split that the source does not have.
        """
        if split is None or (split == "train" and not self.splits):
            return self
        chosen = tuple(entry for entry in self.entries if entry.split == split)
        if not chosen:
            known = ", ".join(self.splits) or "none"
            raise DatasetError(f"{self.root}: has no split {split!r}; its splits: {known}")
        missing = tuple(lost for lost in self.missing if lost[1] == split)
        return replace(self, entries=chosen, missing=missing)

    @property
    def fold(self) -> str:
        """Which of its set's several splits it holds, as its layout says; "" of a set without."""
        known = re.search(r"(?:, split|^lists) ([^\s,]+)(?:,|$)", self.layout)
        return known[1] if known else ""

    def of_fold(self, fold: int | str, source: str | Path) -> "VideoIndex":
        """Itself, read from the index or store `source`, which holds one of its set's several
        splits: whichever it is for "1", the default. Raises DatasetError for another.
        """
        known, wanted = (text.lower().lstrip("0") or text[-1:] for text in (self.fold, str(fold)))
        if known and wanted not in ("1", known):
            raise DatasetError(f"{source}: was made of {self.layout}, and fold {fold!r} is wanted")
        return self


@dataclass(frozen=True)
class BadVideo:
    """A video that cannot be used, and why."""

    path: str
    reason: str


def none_readable(count: int, bad: list[BadVideo]) -> str:
    """What to say where none of `count` videos is readable. bad: they, but those not there."""
    first = "".join(f"; the first one: {each.path}: {each.reason}" for each in bad[:1])
    return f"none of the {count} videos can be read{first}"


# UCF101 names a clip v_CLASS_gGROUP_cCLIP: clips of one group were cut from one recording.
_GROUPED = re.compile(r"(.*_g\d+)_c\d+")


def recordings(videos: Iterable[str | Path]) -> list[str]:
    """What each video was cut from: its group where its name tells one, else the video itself."""
    paths = [Path(video) for video in videos]
    found = [_GROUPED.fullmatch(path.stem) for path in paths]
    return [match[1] if match else str(path) for match, path in zip(found, paths, strict=True)]


def write_index(index: VideoIndex, path: str | Path, bad: Iterable[BadVideo] = ()) -> None:
    """One JSON object a line: first the index itself, then each video, usable or not.

    Paths are written relative to the root, and the root relative to the index where it lies at or
    below the index's folder, so that a data set moves together with its index.
    """
    path = Path(path)
    root, home = Path(os.path.realpath(index.root)), path.resolve().parent
    head = {
        "pacecore_index": 1,
        "root": str(root.relative_to(home)) if root.is_relative_to(home) else str(root),
        "layout": index.layout,
        "classes": index.classes,
    }
    unusable = ({"path": _relative(one.path, root), "state": one.reason} for one in bad)
    usable = (_entry_line(entry, index.root) for entry in index.entries)
    write_json_lines(path, chain([head], usable, unusable))


def is_index(path: Path) -> bool:
    """Whether write_index wrote the file, by how its first line begins."""
    begins = b'{"pacecore_index"'
    if not path.is_file():  # what a pipe holds is read but once
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(begins)) == begins
    except OSError:
        return False


def absolute(path: str) -> str:
    """`path` from the top, with the links in it, but for those before a "..", which is above what
    they lead to.
    """
    parts = Path(path).parts
    last = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    return os.path.join(os.path.realpath(Path(*parts[:last])), *parts[last:])


def _entry_line(entry: VideoEntry, root: str) -> dict:
    line: dict = {"path": entry.name, "label": entry.label, "class": entry.class_name}
    line |= {"split": entry.split, "frames": entry.num_frames, "state": "ok"}
    if entry.name.startswith("../") or _is_elsewhere(entry, root):
        line["file"] = absolute(entry.path)  # it does not move together with the index
    if entry.counted:
        info = described(entry.counted)
        line |= {name: info[name] for name in ("height", "width", "codec", "rate")}
        line |= {"seconds": info["duration_seconds"], "variable_rate": info["variable_rate"]}
        line["counted"] = entry.counted
    return line


def _is_elsewhere(entry: VideoEntry, root: str) -> bool:
    """Whether a ".." of its path is above where a link leads, of which its name says nothing."""
    named = os.path.join(root, entry.name)
    return ".." in entry.path and os.path.realpath(entry.path) != os.path.realpath(named)


def _relative(path: str, root: Path) -> str:
    real = Path(os.path.realpath(path))  # Path.resolve fails on a link that leads to itself
    return str(real.relative_to(root)) if real.is_relative_to(root) else str(real)


def read_index(path: str | Path) -> VideoIndex:
    """What write_index wrote, without the videos that it marks unusable; counted where the file is
    still the one that was counted.

    Raises DatasetError for a file that cannot be read, and for a line that is none of it, edited by
    hand as it may be.
    """
    path = Path(path)
    entries: list[VideoEntry] = []
    first: dict[str, int] = {}  # lines of the videos
    root, head = "", {"layout": "", "classes": []}
    try:
        text_file = path.open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    with text_file as lines:
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                if number == 1:
                    _require(_of_head(line))
                    head, root = line, os.path.realpath(path.resolve().parent / line["root"])
                elif line["state"] == "ok":
                    _require(_of_video(line, head["classes"]))
                    before = first.setdefault(line["path"], number)
                    if before != number:
                        raise DatasetError(
                            f"{line['path']} is listed twice; first in line {before}"
                        )
                    file = line.get("file") or os.path.join(root, line["path"])
                    counted = line.get("counted")
                    entries.append(
                        VideoEntry(
                            path=file,
                            name=line["path"],
                            label=line["label"],
                            class_name=line["class"],
                            split=line["split"],
                            num_frames=line["frames"],
                            counted=counted if holds(counted, file) else None,
                        )
                    )
            except DatasetError as error:
                raise DatasetError(f"{path} line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DatasetError(
                    f"{path} line {number}: not a line of a pacecore index ({error!r})"
                ) from None
    if not entries:
        raise DatasetError(f"{path}: an index without a usable video")
    return VideoIndex(root, head["layout"], tuple(entries), tuple(head["classes"]))


_Rule = tuple[bool, str, Any]  # whether it is kept, in words, and the value


def _of_head(line: dict) -> Iterator[_Rule]:
    for name in ("root", "layout"):
        yield isinstance(line[name], str), f"{name} must be a text", line[name]
    classes = line["classes"]
    named = isinstance(classes, list) and all(isinstance(each, str) for each in classes)
    yield named, "classes must be a list of names", classes


def _of_video(line: dict, classes: list[str]) -> Iterator[_Rule]:
    file, label, split, frames = line.get("file"), line["label"], line["split"], line["frames"]
    yield isinstance(line["path"], str), "path must be a text", line["path"]
    yield file is None or isinstance(file, str), "file must be a text", file
    among = f" or a number from 0 to {len(classes) - 1}" if classes else ", as there are no classes"
    known = label is None or (type(label) is int and 0 <= label < len(classes))
    yield known, f"label must be null{among}", label
    of_label = None if label is None else classes[label]
    rule = f"class must be {json.dumps(of_label)}, that of label {json.dumps(label)}"
    yield line["class"] == of_label, rule, line["class"]
    yield split is None or split in SPLITS, f"split must be null or of {', '.join(SPLITS)}", split
    rule = f"frames must be null or from 1 to {MOST_FRAMES}"
    yield frames is None or (type(frames) is int and 1 <= frames <= MOST_FRAMES), rule, frames


def _require(rules: Iterator[_Rule]) -> None:
    for kept, rule, value in rules:
        if not kept:
            raise DatasetError(f"{rule}, got {json.dumps(value):.200}")
