"""Videos that lists name: found under a root, with what each line says of them."""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pacecore.index import DatasetError, VideoEntry, VideoIndex
from pacecore.media import is_video_name, picture_files

__all__ = [
    "SPLIT_WORDS",
    "Listing",
    "add_list",
    "first_of",
    "lines_of",
    "shortened",
    "table_rows",
    "walk",
]

_MOST_LABEL = 1_000_000  # every number up to the highest becomes a class
_MOST_FRAMES = 10**9
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
# Of the named columns of a table, the first that it has says which video and which class.
# fmt: off
_VIDEO_COLUMNS = (
    "path", "video_path", "clip_path", "file_path", "filepath", "filename", "file_name", "file",
    "video", "video_name", "vid_name", "id",
)
_CLASS_COLUMNS = ("template", "label", "class", "class_name", "category", "action")
# fmt: on
_NO_CLASS = (".", "__MACOSX", "lost+found")  # how the names of folders without videos begin


def walk(path: Path) -> Iterator[Path]:
    """Videos below `path`: files, and folders of still pictures; hidden and unpacking debris left
    out, and links that lead back. Raises DatasetError for a folder that cannot be read.
    """
    for folder, folders, files in os.walk(path, onerror=_unread_folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith(_NO_CLASS))
        folders[:] = [f for f in folders if not _leads_back(os.path.join(folder, f))]
        videos = sorted(f for f in files if is_video_name(f) and not f.startswith("."))
        yield from (Path(folder) / name for name in videos)
        if not videos and not folders and picture_files(folder):
            yield Path(folder)


def _unread_folder(error: OSError) -> None:
    raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}")


def _leads_back(folder: str) -> bool:
    """Whether a link leads to a folder on the way to it, or above one."""
    if not os.path.islink(folder):
        return False
    target, way = Path(folder).resolve(), (each.resolve() for each in Path(folder).parents)
    return any(each.is_relative_to(target) for each in way)


