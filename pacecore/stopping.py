"""Signals that ask a run to stop: when they are heeded, so that nothing learnt is lost."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["REQUESTS", "Stop", "Stopped", "deferred", "stop_requests"]

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""From a user, from a scheduler, and from a terminal that is closed."""

_SAME = 1.0  # seconds


class Stopped(BaseException):
    """Ends a wait for which the run does not wait; its cause, if any, is why nothing was saved.

    No Exception, so that nothing on the way takes it for a failure of its own.
    """


class Stop:
    """Whether a run is asked to stop. A second signal stops it at once, by KeyboardInterrupt.

    One that comes within `_SAME` is the same request: `timeout` and torchrun send it to a process
    and to its group.
    """

    def __init__(self) -> None:
        self.signal = ""  # name of the one that was received
        self._since = 0.0
        self._over = False
        self._save: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return bool(self.signal)

    @contextmanager
    def saving(self, save: Callable[[], None]) -> Iterator[None]:
        """The block only waits: a request, also one from before, calls `save` and ends it there, by
        Stopped. What is waited for may hang for minutes, and schedulers kill after half of one.
        """
        self._save = save
        try:
            self._heed()
            yield
        finally:
            self._save = None

    def received(self, number: int, _: FrameType | None) -> None:
        """The handler of the signals."""
        if not self:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
            self._heed()
        elif time.monotonic() - self._since > _SAME and not self._over:
            raise KeyboardInterrupt

    def end(self) -> None:
        """Waits until the same request is not sent again: it would cut short the process's end."""
        if self:
            self._over = True
            time.sleep(max(0.0, self._since + _SAME - time.monotonic()))

    def _heed(self) -> None:
        save, waits = self._save, self and self._save
        if not waits:
            return
        self._save = None
        try:
            save()
        except Exception as error:
            raise Stopped from error
        raise Stopped


@contextmanager
def deferred() -> Iterator[None]:
    """Requests that come within the block reach their handlers after it.

    For code that is not ours and soon done. A handler that raises in the midst of it can leave a
    lock locked, of a `with` that is not in its block yet, and the process waits for it at its end.
    """
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {}
    came: list[tuple[int, FrameType | None]] = []
    try:
        if threading.current_thread() is threading.main_thread():  # the one that has signals
            for each in REQUESTS:
                handler = signal.getsignal(each)
                if callable(handler):
                    handlers[each] = handler
                    signal.signal(each, lambda *request: came.append(request))
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for request in came:
            handlers[request[0]](*request)


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Within the block REQUESTS are requests to stop; SIGHUP not where nohup has it ignored."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python lets no other thread have the signals
        return
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    old = {each: signal.signal(each, stop.received) for each in REQUESTS if each not in kept}
    try:
        yield stop
    finally:
        stop.end()
        for number, action in old.items():
            signal.signal(number, action)
