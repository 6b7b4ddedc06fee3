"""Memory of a process and of those it started."""

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["held_bytes", "resident_bytes", "watched"]


class watched:
    """`bytes`: the most that `read` gives within the block, asked every so many seconds and at its
    end.
    """

    def __init__(self, read: Callable[[], int], every_seconds: float):
        self._read, self._every_seconds = read, every_seconds

    def __enter__(self) -> "watched":
        self.bytes = self._read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(self._every_seconds):
            self.bytes = max(self.bytes, self._read())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._read())


def resident_bytes(process: int | str = "self") -> int:
    """Bytes of memory that a process has, shared pages counted whole."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def held_bytes() -> int:
    """Bytes of this process and its children; each shared page is divided among its sharers."""
    total = 0
    for process in _family(os.getpid()):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return 1024 * total


def _family(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return [process]
    return [process, *(each for child in text.split() for each in _family(int(child)))]
