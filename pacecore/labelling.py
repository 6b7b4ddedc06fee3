"""From what lists say of their videos, and from the folders of these, to classes and labels."""

import os
from pathlib import Path

from pacecore.index import DatasetError, VideoIndex
from pacecore.listing import Listing, Row, lines_of

__all__ = ["labelled", "without_test"]


def labelled(listing: Listing, folder: Path, ucf101: str, other: str) -> VideoIndex:
    """With the classes of the classInd.txt in `folder`, as layout `ucf101`; without one `other`."""
    found = (path for path in folder.glob("*") if path.name.lower() == "classind.txt")
    if class_file := next(found, None):
        return _with_folder_classes(listing, class_file, ucf101)
    return _with_classes(listing, other)


def _class_file(path: Path) -> tuple[str, ...]:
    """classInd.txt: "1 ApplyEyeMakeup", ids from 1 without a gap."""
    names = []
    for where, text in lines_of(path):
        number, _, name = text.partition(" ")
        if not number.isdecimal() or int(number) != len(names) + 1 or not name.strip():
            raise DatasetError(f'{where}: must be "{len(names) + 1} ClassName", got {text!r}')
        names.append(name.strip())
    return tuple(names)


def _with_folder_classes(listing: Listing, class_file: Path, layout: str) -> VideoIndex:
    """Lists of tests leave the class out, others count from 1, as classInd.txt: the folder says it,
    and a label beside it must agree.
    """
    classes = _class_file(class_file)
    ranks = {name.casefold(): rank for rank, name in enumerate(classes)}
    for row in listing.rows:
        folders = os.path.relpath(row.path, listing.root).split(os.sep)
        known = [ranks[each.casefold()] for each in folders if each.casefold() in ranks]
        if not known:
            raise DatasetError(f"{row.where}: folder {folders[0]} is no class of classInd.txt")
        rank = known[0]
        if isinstance(row.said, int) and rank + 1 != row.said:
            name = classes[rank]
            raise DatasetError(f"{row.where}: label {row.said} is not that of class {name}")
        row.said = rank
    return listing.index(layout, classes)


def _with_classes(listing: Listing, layout: str) -> VideoIndex:
    """Labels as listed, from 0 or 1; else the names listed; else the videos' folders."""
    layout += _without_unlabelled_test(listing)
    said = [row.said for row in listing.rows]
    numbers = [label for label in said if isinstance(label, int)]
    if said and len(numbers) == len(said):
        base = 1 if min(numbers) >= 1 else 0
        for row in listing.rows:
            row.said -= base
        return listing.index(layout, _names(listing, max(numbers) - base + 1, base))
    if numbers:
        where = next(row.where for row in listing.rows if not isinstance(row.said, int))
        raise DatasetError(f"{where}: has no number for a label, as other lines have")
    known = set(said) - {None}
    if None in said:
        said = [row.said or _its_folder(row, known, listing.root) for row in listing.rows]
        if None in said:
            return listing.index(layout, ())
    classes = tuple(sorted(set(said)))
    if len(classes) == 1 and not known:  # one folder around all is no class
        classes, said = (), [None] * len(said)
    for row, name in zip(listing.rows, said, strict=True):
        row.said = name
    return listing.index(layout, classes)


def _without_unlabelled_test(listing: Listing) -> str:
    """Of Jester and Something-Something the labels of the test videos are not published: these are
    left out, in words, where there are labelled ones to train and to validate on.
    """
    test = [row for row in listing.rows if row.split == "test"]
    rest = [row for row in listing.rows if row.split != "test"]
    known = {row.said for row in rest}
    folders = {_folder_name(row, listing.root) for row in rest}
    if len(folders) > 1:  # they may say the class
        known |= folders
    if (
        not test
        or not {"train", "val"} <= {row.split for row in rest}
        or None in {row.said for row in rest}
        or any(row.said is not None or _folder_name(row, listing.root) in known for row in test)
    ):
        return ""
    return without_test(listing)


def without_test(listing: Listing) -> str:
    """Leaves the test videos out, in words, if one is there."""
    count = sum(row.split == "test" for row in listing.rows)
    listing.rows = [row for row in listing.rows if row.split != "test"]
    listing.missing = [each for each in listing.missing if each[1] != "test"]
    return f", without the {count} of test, whose labels are not listed" if count else ""


def _folder_name(row: Row, root: Path) -> str | None:
    return next(iter(Path(os.path.relpath(row.path, root)).parts[-2:-1]), None)


def _its_folder(row: Row, known: set[str], root: Path) -> str | None:
    """Where no class is said, the folder's name, which must be one that other lines say."""
    name = _folder_name(row, root)
    if known and name not in known:
        raise DatasetError(f"{row.where}: has no class, as other lines have")
    return name


def _names(listing: Listing, count: int, base: int) -> tuple[str, ...]:
    """Class names of numeric labels: their folders' where these pair up one to one and are no
    numbers, else the numbers as listed, by which lists that hold other classes are matched.
    """
    folders: dict[int, set[str | None]] = {}
    for row in listing.rows:
        folders.setdefault(row.said, set()).add(_folder_name(row, listing.root))
    names = {label: next(iter(found)) for label, found in folders.items() if len(found) == 1}
    no_numbers = not any(name and name.isdecimal() for name in names.values())
    if no_numbers and len(names) == len(folders) == len(set(names.values()) - {None}):
        return tuple(names.get(label, str(label + base)) for label in range(count))
    return tuple(str(label + base) for label in range(count))
