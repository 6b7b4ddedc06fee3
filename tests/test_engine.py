import json
import math
import os
import signal
import sys
import time
from functools import partial

import pytest
import torch

from pacecore.checkpoint import CheckpointError, load_checkpoint, load_resume
from pacecore.config import TrainOptions, from_mapping
from pacecore.distributed import rank, world_size
from pacecore.engine import TrainingError, fit
from pacecore.loader import LoaderError, TrainingSchedule
from pacecore.step import learning_rate
from pacecore.train import PaceTask, pace_model
from tests.ranks import PROCESSES, run_ranks
from tests.sources import PacketSource

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "backbone": "r3d",
    "width": 0.125,
    "clip_frames": 4,
    "resize": (18, 20),
    "crop": 16,
    "batch": 3,
    "repeat": 1,
    "epochs": 2,
    "workers": 0,
    "device": "cpu",
    "log_every": 2,
    "lr": 0.01,
}
COUNTS = (30, 40, 50, 60, 70, 80, 90)


def run(out, *, resume=False, source=None, task=PaceTask, steady=False, **changes):
    """A tiny run; `steady` keeps batch norm at its running averages, so that parts of a batch do
    not see each other.
    """
    options = from_mapping(TrainOptions, {**TINY, "out": str(out), **changes})
    source = source or PacketSource(COUNTS)
    schedule = TrainingSchedule(
        options.sampling(), COUNTS, options.batch, options.repeat, rank(), world_size()
    )
    model = pace_model(options)
    if steady:
        model.eval().train = lambda mode=True: model
    content = load_resume(options.out) if resume else None
    held_out = None if options.held_out == "none" else PacketSource(COUNTS[:2])
    device = torch.device("cpu")
    return fit(
        task(options, model, held_out, device),
        source,
        schedule,
        options,
        device,
        identity="numbers",
        resume=content,
    )


def weights(out):
    return load_checkpoint(out / "last.pt")["model"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_run_leaves_its_record(tmp_path):
    summary = run(tmp_path / "a")
    assert summary["steps"] == 6  # 7 videos in batches of 3, two epochs
    assert summary["clips"] == 28
    assert summary["results"]["held_out_clips"] == 2 * 4 * 3
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [2, 3, 4, 6]  # every second step, and each epoch's end
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert sum("pace_accuracy" in line for line in lines) == 2
    again = load_checkpoint(tmp_path / "a" / "last.pt")
    assert again["kind"] == "pretrain"
    assert again["classes"] == ["1", "2", "3", "4"]
    assert again["options"]["lr"] == 0.01


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 2)])
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path, before, after):
    run(tmp_path / "whole", workers=0)
    run(tmp_path / "parts", max_steps=2, workers=before)  # in the middle of an epoch
    changed = from_mapping(TrainOptions, {**TINY, "out": str(tmp_path / "parts")})
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["totals"]["step"] == 2
    assert changed.max_steps == 0
    run(tmp_path / "parts", resume=True, workers=after)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, max_steps=2, held_out="none")
    with pytest.raises(CheckpointError, match=r"last\.pt: a checkpoint of another model: Error"):
        run(tmp_path, resume=True, held_out="none", width=0.25)

    class Other(PaceTask):
        def __init__(self, *arguments):
            super().__init__(*arguments, kind="finetune")

    with pytest.raises(CheckpointError, match=r"a run of pacecore train; resume it with that"):
        run(tmp_path, resume=True, held_out="none", task=Other)


def test_the_seed_decides_the_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed, max_steps=2, held_out="none")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_parts_of_a_batch_give_the_whole_batchs_gradient(tmp_path):
    run(tmp_path / "whole", steady=True, max_steps=3)
    run(tmp_path / "parts", steady=True, max_steps=3, accumulate=3)
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def assert_close(one, other):
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-6), name


def _rank_run(_, out, resume=False, **changes):
    return run(out, steady=True, resume=resume, **changes)


def _first_rank_run(number, out):
    return _rank_run(number, out, held_out="none", max_steps=3)


