"""Videos that lists name: found under a root, with what each line says of them."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from pacecore.finding import Lookup, WithoutEnding, folders_in, may_be_video
from pacecore.index import MOST_FRAMES, DatasetError, VideoEntry, VideoIndex
from pacecore.media import is_video_name, picture_files

__all__ = [
    "SPLIT_WORDS",
    "ListedTwiceError",
    "Listing",
    "Row",
    "is_json_list",
    "lines_of",
    "listed_videos",
    "split_said",
]

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_COLUMNS = {  # names in a table's first line; case, spaces and signs left out
    "path": (
        "path", "video", "filename", "file", "videopath", "filepath", "videofile", "clippath",
        "videoname", "videoid",
    ),
    "label": (
        "label", "class", "classname", "labelname", "category", "action", "target", "tag",
        "labelid", "classid",
    ),
    "frames": ("frames", "numframes", "framecount", "nframes"),
    "split": ("split", "subset", "partition"),
}  # fmt: skip

# (where, line, None) of a list's line; in a table whose first line names its columns, (where, path,
# what stands in the columns known).
_Listed = tuple[str, str, dict[str, str] | None]

_MOST_TRIED = 20  # lines by which a root is found, each below each folder that may be it
_MOST_TEXT = 2**30  # characters of a list: what a pipe holds may not end
_MOST_LABEL = 1_000_000  # every number up to the highest becomes a class


def split_said(name: str) -> str | None:
    """The split that a folder's or a table's name has a word of, as videos_train and val-256 do."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


class ListedTwiceError(DatasetError):
    """Of lists that are of these videos, then: no others are tried."""


@dataclass(slots=True)
class Row:
    """A video that a list names, and what it says of it."""

    path: str | Path
    split: str | None
    said: int | str | None  # its label, or the name of its class
    where: str  # file and line
    frames: int | None = None


@dataclass
class Listing:
    """Videos of several lists, and what is said of each."""

    root: Path
    missing_rule: str
    rows: list[Row] = field(default_factory=list)
    missing: list[tuple[str, str | None]] = field(default_factory=list)  # and their splits

    def lose(self, name: str, split: str | None, where: str) -> None:
        """A listed video is not there."""
        if self.missing_rule == "error":
            raise DatasetError(
                f"{where}: no video {_shortened(name)} under {self.root} (pacecore data index"
                " leaves such out by --missing skip)"
            )
        self.missing.append((name, split))

    def index(self, layout: str, classes: tuple[str, ...]) -> VideoIndex:
        """With labels: an int is one already, a str is a class name."""
        if not self.rows:
            raise DatasetError(
                f"{self.root}: none of the {len(self.missing)} listed videos is there"
            )
        rank = {name: label for label, name in enumerate(classes)}
        entries, first = [], {}
        for row in self.rows:
            label = rank[row.said] if isinstance(row.said, str) else row.said
            name = classes[label] if label is not None else None
            relative = os.path.relpath(row.path, self.root).replace(os.sep, "/")
            if (before := first.setdefault(relative, row)) is not row:
                splits = f", in {before.split} and {row.split}" if before.split != row.split else ""
                raise ListedTwiceError(
                    f"{row.where}: {relative} is listed twice{splits}; first in {before.where}"
                )
            entries.append(VideoEntry(str(row.path), relative, label, name, row.split, row.frames))
        return VideoIndex(str(self.root), layout, tuple(entries), classes, tuple(self.missing))


def listed_videos(
    lists: dict[str | None, Path], main: Path, roots: list[Path], missing: str
) -> Listing:
    """What the lists of each split name: under the root of `main`, or one of their own, as those of
    Kinetics have in MMAction2: videos_train and videos_val.
    """
    some = {one: _all_listed(one) for one in lists.values()}
    of_main = next(split for split, one in lists.items() if one == main)
    near = _find_root(some[main], roots, of_main)
    own = {
        split: _root_holding(some[one], [near, *roots], split) or near
        for split, one in lists.items()
    }
    around = os.path.commonpath([os.path.abspath(root) for root in own.values()])
    listing = Listing(near if len(set(own.values())) == 1 else Path(around), missing)
    for split, one in lists.items():
        _add_list(listing, some[one], split, own[split], one.suffix.lower() == ".csv")
    return listing


