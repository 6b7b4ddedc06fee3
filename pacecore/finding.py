"""Videos on the disk: all below a folder, and those that a list names almost as they are called."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from pacecore.index import DatasetError
from pacecore.media import is_video_name, picture_files

__all__ = ["Lookup", "WithoutEnding", "folders_in", "lists_in", "may_be_video", "walk"]

# Files of runs and reports, whose folders hold pictures.
_WRITTEN = ({"options.toml"}, {"report.json", "report.md"})
# How the names of folders without videos begin; the last one's pictures are of a Synology's own.
_NO_CLASS = (".", "__MACOSX", "lost+found", "@eaDir")


def walk(path: Path) -> Iterator[Path]:
    """Videos below `path`: files, and folders of still pictures; hidden and unpacking debris left
    out, what runs wrote, and links that lead back. Raises DatasetError for a folder that cannot be
    read.
    """
    for folder, folders, files in os.walk(path, onerror=_unread_folder, followlinks=True):
        written = any(each <= set(files) for each in _WRITTEN)
        if written and folder != str(path):
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(_NO_CLASS))
        folders[:] = [f for f in folders if not _leads_back(os.path.join(folder, f))]
        videos = sorted(f for f in files if is_video_name(f) and not f.startswith("."))
        yield from (Path(folder) / name for name in videos)
        if not (videos or written) and _are_frames(folder, folders):
            folders.clear()
            yield Path(folder)


def _are_frames(folder: str, within: list[str]) -> bool:
    """Whether the pictures in a folder are frames of a video: also where folders are within it, of
    optical flow or masks for one, if those hold no videos and no more than two such for a frame.
    """
    most = 2 * len(picture_files(folder))
    others = chain.from_iterable(walk(Path(folder, name)) for name in within)
    return most > 0 and all(each.is_dir() and len(picture_files(each)) <= most for each in others)


def _unread_folder(error: OSError) -> None:
    raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}")


def _leads_back(folder: str) -> bool:
    """Whether a link leads to a folder on the way to it, or above one."""
    if not os.path.islink(folder):
        return False
    target, way = Path(folder).resolve(), (each.resolve() for each in Path(folder).parents)
    return any(each.is_relative_to(target) for each in way)


def folders_in(path: Path) -> list[Path]:
    """By name; none where that may not be looked at, as in the lost+found of a disk."""
    with suppress(OSError):
        return sorted(each for each in path.iterdir() if os.path.isdir(each))
    return []


def lists_in(folder: Path, names: str) -> list[Path]:
    """Files of a folder whose names are as the pattern `names` has it; none that are hidden, as
    those of macOS, ._NAME beside NAME.
    """
    found = (path for path in folder.glob(names) if not path.name.startswith("."))
    return sorted(path for path in found if os.path.isfile(path))


def may_be_video(path: str | Path) -> bool:
    return os.path.isfile(path) or (os.path.isdir(path) and bool(picture_files(path)))


class WithoutEnding:
    """Finds videos by paths that leave the ending out; looks at each folder once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            names: list[str] = []
            with suppress(OSError):
                names = [each for each in sorted(os.listdir(folder)) if is_video_name(each)]
            self._folders[folder] = {each.rsplit(".", 1)[0]: each for each in reversed(names)}
        found = self._folders[folder].get(name)
        return found and os.path.join(folder, found)


class Lookup:
    """Finds listed paths under a root, also where case, slashes or the ending differ."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[str, str] | None = None
        self._elsewhere = WithoutEnding()

    def direct(self, name: str) -> str | None:
        """The path, if it is a video as it stands."""
        path = os.path.join(self.root, name)
        return path if may_be_video(path) else None

    def alike(self, name: str) -> str | None:
        """The video whose path differs in case, in its slashes or in its ending only; of one from
        the top or outside the root in its ending.
        """
        if found := name.startswith(("/", "../")) and self._elsewhere.find(f"{self.root / name}"):
            return found
        if self._found is None:
            self._found = self._by_name()
        name = name.replace("\\", "/").removeprefix("./").lstrip("/")
        stem = name.rsplit(".", 1)[0] if is_video_name(name) else name
        asked = (name, name.casefold(), stem, stem.casefold())
        return next((self._found[each] for each in asked if each in self._found), None)

    def _by_name(self) -> dict[str, str]:
        """Videos by path, with and without the ending; by the same in lower case, if no other's."""
        videos = [(each.relative_to(self.root).as_posix(), str(each)) for each in walk(self.root)]
        found: dict[str, str] = {}
        for form in (str, str.casefold):
            for path, video in videos:
                name = form(path.replace("\\", "/"))
                found.setdefault(name, video)
                found.setdefault(name.rsplit(".", 1)[0], video)
        return found
