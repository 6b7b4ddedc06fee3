"""What fine-tuning hands to the training loop: videos, their labels, the loss and its figures."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pacecore.finetune import finetune
from pacecore.protocol import ClipRunner

from .test_finetune import tiny_options
from .tiny import CLASSES, tiny_set

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("actions") / "set", train=4, test=1)


@pytest.fixture
def handed_over(videos, tmp_path, monkeypatch):
    """The task, and the videos to learn from, of a run with these options."""

    def begun(**changes):
        given = []
        monkeypatch.setattr(
            "pacecore.finetune.fit",
            lambda task, source, *_, **__: given.extend((task, source)) or {},
        )
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        finetune(tiny_options(videos, out, val_share=0.25, **changes))
        return given

    return begun


def paths(source):
    return {source.path(video) for video in range(len(source))}


def test_each_video_has_its_own_label_and_is_in_one_part(handed_over, videos):
    task, source = handed_over()
    assert (len(source), len(task.validation)) == (9, 3)
    assert paths(source) | paths(task.validation) == set((videos / "train").rglob("*.mp4"))
    named = [CLASSES.index(source.path(video).parent.name) for video in range(len(source))]
    assert task.labels.tolist() == named


def test_the_seed_chooses_the_videos_to_validate_on(handed_over):
    one, again, other = (paths(handed_over(seed=seed)[0].validation) for seed in (1, 1, 2))
    assert one == again != other


def test_dropout_and_label_smoothing_are_those_of_the_options(handed_over):
    task, _ = handed_over(dropout=0.3, label_smoothing=0.2)
    assert [m.p for m in task.model.modules() if isinstance(m, torch.nn.Dropout)] == [0.3]
    logits, numbers = torch.randn(4, 3), torch.tensor([8, 0, 5, 3])
    loss, _ = task.loss((logits,), SimpleNamespace(videos=numbers))
    expected = cross_entropy(logits, task.labels[numbers], label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kept", [True, False])
def test_the_network_computes_maps_again_where_that_is_asked_for(handed_over, kept):
    task, _ = handed_over(checkpointing=kept)
    assert task.model.backbone.checkpointing is kept


def test_the_best_is_chosen_by_videos_not_by_their_clips(handed_over, monkeypatch):
    """Each is right by four sure clips of ten, and six that lean to another class."""

    def given(runner, source):
        for video in range(len(source)):
            scores, label = torch.zeros(10, len(CLASSES)), source.label(video)
            scores[:4, label], scores[4:, (label + 1) % 3] = 9.0, 1.0
            yield video, (scores,)

    task, _ = handed_over()
    monkeypatch.setattr(ClipRunner, "run", given)
    results = task.evaluate(lambda: None)
    assert results[task.chosen_by] == results["val_accuracy"] == 1.0
    assert results["val_clip_accuracy"] == pytest.approx(0.4)
