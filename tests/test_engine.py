import json
import math
import os
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pacecore import engine
from pacecore.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pacecore.config import TrainOptions, from_mapping
from pacecore.engine import TrainingError
from pacecore.step import learning_rate
from pacecore.train import PaceTask
from tests.ranks import run_ranks
from tests.sources import PacketSource
from tests.tiny_runs import COUNTS, TINY, assert_close, assert_same, run, weights

pytestmark = pytest.mark.usefixtures("one_thread")


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


class _Numbered(PaceTask):
    """Step n, from 0, has the loss n * n and the accuracy n / 10."""

    def loss(self, outputs, batch):
        number = float(batch.number)
        return 0 * outputs[0].sum() + number**2, {"accuracy": torch.tensor(number / 10)}


def test_a_line_of_the_log_has_the_means_since_the_last_also_for_tensorboard(tmp_path, monkeypatch):
    drawn = []
    writer = SimpleNamespace(add_scalar=lambda *values: drawn.append(values))
    monkeypatch.setattr("pacecore.runlog._summary_writer", lambda: lambda *_, **__: writer)
    run(tmp_path, task=_Numbered, held_out="none", tensorboard=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert [line["loss"] for line in lines] == [(0 + 1) / 2, 4, 9, (16 + 25) / 2]
    assert [line["accuracy"] for line in lines] == pytest.approx([0.05, 0.2, 0.3, 0.45])
    losses = [each for each in drawn if each[0] == "loss"]
    assert losses == [("loss", line["loss"], line["step"]) for line in lines]


def test_the_optimiser_has_the_learning_rate_of_each_step(tmp_path, monkeypatch):
    """Four steps of warm-up, and a tenth from the fourth step on, with which an epoch begins."""
    rates, step = [], torch.optim.SGD.step

    def noting(optimiser):
        rates.extend(group["lr"] for group in optimiser.param_groups)
        step(optimiser)

    monkeypatch.setattr("pacecore.step._SGD.step", noting)
    options = {"lr": 0.08, "lr_step": 1, "warmup_steps": 4, "held_out": "none", "log_every": 1}
    run(tmp_path, max_steps=2, **options)
    run(tmp_path, resume=True, **options)
    expected = pytest.approx([0.02, 0.04, 0.06, 0.008, 0.008, 0.008])
    assert rates == expected
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["lr"] for line in lines] == expected


def test_the_thousandth_epoch_is_told_as_a_number(tmp_path, capsys):
    run(tmp_path, max_steps=1, held_out="none")
    content = load_checkpoint(tmp_path / "last.pt")
    content["totals"]["step"] = 2999
    save_checkpoint(tmp_path / "last.pt", content)
    run(tmp_path, resume=True, epochs=1000)
    assert "\nepoch 1000: pace_accuracy " in "\n" + capsys.readouterr().out


def test_minutes_between_checkpoints_are_minutes(tmp_path, monkeypatch):
    now, saved = [0.0], []

    class Slow(PaceTask):
        def loss(self, outputs, batch):
            now[0] += 20.0
            return super().loss(outputs, batch)

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        engine, "save_checkpoint", lambda _, content: saved.append(content["totals"]["step"])
    )
    run(tmp_path, task=Slow, save_minutes=0.5, held_out="none")
    assert saved == [2, 3, 5, 6]  # each second step since the last, and each epoch's end


def test_batches_are_waited_for_as_long_as_the_options_say(tmp_path, monkeypatch):
    given, load = [], engine.load_batches

    def loaded(*arguments, **options):
        given.append(options["timeout_seconds"])
        return load(*arguments, **options)

    monkeypatch.setattr(engine, "load_batches", loaded)
    run(tmp_path, max_steps=1, held_out="none", decode_timeout=7.0)
    assert given == [7.0]


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


