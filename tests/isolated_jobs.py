"""Jobs for processes of their own, which load no torch for them."""

import os
import signal
import time

from pacecore.errors import PacecoreError

__all__ = ["job", "process", "process_that_hangs"]


def job(what):
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "leave":
        os._exit(7)
    if what == "hang":
        time.sleep(1000)
    if what == "raise":
        raise PacecoreError("a.avi: is bad")
    return what * 2


def process(_):
    time.sleep(0.5)
    return os.getpid()


def process_that_hangs(number):
    """In the third job and those after it."""
    if number >= 2:
        time.sleep(1000)
    return os.getpid()
