"""The layouts that data sets of videos come in, and their quirks. Used through find_videos."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

from pacecore.finding import folders_in, lists_in, walk
from pacecore.index import SPLITS, DatasetError, VideoEntry, VideoIndex, is_index, read_index
from pacecore.labelling import labelled, without_test
from pacecore.listing import (
    SPLIT_WORDS,
    ListedTwiceError,
    Listing,
    Row,
    is_json_list,
    lines_of,
    listed_videos,
    split_said,
)
from pacecore.media import is_video_name

__all__ = ["read_source"]

_UCF_LISTS, _HMDB_LISTS = "ucfTrainTestlist", "testTrainMulti_7030_splits"
_HMDB_SPLITS = {0: None, 1: "train", 2: "test"}  # 0: in neither
_LIST_NAME = re.compile(  # as trainlist01.txt, or ucf101_val_split_1_videos.txt
    r"^(?:(.+?)[_-])??(train|test|val)(?:ing|id(?:ation|ate)?)?(?:list)?[_-]?(.*)"
    r"\.(?:txt|csv|json)$",
    re.I,
)
_KINETICS_COLUMNS = {"youtube_id", "time_start", "time_end"}


def read_source(
    path: Path, split: str | None, fold: int | str, root: Path | None, missing: str
) -> VideoIndex:
    """The index of `path`; entries in any order."""
    if path.is_dir():
        return _read_folder(path, fold, root, missing)
    if path.suffix.lower() in (".jsonl", ".ndjson") or is_index(path):
        return read_index(path).of_fold(fold, path)
    if is_video_name(path.name):
        return _one_video(path)
    if path.suffix.lower() == ".csv" and (rows := _kinetics_rows(path)) is not None:
        return _kinetics(root or _root_of_table(path.parent), [(path, rows)])
    return _read_list(path, split, root, missing)


def _one_video(path: Path) -> VideoIndex:
    return VideoIndex(str(path.parent), "one video", (VideoEntry(str(path), path.name),))


def _read_folder(path: Path, fold: int | str, root: Path | None, missing: str) -> VideoIndex:
    hmdb = _beside_or_inside(path, _HMDB_LISTS)
    if hmdb is not None:
        return _hmdb51(root or (_above(path) if path == hmdb else path), hmdb, fold, missing)
    ucf = _beside_or_inside(path, _UCF_LISTS)
    lists = ucf or (path / "splits" if (path / "splits").is_dir() else path)
    sets = _list_sets(lists)
    if pairs := _the_pairs(sets):
        return _listed([root] if root else _roots(path, lists), lists, pairs, fold, missing)
    if tables := _kinetics_tables(path):
        return _kinetics(root or _root_of_table(path), tables)
    index = _plain(path)
    for lists in (path / "annotations", path / "labels"):
        try:
            if tables := _kinetics_tables(lists):
                return _kinetics(root or path, tables)
            if pairs := _the_pairs(_list_sets(lists)):
                roots = [root] if root else _roots(path, lists)
                return _listed(roots, lists, pairs, fold, missing)
        except ListedTwiceError:
            raise
        except DatasetError as error:  # they may be of something else
            return replace(index, layout=f"{index.layout}, not by its lists: {error}")
    unread = f", not by the lists of {' or '.join(sets)}: name one of them" if sets else ""
    return replace(index, layout=index.layout + unread)


def _beside_or_inside(path: Path, name: str) -> Path | None:
    """The folder of lists `name`: `path` itself, in it or in a folder of it; or next to it, where
    other sets may lie too, if `path` has a class folder that is listed there.
    """
    if Path(os.path.abspath(path)).name == name:
        return path
    places = [path, *folders_in(path)]
    inside = next((place / name for place in places if os.path.isdir(place / name)), None)
    if inside:
        return inside
    for beside in (_above(path) / name, path.resolve().parent / name):  # beside a link, or there
        classes = _folders_listed(beside)
        if any(os.path.isdir(place / each) for place in places for each in classes):
            return beside
    return None


def _folders_listed(lists: Path) -> set[str]:
    """Class folders of HMDB51's lists, by their names, and of UCF101's, by their lines."""
    files = lists_in(lists, "*.txt")
    names = {f.stem.rsplit("_test_split", 1)[0] for f in files}
    ucf = (f for f in files if (match := _LIST_NAME.match(f.name)) and not match[1])
    listed = (text for f in ucf for _, text in lines_of(f))
    return names | {text.split("/")[0] for text in listed}


# Folders of videos


def _plain(path: Path) -> VideoIndex:
    """Folders train, val, test of class folders; class folders; or a flat folder."""
    videos = list(walk(path))
    if not videos:
        raise DatasetError(f"{path}: no video in it, nor a folder of jpg or png frames")
    if videos == [path]:  # a folder of still pictures
        return _one_video(path)
    above = len(path.parts)  # relative_to would take longer than finding the videos
    parts = [video.parts[above:] for video in videos]
    split_of, level = _split_folders(path, parts)
    # One folder around everything (UCF-101 within its data set) is no class.
    while len({p[level] for p in parts if len(p) > level}) == 1 and all(
        len(p) > level + 2 for p in parts
    ):
        level += 1
    loose = [p for p in parts if len(p) <= level + 1]
    in_classes = not loose and len({p[level] for p in parts}) > 1
    classes = tuple(sorted({p[level] for p in parts})) if in_classes else ()
    rank = {name: label for label, name in enumerate(classes)}
    entries = tuple(
        VideoEntry(
            path=str(video),
            name="/".join(p),
            label=rank[p[level]] if in_classes else None,
            class_name=p[level] if in_classes else None,
            split=split_of.get(p[level - 1]) if split_of else None,
        )
        for video, p in zip(videos, parts, strict=True)
    )
    kind = "class folders" if in_classes else "videos without labels"
    if 0 < len(loose) < len(parts):
        kind += f", as {'/'.join(loose[0])} is in no class folder"
    if split_of:
        kind = f"split folders of {kind}"
    if pictures := sum(video.is_dir() for video in videos):
        kind += ", as still pictures" if pictures == len(videos) else f", {pictures} as pictures"
    return VideoIndex(str(path), kind, entries, classes)


def _split_folders(path: Path, parts: list[tuple[str, ...]]) -> tuple[dict[str, str], int]:
    """Folders that are splits, and how far down what is in them begins; ({}, 0) where none are.
    They are called train, val or test, or all of them have such a word in their names.
    """
    level = 0
    while len({p[level] for p in parts}) == 1 and min(map(len, parts)) > level + 1:
        if parts[0][level].lower() in SPLIT_WORDS:
            break
        level += 1  # a folder around everything
    names = {p[level] for p in parts if len(p) > level + 1}
    split_of = {name: SPLIT_WORDS[name.lower()] for name in names if name.lower() in SPLIT_WORDS}
    outside = next((p for p in parts if p[level] not in split_of), None)
    if outside and len(set(split_of.values())) > 1:
        folders, video = ", ".join(sorted(split_of)), "/".join(outside)
        raise DatasetError(f"{path}: has folders {folders}, and {video} is in none of them")
    if outside:
        said = {p[level]: split_said(p[level]) if len(p) > level + 1 else None for p in parts}
        known = set(said.values())
        split_of = said if None not in known and "train" in known and len(known) > 1 else {}
    return (split_of, level + 1) if split_of else ({}, 0)


# Lists of videos


def _list_sets(folder: Path) -> dict[str, dict[str, dict[str, Path]]]:
    """Lists by what stands in their names before the split, then by what stands after it and split:
    {"": {"01": {"train": trainlist01.txt, "test": testlist01.txt}}}.
    """
    pairs: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(
        each for ending in ("csv", "json", "txt") for each in lists_in(folder, f"*.{ending}")
    ):
        match = _LIST_NAME.match(path.name)
        if match and _is_list(path):
            begin, split, name = (part.lower() for part in match.groups(default=""))
            pairs.setdefault((begin, name), {})[split] = path
    sets: dict[str, dict[str, dict[str, Path]]] = {}
    for (begin, name), pair in pairs.items():
        if len(pair) > 1 and "train" in pair:
            sets.setdefault(begin, {})[name] = pair
    return sets


def _the_pairs(sets: dict[str, dict[str, dict[str, Path]]]) -> dict[str, dict[str, Path]] | None:
    """Those whose names begin with no word, or with the one word that there is; else None."""
    return sets.get("") or (next(iter(sets.values())) if len(sets) == 1 else None)


def _is_list(path: Path) -> bool:
    """Whether a file of a list's name is one, for its ending."""
    if path.suffix.lower() == ".json":
        return is_json_list(path)
    return path.suffix.lower() != ".csv" or _kinetics_rows(path) is None