def test_a_resumed_run_replaces_the_best_by_a_better_one_alone(tmp_path, monkeypatch):
    for epochs, score, best in ((1, 0.8, 3), (2, 0.5, 3), (3, 0.9, 9)):
        monkeypatch.setattr(PaceTask, "evaluate", lambda *_, score=score: {"score": score})
        task = partial(PaceTask, chosen_by="score")
        summary = run(tmp_path, task=task, epochs=epochs, resume=epochs > 1)
        assert summary["best"] == {"step": best, "score": max(0.8, score)}
        assert load_checkpoint(tmp_path / "best.pt")["totals"]["step"] == best


def test_what_a_run_has_counted_goes_on_over_a_resume(tmp_path):
    """Clips, seconds, and the videos that may not become more than max_bad."""
    options, last = {"held_out": "none", "max_bad": 1}, tmp_path / "last.pt"
    run(tmp_path, source=PacketSource(COUNTS, bad={1}), max_steps=3, **options)
    content = load_checkpoint(last)
    seconds = {"seconds": 9000.0, "waited_seconds": 3000.0, "measured_seconds": 1000.0}
    save_checkpoint(last, {**content, "totals": content["totals"] | seconds})
    other = PacketSource(COUNTS, bad={5})
    with pytest.raises(TrainingError, match=r"^more than max_bad = 1 videos .*: video-5\.avi: "):
        run(tmp_path, source=other, resume=True, **options)
    summary = run(tmp_path, source=other, resume=True, **options | {"max_bad": 2})
    assert set(summary["unreadable"]) == {"video-1.avi", "video-5.avi"}
    assert summary["clips"] == 2 * 6 * 2  # two views of six videos an epoch
    totals = load_checkpoint(last)["totals"]
    assert all(totals[name] >= value for name, value in seconds.items())


def test_a_run_goes_on_in_another_layout(tmp_path, monkeypatch):
    """As on another device: the weights lie otherwise in memory than when the run was stopped."""
    run(tmp_path / "whole", steady=True)
    run(tmp_path / "parts", steady=True, max_steps=2)
    for module in ("backbones.tuning", "step"):
        layout = f"pacecore.{module}.memory_format"
        monkeypatch.setattr(layout, lambda *_: torch.contiguous_format)
    run(tmp_path / "parts", steady=True, resume=True)
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, max_steps=2, held_out="none")
    with pytest.raises(CheckpointError, match=r"last\.pt: a checkpoint of another model: Error"):
        run(tmp_path, resume=True, held_out="none", width=0.25)

    class Other(PaceTask):
        def __init__(self, *arguments):
            super().__init__(*arguments, kind="finetune")

    with pytest.raises(CheckpointError, match=r"a run of pacecore train; resume it with that"):
        run(tmp_path, resume=True, held_out="none", task=Other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": ["pretrain"]}, r"kind must be one of pretrain, finetune, got \['pretrain'\]"),
        ({"bad": None}, "not as pacecore writes it: bad must be a dict, got NoneType"),
        ({"optimizer": {}}, r"not as pacecore writes it: KeyError\('param_groups'\)"),
        ({"totals": {"laps": 1}}, "not as pacecore writes it: TypeError.*laps"),
    ],
)
def test_a_checkpoint_that_no_run_goes_on_from_is_named(tmp_path, changes, said):
    run(tmp_path, max_steps=1, held_out="none")
    path = tmp_path / "last.pt"
    save_checkpoint(path, load_checkpoint(path) | changes)
    with pytest.raises(CheckpointError, match=rf"last\.pt: {said}"):
        run(tmp_path, resume=True, held_out="none")


def test_every_step_is_in_training_mode_and_no_measuring_is(tmp_path):
    seen = []

    class Noting(PaceTask):
        def loss(self, outputs, batch):
            seen.append(("step", self.model.training))
            return super().loss(outputs, batch)

        def evaluate(self, between):
            seen.append(("measuring", self.model.training))
            return {}

    run(tmp_path, task=Noting)
    assert seen == [*[("step", True)] * 3, ("measuring", False)] * 2


def test_the_time_of_measuring_is_not_that_of_training(tmp_path):
    class Slow(PaceTask):
        def evaluate(self, _):
            time.sleep(0.2)
            return {}

    summary = run(tmp_path, task=Slow, epochs=2)
    assert summary["seconds"] - summary["clips"] / summary["clips_per_second"] >= 0.4


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

    def evaluate(self, between):
        found = super().evaluate(between)
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
    assert left_out[0]["reason"] == "too few of its videos can be read"
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


