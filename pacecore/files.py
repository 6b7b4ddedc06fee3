"""Files that are whole or not there, and folders, made or told why not."""

import errno
import fcntl
import json
import mmap
import os
import pickle
import re
import socket
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from pacecore.errors import PacecoreError

__all__ = [
    "NO_RESERVE", "aside", "damaged_part", "expanded", "for_one_process", "made_folder",
    "read_json", "read_text", "reason_of", "require_end", "safetensors", "there", "unread",
    "write_json", "write_json_lines", "write_text", "writing",
]  # fmt: skip


# Of mmap: that the kernel counts a mapping as memory by the pages written to, and not refuse one of
# more bytes than there are. Python names it from 3.13 on; this is Linux's number.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def reason_of(error: BaseException) -> str:
    """The system's words for it; torch's zip writer fails anew while it closes the file."""
    earlier: BaseException | None = error
    while earlier is not None and not isinstance(earlier, OSError):
        earlier = earlier.__cause__ or earlier.__context__
    return getattr(earlier, "strerror", None) or (str(error) or repr(error)).splitlines()[0]


def expanded(path: str | Path) -> Path:
    """As a shell has it: ~ of nobody who is there stays as it is, where Path.expanduser raises."""
    return Path(os.path.expanduser(path))


def damaged_part(path: Path) -> str | None:
    """Of a file of torch.save the first part that its checksum denies, which torch does not look
    at: its name, or None.
    """
    if not zipfile.is_zipfile(path):  # torch before 1.6 wrote no archives
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def unread(error: BaseException) -> str:
    """Why torch could not read a file, in one line; of a pickle, what would run or that it is
    broken, where Python's own words are no help.
    """
    if isinstance(error, pickle.UnpicklingError) and (
        named := re.search(r"GLOBAL (\S+)", str(error))
    ):
        return f"reading it would run code ({named[1]}), only files of plain tensors are read"
    if isinstance(error, pickle.UnpicklingError | LookupError | EOFError):
        return "its pickle is broken"
    return reason_of(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes one line of what a writer raises: PacecoreError with `path` and the reason."""
    try:
        yield
    except Exception as error:
        # torch's writer wraps the system's error, and so does safetensors', which need not be here.
        wrapped = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
        if not (wrapped or isinstance(error, OSError)):
            raise
        raise PacecoreError(f"{path}: cannot be written: {reason_of(error)}") from error


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Gives a name to write under, of the same suffix, and renames to `path`: the file is whole, or
    the old one.

    Raises PacecoreError for a `path` that is a device or a pipe, in whose place none may be put.
    """
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):
        kind = "a folder" if os.path.isdir(path) else "no file"
        raise PacecoreError(f"{path}: cannot be written: it is {kind}")
    part = path.with_name(f".{os.getpid()}.{path.name}")
    with writing(path):
        try:
            yield part
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes the file whole, in UTF-8. Raises PacecoreError, naming it, where it cannot be."""
    _write_texts(path, [text])


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    with aside(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(texts)
        file.flush()
        os.fsync(file.fileno())  # else the new name may outlast a power failure, and not the text


def write_json(path: Path, value: Any) -> None:
    """As write_text. value: what JSON can hold, and what str makes of the rest."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """As write_text: a value a line. values: what JSON can hold."""
    _write_texts(path, (json.dumps(value) + "\n" for value in values))


def require_end(path: Path) -> None:
    """Raises OSError for a pipe or a device, whose reading may not end."""
    if path.is_fifo() or path.is_char_device():
        raise OSError(errno.EINVAL, "it is no file", str(path))


def read_text(path: Path, errors: str = "strict") -> str:
    """What a file in UTF-8 holds. Raises OSError, as `require_end` does too."""
    require_end(path)
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is not there, or none."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def there(path: Path) -> bool:
    """Whether something is at `path`. Raises OSError where that cannot be told, as in a locked
    folder; Path.exists does so before Python 3.14 only.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a name with a zero
        return False
    return True


def made_folder(path: str | Path) -> Path:
    """The folder `path`, with those above it. Raises PacecoreError where it cannot be made, or
    where nothing can be written in it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PacecoreError(f"{path}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):  # told before the work, not after
        raise PacecoreError(f"{path}: cannot be written: {os.strerror(errno.EACCES)}")
    return path


@contextmanager
def for_one_process(lock: Path, doing: str) -> Iterator[None]:
    """Holds what the file `lock`, made and left there, stands for: its folder, or one other file;
    one thread of one process does.

    However the process ends, it is free again. Raises PacecoreError, naming who holds it, `doing`
    what: "is training into it".
    """
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with _for_one_thread(lock, doing):
        with writing(lock):
            lock.touch()
            opened = lock.open("r+b", buffering=0)
        with opened as file:
            try:
                # A lock of this process alone: decoding workers that outlive a kill do not have it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read().decode() or "another process"
                raise PacecoreError(f"{lock.parent}: {holder} {doing}; wait or stop it") from None
            except OSError:
                pass  # a file system without locks
            with writing(lock):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield


_held: set[str] = set()  # files of locks, by their real paths
_held_changes = threading.Lock()


@contextmanager
def _for_one_thread(lock: Path, doing: str) -> Iterator[None]:
    """The system gives a process its own lock once more, and lets it go where any thread closes the
    file: none may open it beside the one that holds it.
    """
    name = os.path.realpath(lock)
    with _held_changes:
        if name in _held:
            raise PacecoreError(f"{lock.parent}: another thread of this process {doing}; wait")
        _held.add(name)
    try:
        yield
    finally:
        with _held_changes:
            _held.remove(name)


def safetensors(kind: str, who: str | Path) -> Any:
    """safetensors.torch or .numpy. Raises PacecoreError: `who` needs it and it is not installed."""
    try:
        return import_module(f"safetensors.{kind}")
    except ImportError:
        raise PacecoreError(
            f"{who} needs the safetensors package, extra pacecore[safetensors]"
        ) from None
