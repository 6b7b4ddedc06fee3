"""Memory of a process and of those it started."""

import os
import threading
from pathlib import Path

__all__ = ["held_bytes", "watched"]


class watched:
    """Most bytes that this process and those it started hold within the block; see `bytes`."""

    def __enter__(self) -> "watched":
        self.bytes = held_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self.bytes = max(self.bytes, held_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


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
