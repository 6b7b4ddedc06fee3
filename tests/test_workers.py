"""The loader's processes: signals sent to the whole group, and deaths while nobody asks."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pacecore.checkpoint import load_checkpoint
from pacecore.loader import LoaderError, load_batches
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


def group_of(leader):
    """Processes of the leader's group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


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
        "first workers": lambda: (run / "options.toml").exists() and len(group_of(process.pid)) > 1,
        "first checkpoint": (run / "last.pt").exists,
    }
    end = time.monotonic() + 120
    while not begun[when]():
        assert time.monotonic() < end, process.poll()
        time.sleep(0.005)
    for _ in range(2):  # as `timeout` does, and torchrun
        os.killpg(process.pid, sent)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    step = load_checkpoint(run / "last.pt")["totals"]["step"]
    reading, said = errors.splitlines()
    assert reading == "reading 12/12 videos, 0 s left"
    assert said == (
        f"pacecore: stopped by {sent.name} after step {step} of 15000, saved; go on with: pacecore"
        f" train --resume {run}"
    )
    assert group_of(process.pid) == []


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
