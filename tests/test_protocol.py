"""The videos and clips that a network is measured on, and the arithmetic that it is run in."""

import os
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pacecore import protocol
from pacecore.config import MeasureOptions, TrainOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.protocol import ClipRunner, open_measured
from pacecore.trained import load_trained
from tests.sources import PacketSource
from tests.tiny import pretrained, write_tiny
from tests.trees import tree

CPU = torch.device("cpu")
OPTIONS = from_mapping(TrainOptions, {"resize": (18, 20), "crop": 16, "clip_frames": 4})


@pytest.fixture
def requests(monkeypatch):
    """What a pass asks for; nothing is decoded."""
    asked = []

    def loaded(source, plan, numbers, **_):
        asked.extend(request for number in numbers for request in plan(number))
        yield from ()

    monkeypatch.setattr(protocol, "load_batches", loaded)
    return asked


def test_clips_of_every_pace_fit_the_video_and_reach_its_end(requests):
    lengths = (30, 14, 13)
    paces = tuple(map(Fraction, (1, 2, 4)))  # at the last a clip takes 13 frames
    runner = ClipRunner(None, OPTIONS, CPU, paces=paces, clips=3)
    assert list(runner.run(PacketSource(lengths))) == []
    assert [request.video for request in requests] == [0, 1, 2]
    for request in requests:
        assert [plan.pace for plan in request.plans] == [pace for pace in paces for _ in range(3)]
        assert all((np.diff(plan.frame_numbers) == plan.pace).all() for plan in request.plans)
        for first, last in zip(request.plans[::3], request.plans[2::3], strict=True):
            assert first.frame_numbers[0] == 0
            assert last.frame_numbers[-1] == lengths[request.video] - 1


@pytest.mark.parametrize("boundary", ["restart", "modulo", "clamp"])
def test_shorter_videos_loop_however_the_training_went_on(requests, boundary):
    """Of the 10-clip protocol; pace accuracy is of clips as the training saw them."""
    options, clamped = replace(OPTIONS, boundary=boundary), boundary == "clamp"
    list(ClipRunner(None, options, CPU, clips=2).run(PacketSource((3,))))
    assert [plan.frame_numbers.tolist() for plan in requests[0].plans] == [[0, 1, 2, 0]] * 2
    requests.clear()
    paces = (Fraction(1), Fraction(2))
    list(ClipRunner(None, options, CPU, paces=paces, clips=1).run(PacketSource((3,))))
    ends = [plan.frame_numbers[-1] for plan in requests[0].plans]
    assert ends[0] == (2 if clamped else 0)


def test_one_clip_of_a_video_is_of_its_middle(requests):
    lengths = (30, 29)
    runner = ClipRunner(None, OPTIONS, CPU, paces=tuple(map(Fraction, (1, 2))), clips=1)
    assert list(runner.run(PacketSource(lengths))) == []
    for request in requests:
        for plan in request.plans:
            before = plan.frame_numbers[0]
            after = lengths[request.video] - 1 - plan.frame_numbers[-1]
            assert before in (after, after - 1)
    assert [len(request.plans) for request in requests] == [2, 2]


@pytest.mark.parametrize(("amp", "kind"), [(False, torch.float32), (True, torch.bfloat16)])
def test_bf16_is_that_of_the_option(amp, kind):
    kinds = []

    def model(clips):
        kinds.append(torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype)
        return (clips.mean(dim=(2, 3, 4)),)

    runner = ClipRunner(model, OPTIONS, CPU, clips=1, amp=amp, workers=0)
    ((video, (means,)),) = runner.run(PacketSource((30,)))
    assert (video, kinds, means.dtype) == (0, [kind], torch.float32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("A", "2", "B")),
        ({"fold": "3"}, ("A", "3", "B")),
        ({"held_out": "C"}, ("A", "2", "C")),
        ({"data": "D"}, ("D", "2", "auto")),
    ],
)
def test_what_is_not_said_of_the_videos_is_as_in_the_checkpoints_training(
    tmp_path, monkeypatch, given, expected
):
    opened = []

    def noting(options, *, trains):
        assert not trains
        opened.append(options)
        return SimpleNamespace(identity="", words="")

    monkeypatch.setattr(protocol, "open_inputs", noting)
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, "A/a.mp4", "B/b.mp4")
    path = pretrained(tmp_path / "last.pt", data="A", fold="2", held_out="B")
    open_measured(load_trained(path), MeasureOptions(**given))
    assert [(each.data, each.fold, each.held_out) for each in opened] == [expected]


def test_only_what_has_no_held_out_videos_is_measured_without(tmp_path, monkeypatch):
    """Not a folder whose name is a video's ending, nor one video where others are held out."""
    for number, name in enumerate(("train/a.mp4", "test/b.mp4")):
        write_tiny(tmp_path / "mp4" / name, 0, number, 20)
    monkeypatch.chdir(tmp_path)
    trained, one = load_trained(pretrained(tmp_path / "last.pt")), "mp4/train/a.mp4"
    for options in (MeasureOptions(data="mp4"), MeasureOptions(data=one, held_out="mp4")):
        assert open_measured(trained, options).held_out.path(0).name == "b.mp4"
    assert open_measured(trained, MeasureOptions(data=one)).held_out is None


def test_the_videos_of_a_checkpoint_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    """A folder of the same name may lie there too."""
    here, there = tmp_path / "here", tmp_path / "there"
    tree(here, "videos/other.mp4")
    write_tiny(there / "videos" / "own.mp4", 0, 0, 20)
    path = pretrained(there / "runs" / "one" / "last.pt", data="videos", out="runs/one")
    for folder, data in ((here, str(there / "videos")), (there, "videos")):
        monkeypatch.chdir(folder)
        trained = load_trained(os.path.relpath(path))
        assert trained.options.data == data
        assert open_measured(trained, MeasureOptions()).train.path(0).name == "own.mp4"
    assert load_trained(path.rename(here / "last.pt")).options.data == "videos"
    pretrained(there / "inside" / "last.pt", data="../videos", out=".")
    assert load_trained("inside/last.pt").options.data == str(there / "inside/../videos")
    assert capsys.readouterr().out == ""
    open_measured(replace(trained, identity="another"), MeasureOptions())
    assert "was trained on other videos than these: 1 training videos" in capsys.readouterr().out


def test_of_a_checkpoint_whose_videos_are_gone_it_says_whose_they_are(tmp_path):
    def found(stored_as="auto", **given):
        trained = load_trained(pretrained(tmp_path / "last.pt", data=data, held_out="auto"))
        stored = replace(trained.options, held_out=stored_as)
        return open_measured(replace(trained, options=stored), MeasureOptions(**given))

    data = str(tmp_path / "gone")
    words = "last.pt: its videos are not there any more, '{}'; name with {} where they are now$"
    with pytest.raises(PacecoreError, match=words.format(data, "DATA")):
        found()
    data = str(tmp_path / "there")
    write_tiny(tmp_path / "there" / "one.mp4", 0, 0, 20)
    with pytest.raises(PacecoreError, match=words.format("elsewhere", "--held-out")):
        found("elsewhere")
    assert found("elsewhere", held_out="none").held_out is None
    with pytest.raises(PacecoreError, match=r"^nowhere: no such file or folder$"):
        found(data="nowhere")
