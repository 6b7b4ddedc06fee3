"""Runs of the training loop on a handful of numbered frames, and what they leave."""

import torch

from pacecore.checkpoint import load_checkpoint, load_resume
from pacecore.config import TrainOptions, from_mapping
from pacecore.distributed import rank, world_size
from pacecore.engine import fit
from pacecore.loader import TrainingSchedule
from pacecore.train import PaceTask, pace_model
from tests.sources import PacketSource

__all__ = ["COUNTS", "TINY", "assert_close", "assert_same", "run", "weights"]

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
        data={"identity": "numbers", "listed": {}},
        resume=content,
    )


def weights(out):
    return load_checkpoint(out / "last.pt")["model"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_close(one, other):
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-6), name
