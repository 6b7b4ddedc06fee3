"""The 10-clip protocol of action recognition, and the verb `test` (section 4.1 of the paper).

probability of a video = mean over its clips of softmax(logits of the clip)
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pacecore.config import TestOptions, taken
from pacecore.device import pick_device, trusted
from pacecore.distributed import all_reduce_sum, is_main, join, merge_over_ranks
from pacecore.errors import PacecoreError
from pacecore.evaluate import pace_accuracy
from pacecore.files import write_json, write_json_lines
from pacecore.index import BadVideo, none_readable
from pacecore.inputs import identity_of, learned_from
from pacecore.protocol import PATIENCE, ClipRunner, labels_of, open_measured, out_folder, ready
from pacecore.runs import replaced_by
from pacecore.source import FrameSource
from pacecore.trained import Trained, require_trained

__all__ = ["ActionResult", "bootstrap_interval", "head_labels", "measure_actions", "run_test"]


@dataclass(frozen=True, eq=False)
class ActionResult:
    """Scores of a network on labelled videos: N measured videos, C classes, K clips of each."""

    classes: tuple[str, ...]
    labels: np.ndarray  # (N,) int64
    paths: tuple[str, ...]
    probabilities: np.ndarray  # (N, C) float64, mean over the clips; of logits: their softmax
    clip_scores: np.ndarray  # (N, K, C) float32, logits of each clip
    unreadable: dict[str, str]

    @property
    def videos(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int64: the most probable class; of equals the first."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        return float(self.right.mean())

    @property
    def top5(self) -> float:
        return float(_in_top(self.probabilities, self.labels, 5).mean())

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64: row the true class, column the predicted one; counts of videos."""
        count = len(self.classes)
        flat = np.bincount(self.labels * count + self.predicted, minlength=count * count)
        return flat.reshape(count, count)

    @property
    def per_class(self) -> np.ndarray:
        """(C,) float64: share of each class's videos predicted right; nan where it has none."""
        confusion = self.confusion
        totals = confusion.sum(axis=1)
        return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)

    @property
    def mean_per_class(self) -> float:
        """Mean of `per_class` over the classes that have videos."""
        return float(np.nanmean(self.per_class))

    @property
    def clip_top1(self) -> float:
        return float((self.clip_scores.argmax(axis=2) == self.labels[:, None]).mean())

    @property
    def clip_top5(self) -> float:
        count = self.clip_scores.shape[1]
        flat = self.clip_scores.reshape(-1, self.clip_scores.shape[2])
        return float(_in_top(flat, np.repeat(self.labels, count), 5).mean())

    def summary(self, options: TestOptions) -> dict[str, Any]:
        """All figures, as JSON takes them; shares 0..1."""
        low, high = bootstrap_interval(self.right, options.resamples, options.seed)
        per_class = {
            name: None if np.isnan(share) else float(share)
            for name, share in zip(self.classes, self.per_class, strict=True)
        }
        return {
            "top1": self.top1,
            "top1_interval_95": [low, high],
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "clip_top1": self.clip_top1,
            "clip_top5": self.clip_top5,
            "chance": 1 / len(self.classes),
            "classes": list(self.classes),
            "videos": self.videos,
            "clips_per_video": int(self.clip_scores.shape[1]),
            "average": options.average,
            "per_class": per_class,
            "classes_without_videos": [name for name in per_class if per_class[name] is None],
            "confusion": self.confusion.tolist(),
            "unreadable": self.unreadable,
        }

    def write_predictions(self, path: Path) -> None:
        """One JSON object a line and video: path, label, prediction, probabilities, clips."""
        lines = (
            {
                "path": name,
                "label": self.classes[self.labels[row]],
                "predicted": self.classes[self.predicted[row]],
                "right": bool(self.right[row]),
                "probabilities": [round(float(p), 6) for p in self.probabilities[row]],
                "clips_predicted": [
                    self.classes[label] for label in self.clip_scores[row].argmax(axis=1)
                ],
            }
            for row, name in enumerate(self.paths)
        )
        write_json_lines(path, lines)


