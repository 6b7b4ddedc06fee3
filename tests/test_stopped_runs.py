"""Runs that a signal, a dead worker or a kill ends: nothing is lost, and they go on alike."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from pacecore.checkpoint import load_checkpoint
from pacecore.engine import TrainingError
from pacecore.loader import LoaderError
from pacecore.train import PaceTask
from tests.ranks import PROCESSES
from tests.sources import PacketSource
from tests.tiny_runs import COUNTS, assert_same, run, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("step", [4, 0])
def test_a_second_signal_stops_at_once_and_says_what_is_kept(tmp_path, step):
    class Signalled(PaceTask):
        def loss(self, outputs, batch):
            if batch.number == step:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.1)  # one that comes sooner is the same request
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, batch)

    out = tmp_path / "a run"
    with pytest.raises(TrainingError) as caught:
        run(out, task=Signalled, save_minutes=0)
    kept = "nothing was saved yet"
    if step:
        kept = f"the last good checkpoint is {out / 'last.pt'}; go on with: pacecore train --resume"
        kept += f" '{out}'"
        assert load_checkpoint(out / "last.pt")["totals"]["step"] == step
    assert str(caught.value) == f"stopped at once after step {step}, nothing saved since; {kept}"


def _signalled(number, sent):
    """A task whose run is sent a signal in the step of batch `number`."""

    class Signalled(PaceTask):
        def loss(self, outputs, batch):
            if batch.number == number:
                os.kill(os.getpid(), sent)
            return super().loss(outputs, batch)

    return Signalled


def test_a_signal_in_the_last_step_stops_nothing(tmp_path):
    assert run(tmp_path, task=_signalled(5, signal.SIGINT), held_out="none")["steps"] == 6


def _measured(out):
    """The steps that the log has results of."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    return [line["step"] for line in lines if "pace_accuracy" in line]


def _asking(number):
    """A task whose run is asked to stop while it is measured for time `number`."""

    class Asking(PaceTask):
        times = 0

        def evaluate(self, between):
            self.times += 1
            if self.times == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(between)

    return Asking


@pytest.mark.parametrize(("number", "step"), [(1, 3), (2, 6)])
def test_a_signal_ends_the_measuring_which_is_done_after_a_resume(tmp_path, number, step):
    run(tmp_path / "whole")
    out = tmp_path / "run"
    words = (
        f"^stopped by SIGTERM after step {step} of 6, saved; go on with: pacecore train --resume"
    )
    with pytest.raises(TrainingError, match=words):
        run(out, task=_asking(number), save_minutes=60)
    assert _measured(out) == [3, 6][: number - 1]
    assert load_checkpoint(out / "last.pt")["totals"]["step"] == step
    summary = run(out, resume=True)
    assert _measured(out) == [3, 6]
    assert_same(weights(tmp_path / "whole"), weights(out))
    assert summary["results"] == load_checkpoint(out / "last.pt")["results"]
    assert "pace_accuracy" in summary["results"]


def test_a_signal_in_the_last_step_of_an_epoch_does_not_wait_for_the_measuring(tmp_path):
    with pytest.raises(TrainingError, match=r"^stopped by SIGTERM after step 3 of 6, saved"):
        run(tmp_path, task=_signalled(2, signal.SIGTERM))
    assert _measured(tmp_path) == []
    run(tmp_path, resume=True)
    assert _measured(tmp_path) == [3, 6]


def test_what_is_killed_while_it_is_measured_is_measured_after_a_resume(tmp_path):
    class Killed(PaceTask):
        def evaluate(self, between):
            super().evaluate(between)
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        run(tmp_path, task=Killed, save_minutes=60)
    assert load_checkpoint(tmp_path / "last.pt")["totals"]["step"] == 3
    run(tmp_path, resume=True)
    assert _measured(tmp_path) == [3, 6]


