"""Processes that work for this one: which signals reach them, where the death of one is told, and
that none outlives its work, or this process.
"""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import TYPE_CHECKING, Any

from pacecore.errors import PacecoreError
from pacecore.files import reason_of
from pacecore.stopping import REQUESTS, deferred

if TYPE_CHECKING:  # processes that probe videos do without torch
    from torch.utils.data import DataLoader

__all__ = [
    "WorkerError", "Workers", "core_count", "end_with_parent", "of_launcher", "signals_kept",
]  # fmt: skip


def of_launcher(name: str, unset: int) -> int:
    """What torchrun sets the variable `name` to; `unset` where it is not there or empty. Raises
    PacecoreError for what is no number.
    """
    text = os.environ.get(name) or str(unset)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise PacecoreError(f"{name} must be a whole number, as torchrun sets it, got {text!r}")
    return int(text)


def core_count() -> int:
    """Cores that this process may use: a scheduler gives a job but some of the machine's."""
    return len(os.sched_getaffinity(0))


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

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # a whole exit would wait for the pipe that nobody reads any more

    threading.Thread(target=end, daemon=True).start()


_GRACE_SECONDS = 1.0  # for a process to end by itself


class WorkerError(PacecoreError):
    """A process died, or gave nothing for the DataLoader's timeout."""


class Workers:
    """The batches of a DataLoader, whose processes end with the block `with Workers(loader, made)`.

    made: gives the number of each batch, 8 bytes, when a process has made it. This process waits
    for that, where a signal may end its wait, and not within the DataLoader, where it must not.
    Raises WorkerError where a process cannot be begun.
    """

    def __init__(self, loader: "DataLoader", made: Connection) -> None:
        before = set(multiprocessing.active_children())
        previous = signal.getsignal(signal.SIGCHLD)
        try:
            with deferred(), signals_kept():
                self._batches = iter(loader)
        except (OSError, RuntimeError) as error:  # no more files, processes, memory or threads
            for process in set(multiprocessing.active_children()) - before:
                process.kill()  # SIGTERM, by which Python would end them, they do not heed yet
            raise WorkerError(f"a process for it cannot be begun: {reason_of(error)}") from None
        self._processes = set(multiprocessing.active_children()) - before
        self._timeout_seconds, self._made = loader.timeout, made
        self._numbers: Counter[int] = Counter()  # of batches made and not asked for yet
        _Deaths.keep_to_requests(previous)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        late = threading.Timer(_GRACE_SECONDS, self._kill)
        late.daemon = True
        with deferred():
            late.start()
            if self._processes:
                # Asks them to end, and waits seconds for each that hangs. Now: the traceback of
                # what ends the block may keep the batches, and of processes that were killed
                # meanwhile one may have the lock that this takes.
                self._batches.__del__()
            del self._batches
            late.cancel()
            self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def next(self, number: int) -> Any:
        """The next batch, which is `number`. Raises WorkerError for a dead or silent process."""
        if not self._processes:
            return next(self._batches)  # it is made here
        self._wait_until_made(number)
        try:
            _Deaths.asked = True
            with deferred():
                if not (reason := self._death()):  # one from before this would not be told of
                    return next(self._batches)
        except RuntimeError as error:  # what DataLoader raises for a dead or silent process
            _Deaths.asked = False
            lines = str(error).splitlines()  # of an error elsewhere its traceback, where, first
            told = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
            reason = self._death() or (told[-1:] or lines)[0]
        finally:
            _Deaths.asked = False
        raise WorkerError(reason)  # out here, where no traceback keeps the loader alive

    def _wait_until_made(self, number: int) -> None:
        end = time.monotonic() + self._timeout_seconds
        ends = [process.sentinel for process in self._processes]
        while True:
            if death := self._death():  # also of one that died since the last request
                raise WorkerError(death)
            if self._numbers[number]:
                self._numbers[number] -= 1
                return
            if not wait([self._made, *ends], max(0.0, end - time.monotonic())):
                raise WorkerError(f"timed out after {self._timeout_seconds:g} seconds")
            while self._made.poll():
                self._numbers[int.from_bytes(self._made.recv_bytes(), "little")] += 1

    def _death(self) -> str:
        """How a process has died, in words; empty while none has."""
        codes = [code for process in self._processes if (code := process.exitcode) is not None]
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