def _listed(
    roots: list[Path],
    lists: Path,
    pairs: dict[str, dict[str, Path]],
    fold: int | str,
    missing: str,
) -> VideoIndex:
    """UCF101, and any folder with train and test lists in it."""
    name = _fold_name(lists, list(pairs), fold)
    named = {split: one.read_bytes() for split, one in pairs[name].items()}
    if named.get("val") == named.get("test"):  # as of Kinetics for SlowFast and VideoMAE
        del pairs[name]["val"]
    listing = listed_videos(pairs[name], pairs[name]["train"], roots, missing)
    words = f"lists {name}" if name else "lists of train and test"
    return labelled(listing, lists, f"UCF101, split {name}", words)


def _fold_name(lists: Path, names: list[str], fold: int | str) -> str:
    wanted = str(fold).lower()
    if wanted in names:
        return wanted
    number = int(wanted) if wanted.isdecimal() else -1
    numbers = [[int(digits) for digits in re.findall(r"\d+", name)] for name in names]
    if numbers.count([number]) == 1:
        return names[numbers.index([number])]
    # Of split1, split2, split10 the rank says nothing.
    if number == len(names) == 1 or (
        number in range(1, len(names) + 1) and all(len(found) != 1 for found in numbers)
    ):
        return names[number - 1]
    raise DatasetError(f"{lists}: has no fold {fold!r}; its folds: {', '.join(names)}")