def _add_list(
    listing: Listing, listed: list[_Listed], split: str | None, root: Path, quoted: bool
) -> None:
    find, rows, named_columns = Lookup(root), [], False
    for where, text, cells in listed:
        if cells is None:
            video, columns = _parse_line(text, find, _cells(text, ",") if quoted else [])
            named = None
        else:
            video, named_columns = find.direct(text) or find.alike(text), True
            columns, named = [cells.get("label", ""), cells.get("frames", "")], cells.get("split")
        if named is not None and named.lower() not in SPLIT_WORDS:
            raise DatasetError(f"{where}: split must be train, val or test, got {named!r}")
        part = split if named is None else SPLIT_WORDS[named.lower()]
        if video is None:
            listing.lose(text, part, where)
        else:
            rows.append((video, part, columns, where))
    swapped = not named_columns and _frames_come_first(rows)
    for video, part, columns, where in rows:
        if len(columns) > 1 and columns[1][:1].isalpha() and not named_columns:
            raise DatasetError(
                f"{where}: a third column is the number of frames, got {_shortened(columns[1])};"
                " the first line of a .csv may name its columns: path, label, split"
            )
        label, frames = _columns(columns[1::-1] if swapped else columns, where)
        listing.rows.append(Row(video, part, label, where, frames))


def _frames_come_first(rows: list[tuple]) -> bool:
    """Whether lines over folders of pictures are "path frames label", as those of TSN and MMAction2
    are: by which of the two numbers is nearer to what the folders hold.
    """
    said = ((video, *map(int, columns)) for video, _, columns, _ in rows if _two_numbers(columns))
    nearer = 0
    for video, first, second in islice((one for one in said if os.path.isdir(one[0])), 100):
        held = len(picture_files(video))
        nearer += abs(second - held) - abs(first - held)
    return nearer > 0


def _two_numbers(columns: list[str]) -> bool:
    return len(columns) == 2 and all(re.fullmatch("[0-9]{1,18}", each) for each in columns)


def _all_listed(path: Path) -> list[_Listed]:
    """Of all of a list, which may be a pipe's and is read but once. Raises DatasetError for an
    empty one.
    """
    if listed := list(_listed(path)):
        return listed
    raise DatasetError(f"{path}: is empty")


def _starts(text: str) -> list[str]:
    """Where the path that a line begins with may end, also with folders parted as on Windows."""
    ends = [*(gap.start() for gap in re.finditer(r"[\s,;]+", text[:4096])), len(text)]
    starts = [text[:end].strip('"') for end in ends]
    return starts + [start.replace("\\", "/") for start in starts if "\\" in start]


