"""Checkpoints: written aside and renamed, read without running code from the file."""

import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pacecore.errors import PacecoreError
from pacecore.files import damaged_part, reason_of, require_end, unread

__all__ = [
    "FORMAT",
    "VERBS",
    "CheckpointError",
    "check_kind",
    "load_checkpoint",
    "load_resume",
    "previous",
    "save_checkpoint",
]

VERBS = {"pretrain": "train", "finetune": "finetune"}  # by the kind of what they leave
# What a run goes on from.
_ENTRIES = {
    "options": dict, "totals": dict, "identity": str, "listed": dict, "model": dict,
    "optimizer": dict, "results": dict, "best": dict, "bad": dict, "unmeasured": bool,
}  # fmt: skip
_OF_FINETUNE = {"classes": list, "labelling": str, "pretrained": dict}
FORMAT = 1  # of the "pacecore" entry; raised when a reader of the old form would go wrong


class CheckpointError(PacecoreError):
    """A checkpoint cannot be written or read; names the file and the reason."""


class _Closed(CheckpointError):
    """A file that may be whole, but cannot be opened, as another user's."""


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Writes {"pacecore": FORMAT, **content} to `path`: the file is the old one or the new one.

    The file that stood there before is kept beside it as <stem>.previous<suffix>. Raises
    CheckpointError when it cannot be written whole (a full disk); the old file then stays.
    """
    path = Path(path)
    if not path.name:
        raise CheckpointError(f"{path}: checkpoint cannot be written: it is a folder")
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            torch.save({"pacecore": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _keep(path, previous(path))
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:
        reason = reason_of(error)
        with suppress(OSError):
            aside.unlink()
        raise CheckpointError(f"{path}: checkpoint cannot be written: {reason}") from None


def _keep(path: Path, kept: Path) -> None:
    """Gives the file `path` the name `kept` too; not moved, there is always one at `path`."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # the file system has no links, as exFAT and many buckets that are mounted
        shutil.copyfile(path, kept)


def previous(path: Path) -> Path:
    """Where save_checkpoint keeps the file that it replaces."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of pacecore, tensors on the CPU.

    Raises CheckpointError for a file that is missing, cut short, damaged, or not a checkpoint of
    this format. Only data is read: code in the file is refused.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            if not zipfile.is_zipfile(file):
                raise CheckpointError(f"{path}: not a checkpoint, or cut short")
        if damaged := damaged_part(path):
            raise CheckpointError(f"{path}: damaged checkpoint, {damaged} has a wrong checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many types for a broken file
        raise CheckpointError(f"{path}: checkpoint cannot be read: {unread(error)}") from None
    if not isinstance(content, dict) or content.get("pacecore") != FORMAT:
        raise CheckpointError(
            f"{path}: not a pacecore checkpoint of format {FORMAT}; see pacecore convert"
        )
    return content


def _opened(path: Path) -> BinaryIO:
    try:
        require_end(path)
        return open(path, "rb")
    except FileNotFoundError:
        last = path.with_name("last.pt")
        beside = f"; beside it is {last.name}" if last.is_file() else ""
        raise CheckpointError(f"{path}: no such checkpoint{beside}") from None
    except OSError as error:
        raise _Closed(f"{path}: checkpoint cannot be read: {error.strerror}") from None


def load_resume(folder: str, *, fall_back: bool = False) -> dict[str, Any]:
    """The last checkpoint of a run; with `fall_back`, the one before it where that is damaged."""
    path = Path(folder) / "last.pt"
    if Path(folder).is_file():
        raise CheckpointError(
            f"{folder}: a file; --resume takes a run's folder, {path.parent.parent}"
        )
    try:
        return load_checkpoint(path)
    except _Closed:  # no reason to go on with older weights
        raise
    except CheckpointError as error:
        if fall_back and previous(path).exists():
            return load_checkpoint(previous(path))
        if previous(path).exists():
            raise CheckpointError(
                f"{error}; the one before it is {previous(path)}: --resume-previous uses it"
            ) from None
        raise


def check_kind(folder: str, content: dict[str, Any], kind: str) -> None:
    """Raises CheckpointError where the run in `folder` is another verb's to go on with, or has
    entries that no run goes on from.
    """
    found, where = content.get("kind"), Path(folder) / "last.pt"
    if found not in tuple(VERBS):
        raise CheckpointError(f"{where}: kind must be one of {', '.join(VERBS)}, got {found!r}")
    if found != kind:
        raise CheckpointError(f"{where}: a run of pacecore {VERBS[found]}; resume it with that")
    for name, form in (_ENTRIES | (_OF_FINETUNE if kind == "finetune" else {})).items():
        if not isinstance(content.get(name), form):
            got = type(content.get(name)).__name__
            raise CheckpointError(
                f"{where}: not as pacecore writes it: {name} must be a {form.__name__}, got {got}"
            )