@pytest.mark.parametrize("contrast", ["context", "pace"])
def test_two_ranks_train_as_one_process(tmp_path, contrast):
    alone = run(tmp_path / "alone", steady=True, contrast=contrast)
    results = run_ranks(partial(_rank_run, contrast=contrast), 2, tmp_path / "two")
    assert_close(weights(tmp_path / "alone"), weights(tmp_path / "two"))
    assert results[0]["clips"] == alone["clips"]
    assert results[0]["results"]["confusion"] == alone["results"]["confusion"]
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").open()
            if "loss" in line
        ]
        for name in ("alone", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class _Remembering(PaceTask):
    """Says which running averages it was measured with."""

    def evaluate(self):
        found = super().evaluate()
        return found | {
            "averages": {n: b.tolist() for n, b in self.model.named_buffers() if "mean" in n}
        }


def _remembering_run(_, out):
    return run(out, task=_Remembering)


def test_every_rank_is_measured_with_the_averages_that_are_saved(tmp_path):
    results = run_ranks(_remembering_run, 2, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    for result in results:
        averages = result["results"]["averages"]
        assert averages
        for name, values in averages.items():
            torch.testing.assert_close(torch.tensor(values), saved[name], rtol=0, atol=0)


def _rank_run_without_contrast(_, out):
    return run(out, contrast="none", proj_dim=8, held_out="none")


def test_ranks_do_not_wait_for_a_projection_that_nothing_trains(tmp_path):
    results = run_ranks(_rank_run_without_contrast, 2, tmp_path / "run")
    assert results[0]["steps"] == 6


def _rank_run_of_bad(_, out, bad, **changes):
    return _rank_run(_, out, source=PacketSource(COUNTS, bad=bad), held_out="none", **changes)


def test_every_rank_knows_what_any_could_not_read(tmp_path):
    results = run_ranks(_rank_run_of_bad, 2, tmp_path / "run", {1, 5})
    for result in results:
        assert set(result["unreadable"]) == {"video-1.avi", "video-5.avi"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    left_out = [line for line in lines if line.get("event") == "left out"]
    assert left_out  # three videos a step are shares of one and two: one of them had none
    assert left_out[0]["reason"] == "a rank has no video of it that can be read"
    with pytest.raises(Exception, match=r"max_bad = 1 videos.* video-\d.avi: .*cut short"):
        run_ranks(partial(_rank_run_of_bad, max_bad=1), 2, tmp_path / "no", {1, 5})


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    run(tmp_path / "alone", steady=True, held_out="none")
    run_ranks(_first_rank_run, 2, tmp_path / "changing")
    run(tmp_path / "changing", steady=True, held_out="none", resume=True)
    assert_close(weights(tmp_path / "alone"), weights(tmp_path / "changing"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Exploding(PaceTask):
        def loss(self, outputs, batch):
            loss, metrics = super().loss(outputs, batch)
            return (loss * float("nan") if batch.number == 4 else loss), metrics

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, task=Exploding)
    words = str(caught.value)
    assert words.startswith("step 5: the loss is nan; the last good checkpoint is")
    assert "video-" in words
    assert load_checkpoint(tmp_path / "last.pt")["totals"]["step"] == 3


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Broken(PaceTask):
        def loss(self, outputs, batch):
            loss, metrics = super().loss(outputs, batch)
            if batch.number == 4:  # adds 0, with a gradient of infinity times 0
                loss = loss + (0 * outputs[0]).abs().sum().sqrt()
            return loss, metrics

    with pytest.raises(TrainingError, match=r"step 5: the weights are not finite any more \(") as e:
        run(tmp_path, task=Broken, save_minutes=0)
    assert f"the last good checkpoint is {tmp_path / 'last.pt'}" in str(e.value)
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["totals"]["step"] == 4
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_a_fresh_run_leaves_no_lines_of_one_that_broke_off_before_it_saved(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 70, "lo')
    run(tmp_path, held_out="none")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert 9.0 not in [line["loss"] for line in lines]


def test_a_second_signal_stops_at_once_and_says_what_is_kept(tmp_path):
    class Signalled(PaceTask):
        def loss(self, outputs, batch):
            if batch.number == 4:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.1)  # one that comes sooner is the same request
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, batch)

    out = tmp_path / "a run"
    with pytest.raises(TrainingError) as caught:
        run(out, task=Signalled, save_minutes=0)
    assert str(caught.value) == (
        f"stopped at once after step 4, nothing saved since; the last good checkpoint is"
        f" {out / 'last.pt'}; go on with: pacecore train --resume '{out}'"
    )
    assert load_checkpoint(out / "last.pt")["totals"]["step"] == 4


def test_unreadable_videos_are_counted_and_limited(tmp_path):
    summary = run(tmp_path / "a", source=PacketSource(COUNTS, bad={1, 5}), max_bad=2)
    assert set(summary["unreadable"]) == {"video-1.avi", "video-5.avi"}
    with pytest.raises(TrainingError, match=r"more than max_bad = 1 videos.*cut short"):
        run(tmp_path / "b", source=PacketSource(COUNTS, bad={1, 5}), max_bad=1)


def test_an_unreadable_video_is_noted_once_after_a_kill(tmp_path):
    class Killed(PaceTask):
        def loss(self, outputs, batch):
            if batch.number == 1:  # video 1's, noted by now
                raise OSError("killed")
            return super().loss(outputs, batch)

    options = {"source": PacketSource(COUNTS, bad={1}), "save_minutes": 0, "held_out": "none"}
    with pytest.raises(OSError, match="killed"):
        run(tmp_path, task=Killed, **options)
    assert load_checkpoint(tmp_path / "last.pt")["totals"]["step"] == 1
    run(tmp_path, resume=True, **options)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if line.get("event") == "unreadable"] == [2]


def test_a_step_that_could_not_be_measured_is_measured_after_a_resume(tmp_path):
    class Unmeasured(PaceTask):
        def evaluate(self):
            raise LoaderError("decoding stopped: a worker was killed by SIGKILL")

    run(tmp_path, max_steps=2, held_out="none")
    words = f"SIGKILL; the last good checkpoint is {tmp_path / 'last.pt'}; go on with"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path, task=Unmeasured, resume=True)
    run(tmp_path, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "pace_accuracy" in line] == [3, 6]


def test_the_disk_has_the_lines_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noting(number):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noting)
    run(tmp_path, max_steps=2, held_out="none")
    assert synced[-2:] == ["metrics.jsonl", "last.pt.part"]


