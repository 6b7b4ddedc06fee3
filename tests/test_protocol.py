"""The clips that a network is measured on, and the arithmetic that it is run in."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from pacecore import protocol
from pacecore.config import TrainOptions, from_mapping
from pacecore.protocol import ClipRunner
from tests.sources import PacketSource

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
