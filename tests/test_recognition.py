"""What a network's scores on labelled videos come to: figures by hand, labels by name."""

import json

import numpy as np
import pytest
import torch

from pacecore.config import TestOptions
from pacecore.errors import PacecoreError
from pacecore.recognition import (
    ActionResult,
    bootstrap_interval,
    head_labels,
    video_probabilities,
)


def result_of(probabilities, labels, clip_scores=None) -> ActionResult:
    probabilities = np.array(probabilities, dtype=np.float64)
    if clip_scores is None:
        clip_scores = probabilities[:, None, :].astype(np.float32)
    return ActionResult(
        classes=tuple("abcdefg"[: probabilities.shape[1]]),
        labels=np.array(labels),
        paths=tuple(f"v{row}" for row in range(len(labels))),
        probabilities=probabilities,
        clip_scores=np.array(clip_scores, dtype=np.float32),
        unreadable={},
    )


def test_figures_by_hand():
    result = result_of(
        [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]], [0, 1, 1, 0]
    )
    assert result.top1 == 3 / 4
    assert result.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result.per_class[:2].tolist() == [1.0, 0.5]
    assert np.isnan(result.per_class[2])
    assert result.mean_per_class == 0.75
    figures = result.summary(TestOptions())
    assert figures["classes_without_videos"] == ["c"]
    assert figures["classes"] == ["a", "b", "c"]  # whose order the keys of an object do not tell
    assert figures["chance"] == 1 / 3
    low, high = figures["top1_interval_95"]
    assert low < 3 / 4 < high
    assert figures["per_class"] == {"a": 1.0, "b": 0.5, "c": None}
    json.dumps(figures, allow_nan=False)


def test_top5_counts_the_classes_before_the_true_one():
    scores = [[7, 6, 5, 4, 3, 2, 1]] * 3
    result = result_of(scores, [4, 5, 0])
    assert result.top5 == 2 / 3
    assert result.top1 == 1 / 3


def test_equal_scores_are_no_free_hit():
    result = result_of([[0.5, 0.5], [0.5, 0.5]], [0, 1])
    assert result.top1 == 0.5
    assert result_of([[1 / 7] * 7] * 7, range(7)).top5 == 5 / 7


def test_clips_stand_beside_videos():
    first, last = list(range(6, 0, -1)), list(range(6))  # which of six classes is on top
    result = result_of([first, last], [0, 5], [[first, first, last], [last, last, last]])
    assert (result.top1, result.clip_top1, result.clip_top5) == (1.0, 5 / 6, 5 / 6)


def test_softmax_and_logits_average_differ_as_they_should():
    scores = torch.tensor([[[4.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    softmax = video_probabilities(scores, "softmax")[0]
    logits = video_probabilities(scores, "logits")[0]
    high, low = 1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(3.0))
    assert softmax[0].item() == pytest.approx((high + 2 * low) / 3)
    assert logits[0].item() == pytest.approx(1 / (1 + np.exp(2 / 3)))


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).random(400) < 0.7
    low, high = bootstrap_interval(values, 4000, seed=2)
    mean, deviation = values.mean(), values.std() / 20
    assert low == pytest.approx(mean - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=0.006)
    assert bootstrap_interval(values, 4000, seed=2) == (low, high)
    assert bootstrap_interval(np.ones(5), 100) == (1.0, 1.0)
    for none in ((np.array([]), 100), (np.ones(5), 0)):
        with pytest.raises(PacecoreError, match="values and resamples must be 1 or more, got"):
            bootstrap_interval(*none)


class Labelled:
    """A source of labels alone."""

    def __init__(self, labels, classes=()):
        self.labels, self.classes = labels, classes

    def __len__(self):
        return len(self.labels)

    def label(self, video):
        return self.labels[video]

    def path(self, video):
        return f"v{video}.avi"


def test_labels_are_matched_by_the_names_of_classes():
    source = Labelled([0, 1, 1], ("jump", "clap"))
    assert head_labels(source, ("clap", "hug", "jump"), "test").tolist() == [2, 0, 0]


def test_labels_of_classes_without_names_are_the_numbers_themselves():
    assert head_labels(Labelled([2, 0, 1]), ("clap", "hug", "jump"), "test").tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Labelled([0, 1], ("jump", "fly")), "test: 1 of 2 classes are unknown to the head: fly"),
        (Labelled([0, 2]), "test: label 2 is unknown to the head, which has 2 classes"),
        (Labelled([]), "test: holds no video"),
        (Labelled([0, None]), "test: 1 of 2 videos have no label, the first v1.avi"),
    ],
)
def test_bad_labels_are_one_clear_line(source, message):
    with pytest.raises(PacecoreError, match=message) as caught:
        head_labels(source, ("jump", "hug"), "test")
    assert "\n" not in str(caught.value)