def test_learning_rates_are_functions_of_the_step():
    step = from_mapping(TrainOptions, {})
    rates = [learning_rate(step, epoch * 10, 10, 180) for epoch in range(18)]
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 6 + [1e-5] * 6)
    cosine = from_mapping(TrainOptions, {"schedule": "cosine", "warmup_steps": 10})
    assert learning_rate(cosine, 0, 10, 100) == pytest.approx(1e-4)
    assert learning_rate(cosine, 50, 10, 100) == pytest.approx(5e-4)
    assert learning_rate(cosine, 99, 10, 100) < 1e-6


def test_a_signal_in_the_last_step_stops_nothing(tmp_path):
    class Signalled(PaceTask):
        def loss(self, outputs, batch):
            if batch.number == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, batch)

    assert run(tmp_path, task=Signalled, held_out="none")["steps"] == 6


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
    process = start(tmp_path)
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 3
    words = (tmp_path / "stopped").read_text()
    step = load_checkpoint(tmp_path / "last.pt")["totals"]["step"]
    assert words.startswith(f"stopped by SIGTERM after step {step} of 24, saved; go on with:")
    assert words.endswith(f"pacecore train --resume {tmp_path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_while_a_video_hangs_saves_and_ends(tmp_path, workers):
    options = {"save_minutes": 60, "epochs": 2, "workers": workers}
    process = start(tmp_path, HangingSource(COUNTS), **options)
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(1)  # by now it waits
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 3
    _assert_ends_as_if_nothing_had_happened(tmp_path, "stopped by SIGTERM")


def test_a_worker_that_dies_costs_no_step(tmp_path):
    options = {"save_minutes": 60, "epochs": 2, "workers": 1}
    process = start(tmp_path, DyingSource(COUNTS), **options)
    process.join(60)
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
        process.join(60)
        assert process.exitcode == 0
    assert_same(weights(out / "whole"), weights(out))


def test_killed_at_random_moments_the_run_ends_as_if_nothing_had_happened(tmp_path):
    process, began = start(tmp_path / "whole"), time.monotonic()
    process.join(120)
    assert process.exitcode == 0
    length = time.monotonic() - began
    whole = weights(tmp_path / "whole")
    kills, runs, moment = 0, 0, 0.13
    while kills < 20:
        out, runs, ended = tmp_path / f"killed-{runs}", runs + 1, None
        while ended is None:
            process = start(out)
            moment = (moment * 7.31) % 1  # spread over the run, the same in every test run
            process.join(max(0.05, moment * length / 4) if kills < 20 else 120)
            ended = process.exitcode
            if ended is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
        assert ended == 0
        assert_same(whole, weights(out))
