"""Processes that work for this one: which signals reach them, where the death of one is told, and
that none outlives its work, or this process.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from pacecore.errors import PacecoreError
from pacecore.stopping import REQUESTS

if TYPE_CHECKING:  # processes that probe videos do without torch
    from torch.utils.data import DataLoader

__all__ = ["WorkerError", "Workers", "core_count", "end_with_parent", "signals_kept"]


def core_count() -> int:
    """Cores that this process may use: a scheduler gives a job but some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def signals_kept() -> Iterator[None]:
    """Processes that start within the block leave requests to stop to this one.

    Terminals, schedulers and `timeout` send them to the whole group; what this process still has to
    save would be lost with the workers, and each of them would have a traceback to print.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent() -> None:
    """Called in a worker: it ends at once when its parent has ended, of whatever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # a whole exit would wait for the pipe that nobody reads any more

    threading.Thread(target=wait, daemon=True).start()


class WorkerError(PacecoreError):
    """A process died, or gave nothing for the DataLoader's timeout."""


class Workers:
    """The batches of a DataLoader, whose processes end with the block `with Workers(loader)`."""

    def __init__(self, loader: "DataLoader") -> None:
        before = set(multiprocessing.active_children())
        previous = signal.getsignal(signal.SIGCHLD)
        with signals_kept():
            self._batches = iter(loader)
        self._processes = set(multiprocessing.active_children()) - before
        _Deaths.keep_to_requests(previous)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        del self._batches  # asks the processes to end, and waits a while
        for process in self._processes:
            process.kill()

    def next(self) -> Any:
        """The next batch; None after the last. Raises WorkerError for a dead or silent process."""
        try:
            _Deaths.asked = True
            reason = self._death()  # of one that died since the last request
            if not reason:
                return next(self._batches, None)
        except RuntimeError as error:  # what DataLoader raises for a dead or silent process
            _Deaths.asked = False
            lines = str(error).splitlines()  # of an error elsewhere its traceback, where, first
            told = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
            reason = self._death() or (told[-1:] or lines)[0]
        finally:
            _Deaths.asked = False
        raise WorkerError(reason)  # out here, where no traceback keeps the loader alive

    def _death(self) -> str:
        """How a process has died, in words; empty while none has."""
        codes = [process.exitcode for process in self._processes if process.exitcode]
        if not codes:
            return ""
        code = codes[0]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"a worker {how}"


class _Deaths:
    """Stands for DataLoader's handler of SIGCHLD, which raises in the midst of whatever this
    process is doing, a step of training say, and lets it only while a batch is asked for.
    """

    asked = False

    def __init__(self, raising: Callable[[int, FrameType | None], None], previous: Any) -> None:
        self._raising, self._previous = raising, previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._raising(number, frame)
        elif callable(self._previous):
            self._previous(number, frame)

    @classmethod
    def keep_to_requests(cls, previous: Any) -> None:
        """previous: the handler before this DataLoader, which sets its own once a process."""
        theirs = signal.getsignal(signal.SIGCHLD)
        is_set = getattr(theirs, "__module__", "").startswith("torch.utils.data.")
        if is_set and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, cls(theirs, None if theirs is previous else previous))