def _in_top(scores: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """(N,) bool: whether fewer than `count` classes stand before the true one, which of equals is
    the one with the lowest number.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return before.sum(axis=1) < count


def bootstrap_interval(
    values: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of the mean of `values` (N,), drawn anew by video.

    Raises PacecoreError for no values or no resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 1 or resamples < 1:
        got = f"{len(values)} and {resamples}"
        raise PacecoreError(f"values and resamples must be 1 or more, got {got}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 4_000_000 // len(values))  # draws held at once
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        drawn = generator.integers(0, len(values), size=(count, len(values)))
        means[first : first + count] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def head_labels(source: FrameSource, classes: tuple[str, ...], what: str) -> np.ndarray:
    """Labels (N,) of the source's videos as the head numbers its classes: matched by name.

    Raises PacecoreError, by name, for classes that the head does not know.
    """
    labels, names = labels_of(source, what), source.classes
    if not names:
        if labels.max() >= len(classes):
            raise PacecoreError(
                f"{what}: label {labels.max()} is unknown to the head, which has"
                f" {len(classes)} classes"
            )
        return labels
    number = {name: place for place, name in enumerate(classes)}
    used = [names[label] for label in np.unique(labels)]
    unknown = [name for name in used if name not in number]
    if unknown:
        raise PacecoreError(
            f"{what}: {len(unknown)} of {len(used)} classes are unknown to the head:"
            f" {', '.join(unknown[:10])}; it knows {', '.join(classes[:10])}"
            + (", ..." if len(classes) > 10 else "")
        )
    return np.array([number.get(name, -1) for name in names], dtype=np.int64)[labels]


def measure_actions(
    runner: ClipRunner,
    source: FrameSource,
    classes: tuple[str, ...],
    *,
    average: str = "softmax",
) -> ActionResult:
    """Scores of `runner`'s network (first output: logits) on all videos of `source` that can be
    read, which may be none, the same on every rank.

    average: "softmax", or "logits" as VCOP's code has it. Raises PacecoreError for another, and for
    a source that is empty, has no labels or classes unknown to the head.
    """
    if average not in ("softmax", "logits"):
        raise PacecoreError(f"average must be softmax or logits, got {average!r}")
    labels = head_labels(source, classes, "held-out videos")
    scores = torch.zeros(len(source), runner.clips, len(classes))
    read = torch.zeros(len(source), dtype=torch.int64)
    for video, outputs in runner.run(source):
        scores[video] = outputs[0].cpu()
        read[video] = 1
    scores, read = (all_reduce_sum(each, runner.device) for each in (scores, read))
    kept = read.bool()
    scores = scores[kept]
    return ActionResult(
        classes=classes,
        labels=labels[kept.numpy()],
        paths=tuple(str(source.path(int(video))) for video in kept.nonzero()),
        probabilities=video_probabilities(scores, average).numpy(),
        clip_scores=scores.numpy(),
        unreadable=merge_over_ranks(runner.unreadable),
    )


def video_probabilities(scores: Tensor, average: str) -> Tensor:
    """(N, K, C) logits of clips -> (N, C) float64 probabilities of videos."""
    scores = scores.double()
    if average == "softmax":
        return scores.softmax(dim=2).mean(dim=1)
    return scores.mean(dim=1).softmax(dim=1)


class _Scores(nn.Module):
    """Backbone and head of a checkpoint: clips -> (logits,)."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.backbone, self.head = trained.backbone, trained.head

    def forward(self, clips: Tensor) -> tuple[Tensor]:
        features = self.backbone(clips)
        # A probe's head takes large means off small deviations, of which bf16 would keep little.
        with torch.autocast(features.device.type, enabled=False):
            return (self.head(features.float()),)


def run_test(
    trained: Trained,
    options: TestOptions,
    tell: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Tests a checkpoint and returns its figures: of actions by the 10-clip protocol, of a
    pre-trained one the held-out pace accuracy.

    Writes test.json and, of actions, predictions.jsonl into options.out; `replaced`, only returned,
    says what result on other videos stood there. tell: gets the figures before they are written,
    so that a full disk does not lose them; nor does what it raises. Raises PacecoreError for input
    that cannot be used, and where the files cannot be written.
    """
    options = taken("test", options, TestOptions)
    require_trained("test", trained)
    trained.require_head()
    device = pick_device(options.device)
    with join(device, patience=PATIENCE):
        data = open_measured(trained, options)
        if data.held_out is None:
            what = options.data or "the data"
            raise PacecoreError(f"{what}: no held-out video to test on; --held-out names others")
        if is_main():  # before the measuring, which a folder that cannot be made would lose
            folder = out_folder(trained, options)
        options = trusted(options, device, measures=trained.options)
        model = ready(_Scores(trained), device)
        each = {"clips": options.clips, "batch_clips": options.batch_clips}
        runner = ClipRunner.of(model, model, trained.options, options, device, "test", **each)
        if trained.kind == "pretrain":
            figures = _test_pace(runner, data.held_out)
            predictions = None
        else:
            predictions = measure_actions(
                runner, data.held_out, trained.classes, average=options.average
            )
            if not predictions.videos:
                raise _none_read(data.held_out, predictions.unreadable)
            figures = predictions.summary(options)
        result = {
            "kind": trained.kind,
            "checkpoint": str(trained.path),
            "step": trained.step,
            "data": options.data or trained.options.data or "demo set",
            "data_words": data.words,
            "identity": data.identity,
            "videos_identity": identity_of(
                (data.held_out.path(n), data.held_out.num_frames(n))
                for n in range(len(data.held_out))
            ),
            "device": str(device),
            "measured_with": asdict(options),
            **figures,
            "unreadable": {**dict(data.unreadable), **figures["unreadable"]},
            "videos_learned_from": learned_from(trained.trainings(), data.held_out),
            "trained_with": asdict(trained.options),
            "pretrained": trained.pretrained,
        }
        replaced = ""
        try:
            tell(result)
        finally:
            if is_main():
                replaced = replaced_by(result, folder / "test.json")
                if predictions:
                    predictions.write_predictions(folder / "predictions.jsonl")
                write_json(folder / "test.json", result)  # last: with it all is there
        return {**result, "replaced": replaced}


def _none_read(source: FrameSource, unreadable: dict[str, str]) -> PacecoreError:
    bad = [BadVideo(*each) for each in unreadable.items()]
    return PacecoreError(f"held-out videos: {none_readable(len(source), bad)}")


def _test_pace(runner: ClipRunner, source: FrameSource) -> dict[str, Any]:
    paces = runner.options.sampling().classes
    found = pace_accuracy(replace(runner, paces=paces), source)
    if not found.clips:
        raise _none_read(source, found.unreadable)
    return {
        "pace_accuracy": found.accuracy,
        "chance": 1 / len(found.classes),
        "classes": list(found.classes),
        "confusion": found.confusion,
        "clips": found.clips,
        "videos": found.clips // (len(paces) * runner.clips),
        "unreadable": found.unreadable,
    }