def _roots(path: Path, lists: Path) -> list[Path]:
    """Where listed paths may begin, likeliest first."""
    above = _above(lists)
    inside = [folder for p in (path, above) for folder in folders_in(p)]
    return list(dict.fromkeys([path, lists, above, _above(above), *inside]))


def _above(folder: Path) -> Path:
    """The folder that a folder is in; of "." and "..", which do not name it, from the top."""
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return named.parent


def _read_list(path: Path, split: str | None, root: Path | None, missing: str) -> VideoIndex:
    """A text list. Of a pair train_X, test_X, each stands for both: the split chooses."""
    folder = path.parent if path.is_file() else Path()  # a pipe's is where it is typed
    match = _LIST_NAME.match(path.name)
    sets = _list_sets(folder).values() if split else []
    pair = next((each for pairs in sets for each in pairs.values() if path in each.values()), None)
    lists = pair or {match[2].lower() if match else None: path}
    roots = [root] if root else _roots(folder, folder)
    listing = listed_videos(lists, path, roots, missing)
    return labelled(listing, folder, "a list of UCF101", "a list")


# HMDB51


def _hmdb51(root: Path, lists: Path, fold: int | str, missing: str) -> VideoIndex:
    """CLASS_test_splitN.txt: "name.avi 0", 1 train, 2 test, 0 neither; videos in a folder CLASS."""
    files = lists_in(lists, "*_test_split*.txt")
    folds = sorted({f.stem.rsplit("_test_split", 1)[1] for f in files})
    fold = _fold_name(lists, folds, fold)
    files = [f for f in files if f.stem.endswith(f"_test_split{fold}")]
    classes = tuple(f.stem.rsplit("_test_split", 1)[0] for f in files)
    videos = list(walk(root))
    by_name = {(v.parent.name, v.stem if is_video_name(v.name) else v.name): v for v in videos}
    by_name |= {(v.parent.name, v.name): v for v in videos}
    listing = Listing(root, missing)
    for name, file in zip(classes, files, strict=True):
        for where, text in lines_of(file):
            video, _, number = text.rpartition(" ")
            if number not in ("0", "1", "2"):
                raise DatasetError(f'{where}: must be "video 0", 1 or 2, got {text!r}')
            split = _HMDB_SPLITS[int(number)]
            if split is None:
                continue
            video = video.strip()
            found = by_name.get((name, video)) or by_name.get((name, Path(video).stem))
            if found is None:
                listing.lose(f"{name}/{video}", split, where)
            else:
                listing.rows.append(Row(found, split, name, where))
    return listing.index(f"HMDB51, split {fold}", classes)


# Kinetics


def _kinetics_rows(path: Path) -> list[dict[str, str]] | None:
    """Rows of an official Kinetics table, or None if this is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, skipinitialspace=True)
            names = set(rows.fieldnames or ())
            # Without labels, as that of test, it is told from other tables by having no more.
            unlabelled = names <= _KINETICS_COLUMNS | {"split", "is_cc"}
            if not names >= _KINETICS_COLUMNS or not ("label" in names or unlabelled):
                return None
            return list(rows)
    except (UnicodeDecodeError, csv.Error):
        return None


def _kinetics_tables(folder: Path) -> list[tuple[Path, list[dict[str, str]]]]:
    tables = ((table, _kinetics_rows(table)) for table in lists_in(folder, "*.csv"))
    return [(table, rows) for table, rows in tables if rows is not None]


def _kinetics(root: Path, tables: list[tuple[Path, list[dict[str, str]]]]) -> VideoIndex:
    """Videos YOUTUBE-ID_START_END.mp4, or YOUTUBE-ID.mp4, anywhere below the table's folder; those
    of test, where no label of them is listed, are left out if others are there to validate on.
    """
    by_stem = {video.stem: video for video in walk(root)}
    listing = Listing(root, "skip")
    labels: dict[str, set[str]] = {split: set() for split in SPLITS}
    for table, rows in tables:
        for number, row in enumerate(rows, 2):
            where = f"{table} line {number}"
            try:
                span = f"_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
            except (TypeError, ValueError, OverflowError):
                raise DatasetError(f"{where}: time_start and time_end must be seconds") from None
            found = by_stem.get(row["youtube_id"] + span) or by_stem.get(row["youtube_id"])
            split = (row.get("split") or split_said(table.stem) or "train").lower()
            if split not in SPLIT_WORDS:
                raise DatasetError(f"{where}: split must be train, val or test, got {split!r}")
            split, label = SPLIT_WORDS[split], row.get("label") or None
            if label:
                labels[split].add(label)
            if found is None:
                listing.lose(row["youtube_id"] + span, split, where)
                continue
            listing.rows.append(Row(found, split, label, where))
    there = {row.split for row in listing.rows if row.said}
    left_out = without_test(listing) if not labels["test"] and {"train", "val"} <= there else ""
    return listing.index("Kinetics" + left_out, tuple(sorted(set().union(*labels.values()))))


def _root_of_table(folder: Path) -> Path:
    """Where a table in `folder` has its videos: there, or beside the folder annotations."""
    return folder.absolute().parent if folder.absolute().name == "annotations" else folder