def test_embeddings_that_have_collapsed_are_told(tmp_path, capsys):
    class Flat(PaceTask):
        def loss(self, outputs, batch):
            logits, z = outputs
            return super().loss((logits, 1.0 + 0.0 * z), batch)

    run(tmp_path / "flat", task=Flat)
    assert (
        "warning: step 2: the embeddings have collapsed, z_spread 0.0e+00: every clip gets the same"
        in capsys.readouterr().out
    )
    run(tmp_path / "well")
    assert "collapsed, z_spread" not in capsys.readouterr().out


class _Scattering(PaceTask):
    """Needs what torch does in no fixed order, as max-pooling's gradient on CUDA until lately."""

    def loss(self, outputs, batch):
        torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))
        return super().loss(outputs, batch)


def test_what_torch_cannot_repeat_bit_for_bit_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = r"^deterministic: torch \S+ has no repeatable put_ on cpu, which r3d needs; leave"
    with pytest.raises(TrainingError, match=told):
        run(tmp_path, task=_Scattering, deterministic=True)


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


def test_unreadable_videos_are_counted_and_limited(tmp_path):
    summary = run(tmp_path / "a", source=PacketSource(COUNTS, bad={1, 5}), max_bad=2)
    assert set(summary["unreadable"]) == {"video-1.avi", "video-5.avi"}
    with pytest.raises(
        TrainingError, match=r"max_bad = 1 videos.*cut short.*nothing was saved yet"
    ):
        run(tmp_path / "b", source=PacketSource(COUNTS, bad={0, 2}), max_bad=1)
    every = PacketSource(COUNTS, bad=range(len(COUNTS)))  # it would end as if it had learned
    with pytest.raises(TrainingError, match=r"^none of the 7 videos can be read.*, saved;"):
        run(tmp_path / "c", source=every, max_bad=len(COUNTS))


def test_too_many_unreadable_videos_cost_no_step(tmp_path):
    """Those of a file server that was away can be read again when the run goes on."""
    options = {"held_out": "none", "save_minutes": 60, "max_bad": 0}
    run(tmp_path / "whole", **options)
    out = tmp_path / "away"
    words = (
        r"max_bad = 0 .*-\d.avi: cut short; after step 2 of 6, saved; go on with: pacecore train"
    )
    for resume in (False, True):
        with pytest.raises(TrainingError, match=words):
            run(out, source=PacketSource(COUNTS, bad={3, 6}), resume=resume, **options)
        assert load_checkpoint(out / "last.pt")["totals"]["step"] == 2
    run(out, resume=True, **options)
    assert_same(weights(tmp_path / "whole"), weights(out))


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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_part_of_one_clip_for_want_of_readable_videos(accumulate, tmp_path, monkeypatch):
    """Batch norm takes no single clip, if its map is of one place; no resume would get past it."""
    counts = (40,) * 4 * accumulate
    monkeypatch.setattr("tests.tiny_runs.COUNTS", counts)
    source = PacketSource(counts, bad={1})
    few = {"views": 1, "contrast": "none", "batch": 2 * accumulate, "accumulate": accumulate}
    ended = run(tmp_path, source=source, held_out="none", **few)
    assert set(ended["unreadable"]) == {"video-1.avi"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    left_out = [line["reason"] for line in lines if line.get("event") == "left out"]
    assert left_out == ["too few of its videos can be read"] * 2  # of two epochs


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
    assert [learning_rate(step, epoch * 10 + 9, 10, 180) for epoch in range(18)] == rates
    cosine = from_mapping(TrainOptions, {"schedule": "cosine", "warmup_steps": 10})
    assert learning_rate(cosine, 0, 10, 100) == pytest.approx(1e-4)
    assert learning_rate(cosine, 50, 10, 100) == pytest.approx(5e-4)
    assert learning_rate(cosine, 99, 10, 100) < 1e-6
