"""The loader's processes: signals sent to the whole group, and deaths while nobody asks."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from pacecore.checkpoint import load_checkpoint
from pacecore.loader import LoaderError, load_batches
from pacecore.stopping import Stopped, stop_requests
from pacecore.workers import Workers
from tests.sources import PacketSource
from tests.test_loader import schedule
from tests.tiny import tiny_set

PROGRAM = "from pacecore.cli import main; main()"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("videos"))


def started(*words, output):
    """`pacecore WORDS` as the leader of a group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        stdout=output.open("w"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def processes():
    """(number, parent, group) of all that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            state, parent, group, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                yield int(path.parent.name), int(parent), int(group)


def children(process):
    return [number for number, parent, _ in processes() if parent == process]


def group_of(leader):
    return [number for number, _, group in processes() if group == leader]


def all_end(leader):
    end = time.monotonic() + 60
    while group_of(leader) and time.monotonic() < end:
        time.sleep(0.05)
    return not group_of(leader)


def is_fork(process):
    """A worker of the loader, or what reads the videos before while it still starts."""
    with suppress(OSError):
        return PROGRAM in Path(f"/proc/{process}/cmdline").read_text()
    return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
@pytest.mark.parametrize("when", ["first workers", "first checkpoint"])
def test_a_signal_to_the_whole_group_saves_and_ends_in_one_line(videos, tmp_path, sent, when):
    run = tmp_path / "run"
    options = (
        "--preset small --backbone r3d --width 0.0625 --clip-frames 8 --resize 32,40 --crop 32"
        " --epochs 1000 --save-minutes 0 --workers 2 --device cpu --held-out none"
    )
    output = tmp_path / "output"
    process = started("train", videos, "--out", run, *options.split(), output=output)
    begun = {
        "first workers": lambda: (
            (run / "options.toml").exists() and any(map(is_fork, children(process.pid)))
        ),
        "first checkpoint": (run / "last.pt").exists,
    }
    end = time.monotonic() + 120
    while not begun[when]():
        assert time.monotonic() < end, process.poll()
        time.sleep(0.005)
    for _ in range(2):  # as `timeout` does, and torchrun
        os.killpg(process.pid, sent)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    step = load_checkpoint(run / "last.pt")["totals"]["step"]
    *progress, said = errors.splitlines()
    assert "reading 12/12 videos, 0 s left" in progress
    for line in progress:  # more than one where the machine is slow
        assert re.match(r"finding the videos of |(reading|train) \d+/\d+ ", line), line
    assert said == (
        f"pacecore: stopped by {sent.name} after step {step} of 15000, saved; go on with: pacecore"
        f" train --resume {run}"
    )
    assert all_end(process.pid)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_workers_of_a_trainer_that_was_killed_are_gone_at_once(sent):
    """Also those that wait for somebody to read the batch that they hold."""
    trainer = multiprocessing.get_context("fork").Process(target=_reads_one_batch)
    trainer.start()
    end = time.monotonic() + 60
    while not (workers := children(trainer.pid)):
        assert time.monotonic() < end
    time.sleep(2)  # until it waits
    os.kill(trainer.pid, sent)
    trainer.join()
    try:
        while left := {number for number, *_ in processes()} & set(workers):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        for worker in left:
            os.kill(worker, signal.SIGKILL)


def _reads_one_batch():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    long = [70] * 2000
    plan = schedule(long, batch=2000, repeat=1)
    for _ in load_batches(PacketSource(long), plan, range(2), clip_frames=4, workers=1):
        time.sleep(600)


def test_ctrl_c_at_videos_that_are_being_read_is_one_word(videos, tmp_path):
    many = tmp_path / "many"
    for number in range(300):
        shutil.copytree(videos / "train", many / str(number))
    process = started("data", "check", many, output=tmp_path / "output")
    end = time.monotonic() + 120
    while len(group_of(process.pid)) < 2:
        assert time.monotonic() < end, process.poll()
        time.sleep(0.005)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.split() == ["decoding", "pacecore:", "stopped"]
    assert all_end(process.pid)


class DyingSource(PacketSource):
    """Ends its process at video 3, once `begun` is set."""

    def __init__(self, frame_counts):
        super().__init__(frame_counts)
        self.begun = multiprocessing.get_context("fork").Event()

    def decode(self, video, wanted):
        if video == 3:
            self.begun.wait(20)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(video, wanted)


def test_a_death_is_told_where_a_batch_is_asked_for_and_nowhere_else():
    plan = schedule()
    source = DyingSource(plan.frame_counts)
    assert 3 not in [video for _, video in plan.videos(0)]
    batches = load_batches(source, plan, range(5), clip_frames=4, workers=1)
    assert next(batches).number == 0
    (worker,) = multiprocessing.active_children()
    source.begun.set()
    state, end = "", time.monotonic() + 20
    while state != "Z":  # what stands for a step of training, in the midst of which it dies
        assert time.monotonic() < end
        state = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
    with pytest.raises(LoaderError) as caught:
        list(batches)
    assert str(caught.value) == (
        "decoding stopped: a worker was killed by SIGKILL; reading video-3.avi"
    )


def test_a_death_just_before_a_batch_is_asked_for_is_told(monkeypatch):
    """At once: the signal of it has passed by then, and the loader would wait its whole time."""
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    batches = load_batches(source, plan, range(5), clip_frames=4, workers=1, timeout_seconds=20)
    next(batches)
    wait_until_made = Workers._wait_until_made

    def dying(workers, number):
        wait_until_made(workers, number)
        (process,) = workers._processes
        process.kill()
        process.join(20)

    monkeypatch.setattr(Workers, "_wait_until_made", dying)
    began = time.monotonic()
    with pytest.raises(LoaderError, match="a worker was killed by SIGKILL; reading video-"):
        next(batches)
    assert time.monotonic() - began < 15


def test_a_request_in_the_midst_of_the_data_loader_leaves_no_lock_locked(monkeypatch):
    """The queue's, between its acquisition and the block of `with`: the end would wait for it."""
    plan, enter = schedule(), threading.Condition.__enter__
    batches = load_batches(
        PacketSource(plan.frame_counts), plan, range(5), clip_frames=4, workers=1
    )
    saved, entered = [], []

    def entering(condition):
        result = enter(condition)
        if saving and threading.get_ident() == threading.main_thread().ident:
            entered.append(condition)
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(threading.Condition, "__enter__", entering)
    with stop_requests() as stop:
        saving = False
        next(batches)
        saving = True
        with pytest.raises(Stopped), stop.saving(lambda: saved.append(stop.signal)):
            next(batches)
        saving = False
    assert entered
    assert saved == ["SIGINT"]
    for condition in entered:
        assert condition.acquire(timeout=20)
        condition.release()
    batches.close()


def test_processes_end_by_themselves_though_a_traceback_keeps_the_loader(monkeypatch):
    """One that is killed may have the lock that the loader's own end waits for, then for ever."""
    kept, begun = [], DataLoader.__iter__
    monkeypatch.setattr(
        DataLoader, "__iter__", lambda loader: kept.append(begun(loader)) or kept[0]
    )
    before = set(multiprocessing.active_children())
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    batches = load_batches(source, plan, range(5), clip_frames=4, workers=2)
    next(batches)
    processes = set(multiprocessing.active_children()) - before
    batches.close()
    assert [process.exitcode for process in processes] == [0, 0]


class FailingSource(PacketSource):
    def decode(self, video, wanted):
        raise RuntimeError("CUDA error: out of memory\nSearch for it in the manual.")


def test_why_a_thread_or_process_of_the_loader_failed_is_told():
    """torch's first line names only the place, as the thread that pins memory for a GPU."""
    plan = schedule()
    batches = load_batches(FailingSource(plan.frame_counts), plan, [0], clip_frames=4, workers=1)
    with pytest.raises(LoaderError, match=r"RuntimeError: CUDA error: out of memory; reading"):
        next(batches)


# torch's iterator that was not made to the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_cannot_be_begun_is_told_and_those_before_it_end(monkeypatch):
    """As where a machine allows no more processes; at its end Python would wait for the others."""
    real, forks, before = os.fork, [], set(multiprocessing.active_children())

    def fork():
        forks.append(None)
        if len(forks) == 2:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real()

    monkeypatch.setattr(os, "fork", fork)
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    batches = load_batches(source, plan, range(5), clip_frames=4, workers=2)
    with pytest.raises(LoaderError) as caught:
        next(batches)
    assert str(caught.value) == (
        "decoding cannot begin: a process for it cannot be begun: Resource temporarily"
        " unavailable; fewer --workers need less"
    )
    end = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before:
        assert time.monotonic() < end
        time.sleep(0.05)