def test_a_step_that_could_not_be_measured_is_measured_after_a_resume(tmp_path):
    class Unmeasured(PaceTask):
        def evaluate(self, _):
            raise LoaderError("decoding stopped: a worker was killed by SIGKILL")

    words = f"SIGKILL; the last good checkpoint is {tmp_path / 'last.pt'}; go on with"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, task=Unmeasured)
    run(tmp_path, resume=True)
    assert _measured(tmp_path) == [3, 6]


class HangingSource(PacketSource):
    """Video 3 does not come."""

    def decode(self, video, wanted):
        if video == 3:
            time.sleep(600)
        return super().decode(video, wanted)


class DyingSource(PacketSource):
    """Video 3 kills its worker."""

    def decode(self, video, wanted):
        if video == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(video, wanted)


def _long_run(out, source=None, **changes):
    torch.set_num_threads(1)
    options = {"epochs": 8, "save_minutes": 0, "held_out": "none", **changes}
    try:
        run(out, resume=(out / "last.pt").exists(), source=source, **options)
    except TrainingError as error:
        (out / "stopped").write_text(str(error))
        sys.exit(3)


def start(out, *args, **changes):
    process = PROCESSES.Process(target=_long_run, args=(out, *args), kwargs=changes)
    process.start()
    return process


def test_sigterm_saves_and_ends_in_words(tmp_path):
    process = start(tmp_path, epochs=1000)
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(300)
    assert process.exitcode == 3
    words = (tmp_path / "stopped").read_text()
    step = load_checkpoint(tmp_path / "last.pt")["totals"]["step"]
    assert words.startswith(f"stopped by SIGTERM after step {step} of 3000, saved; go on with:")
    assert words.endswith(f"pacecore train --resume {tmp_path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_while_a_video_hangs_saves_and_ends(tmp_path, workers):
    options = {"save_minutes": 60, "epochs": 2, "workers": workers}
    process = start(tmp_path, HangingSource(COUNTS), **options)
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(1)  # by now it waits
    os.kill(process.pid, signal.SIGTERM)
    process.join(300)
    assert process.exitcode == 3
    _assert_ends_as_if_nothing_had_happened(tmp_path, "stopped by SIGTERM")


def test_a_worker_that_dies_costs_no_step(tmp_path):
    options = {"save_minutes": 60, "epochs": 2, "workers": 1}
    process = start(tmp_path, DyingSource(COUNTS), **options)
    process.join(300)
    assert process.exitcode == 3
    _assert_ends_as_if_nothing_had_happened(tmp_path, "decoding stopped: ")


def _assert_ends_as_if_nothing_had_happened(out, reason):
    """A run of 6 steps that was stopped in the midst for `reason`, once it has gone on."""
    words = (out / "stopped").read_text()
    step = load_checkpoint(out / "last.pt")["totals"]["step"]
    assert 0 < step < 6
    assert words.startswith(reason)
    assert f"after step {step} of 6, saved; go on with: pacecore train --resume {out}" in words
    for folder in (out, out / "whole"):
        process = start(folder, epochs=2)
        process.join(300)
        assert process.exitcode == 0
    assert_same(weights(out / "whole"), weights(out))


def test_killed_at_random_moments_the_run_ends_as_if_nothing_had_happened(tmp_path):
    process, began = start(tmp_path / "whole"), time.monotonic()
    process.join(300)
    assert process.exitcode == 0
    length = time.monotonic() - began
    whole = weights(tmp_path / "whole")
    kills, runs, moment = 0, 0, 0.13
    while kills < 20:
        out, runs, ended = tmp_path / f"killed-{runs}", runs + 1, None
        while ended is None:
            process = start(out)
            moment = (moment * 7.31) % 1  # spread over the run, the same in every test run
            process.join(max(0.05, moment * length / 4) if kills < 20 else 300)
            ended = process.exitcode
            if ended is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
        assert ended == 0
        assert_same(whole, weights(out))
