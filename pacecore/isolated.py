"""Jobs on files that may be hostile: each in a process that can die or hang alone."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from numbers import Integral
from typing import Any

from pacecore.errors import PacecoreError
from pacecore.files import reason_of
from pacecore.workers import core_count, signals_kept

__all__ = ["JobFailure", "process_count", "run_jobs"]

_IMPORT_SECONDS = 60.0  # that a new process may take beside its first job
# Not a process of multiprocessing, which would run the script that called us once more.
_PROCESS = (
    "import sys; sys.path[:] = sys.argv[2:];"
    "from pacecore.isolated import _serve; _serve(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class JobFailure:
    """A job's process died or was ended; the reason, to be said of the job's file."""

    reason: str


def process_count(workers: int) -> int:
    """How many processes `workers` asks for: 0 and -1, as the options of other verbs have it, are
    one a core. Raises PacecoreError for another number below 1.
    """
    if not isinstance(workers, Integral) or workers < -1:
        rule = "workers must be a whole number of at least -1"
        raise PacecoreError(f"{rule}, got {workers!r}")
    return workers if workers > 0 else core_count()


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int = 0,
    timeout_seconds: float | Callable[[Any], float] = 600.0,
    jobs_each: int = 1,
) -> Iterator[tuple[int, Any]]:
    """(number of the job, function(job)) as they get done, in process_count(workers) processes, or
    fewer, so that each has `jobs_each`: short jobs are not worth the start of many.

    A job whose process dies, or that takes longer than timeout_seconds, which may be a function of
    the job, gives a JobFailure, and another process takes the place. An exception of the function
    is raised here. function and jobs must be picklable, by what modules hold, not the script that
    runs. workers=1 runs in this process, without that protection.
    """
    most = process_count(workers)
    if workers == 1:
        yield from _run_here(function, jobs)
        return
    limit = timeout_seconds if callable(timeout_seconds) else lambda _: timeout_seconds
    waiting = ((number, job, limit(job)) for number, job in enumerate(jobs))
    count = min(-(-len(jobs) // jobs_each), most)
    running = [_Worker(function) for _ in range(count)]
    try:
        busy = [worker for worker in running if worker.take(waiting)]
        while busy:
            _wait(busy)
            for worker in list(busy):
                result = worker.poll()
                if result is None:
                    continue
                yield result
                if not worker.take(waiting):
                    busy.remove(worker)
    finally:
        for worker in running:
            worker.end()


def _run_here(function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for number, job in enumerate(jobs):
        before = _torch_threads(1)
        try:
            result = function(job)
        finally:
            _torch_threads(before)
        yield number, result


def _torch_threads(count: int | None) -> int | None:
    """Sets how many threads torch takes, and gives how many it took: cores are shared out by
    process. None where no module of the job has loaded torch, which would take seconds.
    """
    torch = sys.modules.get("torch")
    if torch is None or count is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before


def _wait(busy: list["_Worker"]) -> None:
    """Until one is done, dead, or out of time."""
    first = min(worker.since + worker.limit for worker in busy)
    wait([worker.link for worker in busy], max(0.0, first - time.monotonic()) + 0.01)


class _Worker:
    """The job it is at, and a process for it: a new one after one that died."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._process = None

    def _start(self) -> None:
        self.link, other = Pipe()
        command = [sys.executable, "-c", _PROCESS, str(other.fileno()), *sys.path]
        try:
            with signals_kept(), other:  # its stdin, which nothing is written to, ends as we do
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, pass_fds=[other.fileno()]
                )
        except OSError as error:
            reason = reason_of(error)
            raise PacecoreError(f"no process can be started to read videos: {reason}") from None
        self._ready = False
        with suppress(OSError):  # it died at once, which poll finds
            self.link.send(self._function)

    def take(self, waiting: Iterator[tuple[int, Any, float]]) -> bool:
        """Begins the next job, if there is one: its number, itself, and the seconds it may take."""
        following = next(waiting, None)
        if following is None:
            return False
        if self._process is None:
            self._start()
        self._number, job, self.limit = following
        self.since = time.monotonic() + (0 if self._ready else _IMPORT_SECONDS)
        with suppress(OSError):  # it died between two jobs: poll finds it dead at this one
            self.link.send(job)
        return True

    def poll(self) -> tuple[int, Any] | None:
        """The job's number and result, once there is one."""
        try:
            said = self.link.recv() if self.link.poll() else ()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            reason = f"by signal {-code}" if code < 0 else f"with code {code}"
            return self._replaced(f"the process reading it ended {reason}")
        if said is None:  # all is imported, it begins with the job
            self._ready, self.since = True, time.monotonic()
        elif said:
            raised, result = said
            if raised:  # perhaps what a link that is closed raises too: that of a file cut short
                raise result
            return self._number, result
        if time.monotonic() - self.since > self.limit:
            return self._replaced(f"took longer than {self.limit:g} s")
        return None

    def _replaced(self, reason: str) -> tuple[int, JobFailure]:
        self.end()
        return self._number, JobFailure(reason)

    def end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self.link.close()
            self._process = None


def _serve(number: int) -> None:
    """What a process does, by the file descriptor of its link."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    link = Connection(number)
    with suppress(EOFError, ConnectionError):  # nobody is there any more
        function = link.recv()
        _torch_threads(1)
        link.send(None)
        while True:
            job = link.recv()
            try:
                result = False, function(job)
            except Exception as error:
                result = True, error
            link.send(result)


def _end_with_input() -> None:
    """Ends this process at once when the one that started it has ended, of whatever."""
    while os.read(0, 1):
        pass
    os._exit(1)