class _Lookup:
    """Finds listed paths under a root, also where case or the ending differs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folded: dict[str, str] | None = None

    def direct(self, name: str) -> str | None:
        """The path, if it is a video as it stands."""
        path = os.path.join(self.root, name)
        if os.path.isfile(path) or (os.path.isdir(path) and picture_files(path)):
            return path
        return None

    def alike(self, name: str) -> str | None:
        """The video whose path differs in case or in its ending only."""
        if self._folded is None:
            self._folded = {}
            for video in walk(self.root):
                key = video.relative_to(self.root).as_posix().casefold()
                self._folded.setdefault(key, str(video))
                self._folded.setdefault(key.rsplit(".", 1)[0], str(video))
        key = name.removeprefix("./").lstrip("/").casefold()
        stem = key.rsplit(".", 1)[0] if is_video_name(key) else key
        return self._folded.get(key) or self._folded.get(stem)


@dataclass
class Listing:
    """Videos of several lists, and what is said of each."""

    root: Path
    missing_rule: str
    rows: list[tuple] = field(default_factory=list)  # path, split, label or class, where, frames
    missing: list[tuple[str, str | None]] = field(default_factory=list)  # and their splits

    def lose(self, name: str, split: str | None, where: str) -> None:
        """A listed video is not there."""
        if self.missing_rule == "error":
            raise DatasetError(
                f"{where}: no video {name} under {self.root} (missing=skip leaves such out)"
            )
        self.missing.append((name, split))

    def index(self, layout: str, classes: tuple[str, ...]) -> VideoIndex:
        """With labels: an int is one already, a str is a class name."""
        if not self.rows:
            raise DatasetError(
                f"{self.root}: none of the {len(self.missing)} listed videos is there"
            )
        rank = {name: label for label, name in enumerate(classes)}
        entries = []
        for path, split, said, where, frames in self.rows:
            label = rank.get(said) if isinstance(said, str) else said
            if said is not None and (label is None or not 0 <= label < len(classes)):
                raise DatasetError(f"{where}: class {said} is none of the {len(classes)} classes")
            name = classes[label] if label is not None else None
            relative = os.path.relpath(path, self.root).replace(os.sep, "/")
            entries.append(VideoEntry(str(path), relative, label, name, split, frames))
        return VideoIndex(str(self.root), layout, tuple(entries), classes, tuple(self.missing))


def add_list(listing: Listing, path: Path, split: str | None) -> None:
    table = table_rows(path)
    if _column(table, _VIDEO_COLUMNS):
        _add_table(listing, path, table, split)
        return
    find, rows = _Lookup(listing.root), []
    for where, text in lines_of(path):
        video, columns = _parse_line(text, find)
        if video is None:
            listing.lose(shortened(text), split, where)
        else:
            rows.append((video, columns, where))
    swapped = _frames_come_first(rows)
    for video, columns, where in rows:
        label, frames = _columns(columns[1::-1] if swapped else columns, where)
        listing.rows.append((video, split, label, where, frames))


def _frames_come_first(rows: list[tuple[str, list[str], str]]) -> bool:
    """Whether lines over folders of pictures are "path frames label", as those of TSN and MMAction2
    are: by which of the two numbers is nearer to what the folders hold.
    """
    said = ((video, *map(int, columns)) for video, columns, _ in rows if _two_numbers(columns))
    nearer = 0
    for video, first, second in islice((one for one in said if os.path.isdir(one[0])), 100):
        held = len(picture_files(video))
        nearer += abs(second - held) - abs(first - held)
    return nearer > 0


def _two_numbers(columns: list[str]) -> bool:
    return len(columns) == 2 and all(re.fullmatch("[0-9]{1,18}", each) for each in columns)


def table_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a csv whose first line names its columns, or of a JSON array of objects, as those of
    Something-Something and Diving48; none of anything else.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = json.load(text) if ending == ".json" else list(csv.DictReader(text))
        return [{str(name).strip().lower(): _said(row[name]) for name in row} for row in rows]
    except (ValueError, TypeError, RecursionError, csv.Error):
        return []


def _said(value: object) -> str:
    return "" if value is None else str(value).strip()


def _column(rows: list[dict[str, str]], names: tuple[str, ...]) -> str:
    return next((name for name in names if rows and name in rows[0]), "")


def _add_table(
    listing: Listing, path: Path, rows: list[dict[str, str]], of_list: str | None
) -> None:
    find = _Lookup(listing.root)
    video, label = _column(rows, _VIDEO_COLUMNS), _column(rows, _CLASS_COLUMNS)
    for number, row in enumerate(rows, 1):
        where, name, split = f"{path} row {number}", row.get(video, ""), of_list
        if row.get("split"):
            split = SPLIT_WORDS.get(row["split"].lower())
            if split is None:
                raise DatasetError(
                    f"{where}: split must be train, val or test, got {row['split']!r}"
                )
        found = find.direct(name) or find.alike(name)
        if found is None:
            listing.lose(shortened(name), split, where)
            continue
        said, _ = _columns([row[label]] if row.get(label) else [], where)
        listing.rows.append((found, split, said, where, None))


def first_of(path: Path) -> tuple[str, str]:
    """Where a list names its first video, and the text that begins with it. Raises DatasetError for
    an empty list.
    """
    rows = table_rows(path)
    if column := _column(rows, _VIDEO_COLUMNS):
        return f"{path} row 1", rows[0][column]
    first = next(iter(lines_of(path)), None)
    if first is None:
        raise DatasetError(f"{path}: is empty")
    return first


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """("FILE line N", text) of every line that says something; any line ending, with or without
    BOM.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 text ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("# "):  # HMDB51 has names that begin with #
            yield f"{path} line {number}", line.strip()


def shortened(text: str) -> str:
    """A line as errors name it: a file that is no list may be all one line."""
    return text if len(text) <= 200 else text[:200] + " ..."


def _parse_line(text: str, find: _Lookup) -> tuple[str | None, list[str]]:
    """(video, columns after it). Names may hold spaces: the longest text that is a video wins, but
    where the line is a table's, whose columns may hold them too.
    """
    gaps = list(re.finditer(r"[\s,]+", text))[:-3:-1]
    cuts = [(text[: gap.start()], re.split(r"[\s,]+", text[gap.end() :])) for gap in gaps]
    tables = [_cells(text, mark) for mark in "\t;," if mark in text]
    cuts = [(text, []), *((cells[0], cells[1:]) for cells in tables), *cuts]
    for look in (find.direct, find.alike):
        for name, columns in cuts:
            path = look(name.strip('"'))
            if path is not None:
                return path, columns
    return None, []


def _cells(text: str, mark: str) -> list[str]:
    try:
        cells = next(csv.reader([text], delimiter=mark, skipinitialspace=True))
        return [cell.strip() for cell in cells]
    except csv.Error:  # too long for it
        return [text]


def _columns(columns: list[str], where: str) -> tuple[int | str | None, int | None]:
    """(label or class name, frames) from the columns after the path."""
    label: int | str | None = None
    if columns:
        label = columns[0]
        if re.fullmatch(r"-?\d+", label):
            label = _number(label, 0, _MOST_LABEL, f"{where}: label")
    if len(columns) < 2:
        return label, None
    return label, _number(columns[1], 1, _MOST_FRAMES, f"{where}: frames")


def _number(text: str, least: int, most: int, what: str) -> int:
    number = int(text) if re.fullmatch("[0-9]{1,18}", text) else -1
    if not least <= number <= most:
        raise DatasetError(f"{what} must be from {least} to {most}, got {text}")
    return number
