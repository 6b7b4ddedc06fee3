"""Two processes train together, one is killed: the other ends, says why, and both can resume."""

import os
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch

from pacecore import distributed, inputs
from pacecore.checkpoint import load_checkpoint
from pacecore.datasets import find_videos, probe_all
from pacecore.distributed import any_rank, join
from pacecore.errors import PacecoreError
from pacecore.train import PaceTask
from tests.ranks import PROCESSES
from tests.tiny import write_tiny
from tests.tiny_runs import assert_same, run, weights

STEPS = 12  # 7 videos in batches of 3, four epochs


def _begin(number, port):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


class Waiting(PaceTask):
    """Goes no further than to the last step but two."""

    def loss(self, outputs, batch):
        if batch.number == STEPS - 3:
            time.sleep(600)
        return super().loss(outputs, batch)


def _rank(number, port, out, victim=None):
    """Trains; `victim` does not come to the end before it is killed, however late that is."""
    _begin(number, port)
    resume, task = (out / "last.pt").exists(), Waiting if number == victim else PaceTask
    try:
        with join(torch.device("cpu")):
            run(out, resume=resume, task=task, epochs=4, held_out="none", save_minutes=0)
    except PacecoreError as error:
        (out / f"words-{number}").write_text(str(error))
        sys.exit(2)
    left = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (out / f"threads-{number}").write_text(" ".join(left))


def _meet_again_and_again(number, port, times):
    _begin(number, port)
    for _ in range(times):
        with join(torch.device("cpu")):
            assert any_rank(number == 1) == (True,)


def _count_slowly_on_one(number, port, folder):
    _begin(number, port)

    def counting(index, *_):
        time.sleep(8 * number)
        return probe_all(index, workers=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "probe_all", counting)
        with join(torch.device("cpu"), patience=timedelta(seconds=5)):
            counted, _ = inputs.open_index(find_videos(folder), 0, str(folder))
    assert [entry.num_frames for entry in counted.entries] == [20, 21]


def start(argument, target=_rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [PROCESSES.Process(target=target, args=(number, port, argument)) for number in (0, 1)]
    for process in ranks:
        process.start()
    return ranks


def finish(ranks):
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(out))
    return out


def test_no_thread_of_the_group_is_left(whole):
    """One that is may abort the process at its end, after all the work."""
    for number in (0, 1):
        threads = (whole / f"threads-{number}").read_text()
        assert threads
        assert "gloo" not in threads


def test_processes_meet_again_for_the_next_verb():
    finish(start(10, _meet_again_and_again))


def test_ranks_wait_for_the_one_whose_videos_take_long_to_count(tmp_path):
    """One may have all the videos that hang, each of which has minutes to do so."""
    for number in range(2):
        write_tiny(tmp_path / f"{number}.mp4", 0, number, 20 + number)
    finish(start(tmp_path, _count_slowly_on_one))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_which_then_resumes(tmp_path, whole, victim):
    ranks = start(tmp_path, partial(_rank, victim=victim))
    while not (tmp_path / "last.pt").exists():
        assert all(process.is_alive() for process in ranks)
        time.sleep(0.01)
    os.kill(ranks[victim].pid, signal.SIGKILL)
    survivor = ranks[1 - victim]
    survivor.join(300)
    assert survivor.exitcode == 2, "the survivor goes on, or ended without words"
    words = (tmp_path / f"words-{1 - victim}").read_text()
    assert words.startswith(f"rank {1 - victim} lost another rank, whose own words tell why: ")
    assert 0 < load_checkpoint(tmp_path / "last.pt")["totals"]["step"] < STEPS
    finish(start(tmp_path))
    assert load_checkpoint(tmp_path / "last.pt")["totals"]["step"] == STEPS
    assert_same(weights(whole), weights(tmp_path))


def test_a_rank_whose_others_do_not_come_says_so(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(distributed, "_PATIENCE", timedelta(seconds=1))
    alone = join(torch.device("cpu"), patience=timedelta(hours=2))
    with (
        pytest.raises(PacecoreError, match=r"^the processes cannot be joined: .*1/2.* joined"),
        alone,
    ):
        pass