def _root_holding(listed: list[_Listed], roots: list[Path], split: str | None) -> Path | None:
    """That of the first video and, where several are, of the most of some from all over a list; in
    the place of one that is called as another split, one beside it that has as many and is called
    as this, as where each split is numbered anew.
    """
    some = [_starts(text) for _, text, _ in listed[:: len(listed) // _MOST_TRIED + 1]]
    by_stem = WithoutEnding()

    def is_there(path: Path) -> bool:
        return may_be_video(path) or by_stem.find(str(path)) is not None

    held = [[any(is_there(root / way) for way in starts) for starts in some] for root in roots]
    best = max((found[0], sum(found)) for found in held)
    if not best[1]:
        return None
    tied = [root for root, found in zip(roots, held, strict=True) if (found[0], sum(found)) == best]
    if split is None or split_said(tied[0].name) in (None, split):
        return tied[0]
    beside = (root for root in tied if root.parent == tied[0].parent)
    return next((root for root in beside if split_said(root.name) == split), tied[0])


def _find_root(listed: list[_Listed], roots: list[Path], split: str | None) -> Path:
    """The folder under which one of the listed videos, or at least its folder, is; the only one."""
    if len(roots) == 1:
        return roots[0]
    if found := _root_holding(listed, roots, split):
        return found
    heads: dict[bool, set[str]] = {}  # of lines that begin with a folder, and of others
    for starts in (_starts(text) for _, text, _ in listed):
        begun = {start.lstrip("/").split("/")[0].casefold() for start in starts}
        heads.setdefault("/" in starts[-1], set()).update(begun)
    for root in roots:
        if root.resolve() == Path("/"):  # which has the first folder of every path from there
            continue
        if any(begun & _heads(root, with_folder) for with_folder, begun in heads.items()):
            return root
    where, text, _ = listed[0]
    tried, said = ", ".join(map(str, roots[:4])), _shortened(text)
    raise DatasetError(
        f"{where}: {said!r} begins with no video under {tried}; pacecore data index takes another"
        " root by --root, and the first line of a .csv may name its columns: path, label, split"
    )


def _heads(root: Path, with_folder: bool) -> set[str]:
    """How paths below `root` may begin: with a folder's name, or a video's, its ending or not."""
    if with_folder:
        return {folder.name.casefold() for folder in folders_in(root)}
    with suppress(OSError):
        videos = [f for f in root.iterdir() if is_video_name(f.name)]
        return {name.casefold() for f in videos for name in (f.name, f.stem)}
    return set()


def _listed(path: Path) -> Iterator[_Listed]:
    if path.suffix.lower() == ".json":
        yield from _objects(path)
        return
    delimiter, places, lines = ",", None, lines_of(path)
    for number, (where, text) in enumerate(lines):
        if number == 0 and path.suffix.lower() in (".csv", ".tsv"):
            for delimiter in (",", "\t", ";"):  # the last as spreadsheets write it in Europe
                if places := _places(_cells(text, delimiter)):
                    break
            if places:
                continue
        if places:
            row = _cells(text, delimiter, lines)
            if not row:
                rule = "a cell is too long, or its quotes end nowhere"
                raise DatasetError(f"{where}: {rule}, got {_shortened(text)}")
            cells = {name: row[at] if at < len(row) else "" for name, at in places.items()}
            if not cells.get("path"):
                raise DatasetError(f"{where}: names no video, got {text!r}")
            yield where, cells["path"], cells
        else:
            yield where, text, None


def _objects(path: Path) -> Iterator[_Listed]:
    """As of a table, of a JSON array of objects: those of Something-Something and Diving48."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            begins = file.read(1000)
            if not begins.lstrip().startswith("["):  # as COCO's, of gigabytes
                raise ValueError
            rows = json.loads(begins + file.read())
        for number, row in enumerate(rows, 1):
            name = row["id"] if "id" in row else row["vid_name"]
            label = row.get("template", row.get("label"))
            yield f"{path} row {number}", str(name), {"label": "" if label is None else str(label)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        rule = "must be an array of objects that name a video by id or vid_name"
        raise DatasetError(f"{path}: {rule}") from None


def is_json_list(path: Path) -> bool:
    """Whether a JSON file is an array of objects that name videos."""
    with suppress(DatasetError):
        return next(_objects(path), None) is not None
    return False


def _cells(text: str, delimiter: str, more: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Of a line, and of as many `more` as a cell in quotes goes on over, as a caption may; [] where
    that is to no end, or a cell is too long.
    """
    lines = chain([text], (f" {line}" for _, line in more), ["\n"] if more else [])
    try:
        row = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []
    return [] if row[-1].endswith("\n") else [cell.strip() for cell in row]


def _shortened(text: str) -> str:
    """A line as errors name it: a file that is no list may be all one line."""
    return text if len(text) <= 200 else text[:200] + " ..."


def _places(names: list[str]) -> dict[str, int] | None:
    """Where the columns known are, by a table's first line; None where it names none of videos, as
    video_001 and video/1 do not.
    """
    plain = [re.sub(r"[^a-z0-9/\\]", "", name.lower()) for name in names]
    found = {
        what: next((plain.index(word) for word in words if word in plain), None)
        for what, words in _COLUMNS.items()
    }
    known = {what: place for what, place in found.items() if place is not None}
    return known if "path" in known else None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """("FILE line N", text) of every line that says something; any line ending, with or without
    BOM.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_TEXT + 1)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is no video, nor a list in UTF-8 text ({error})") from None
    if len(text) > _MOST_TEXT:
        raise DatasetError(f"{path}: a list must have at most {_MOST_TEXT:,} characters, has more")
    for number, line in enumerate(text.split("\n"), 1):  # str.splitlines parts at U+2028 too
        if line.strip() and not line.startswith("# "):  # HMDB51 has names that begin with #
            yield f"{path} line {number}", line.strip()


def _parse_line(text: str, find: Lookup, cells: list[str]) -> tuple[str | None, list[str]]:
    """(video, columns after it). Names may hold spaces and commas, and labels of a csv too: the
    longest text that is a video wins, first of all of `cells`, those of a csv.
    """
    parting = next((each for each in "\t;" if each in text), ",")
    fields = [each.strip(' "') for each in re.findall(rf' *"[^"]*"|[^{parting}]+', text)]
    readings = [("".join(cells[:1]), cells[1:])] if cells else []
    readings += [(text.strip('"'), []), ("".join(fields[:1]), fields[1:])]
    for gap in list(re.finditer(r"[\s,]+", text))[-2:]:
        name, rest = text[: gap.start()], text[gap.end() :]
        readings.append((name.strip('"'), re.findall(r'[^\s,"]+', rest)))
    readings.sort(key=lambda reading: -len(reading[0]))
    for look in (find.direct, find.alike):
        for name, columns in readings:
            path = look(name)
            if path is not None:
                return path, columns
    return None, []


def _columns(columns: list[str], where: str) -> tuple[int | str | None, int | None]:
    """(label or class name, frames) from the columns after the path."""
    label: int | str | None = None
    if columns and columns[0]:
        label = columns[0]
        if re.fullmatch(r"-?\d+", label):
            label = _number(label, 0, _MOST_LABEL, f"{where}: label")
    if len(columns) < 2 or not columns[1]:
        return label, None
    return label, _number(columns[1], 1, MOST_FRAMES, f"{where}: frames")


def _number(text: str, least: int, most: int, what: str) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
    if not least <= number <= most:
        raise DatasetError(f"{what} must be from {least} to {most}, got {text}")
    return number
