"""Requests to stop: which signals are, and that a second one stops at once."""

import signal
import threading

import pytest

from pacecore.stopping import REQUESTS, deferred, stop_requests


@pytest.fixture(autouse=True)
def handlers():
    """Whatever this process was started with, as under nohup, and as they were afterwards."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in REQUESTS}
    yield
    for each, action in before.items():
        signal.signal(each, action)


@pytest.mark.parametrize("sent", REQUESTS, ids=lambda sent: sent.name)
def test_a_signal_is_noted_and_its_repetition_within_a_second_too(sent):
    with stop_requests() as stop:
        assert not stop
        signal.raise_signal(sent)
        signal.raise_signal(sent)
        assert stop.signal == sent.name
        stop._since -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(sent)
    assert signal.getsignal(sent) is signal.SIG_DFL


def test_a_closed_terminal_is_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_same_request_sent_again_finds_the_run_ending():
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the process would have ended"))
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        again = threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM])
        again.start()
    again.join()
    assert stop


def test_a_request_within_code_that_is_not_ours_comes_after_it():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []

    def interrupted():
        with deferred():
            signal.raise_signal(signal.SIGINT)
            done.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [signal.SIG_DFL]  # what ends the process at once still does
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    thread = threading.Thread(target=lambda: done.append(deferred().__enter__()))
    thread.start()  # in which Python lets no handler be set
    thread.join()
    assert done[1:] == [None]
