"""The figures of a run between two lines of its log."""

import pytest
import torch

from pacecore.meter import Meter, NotFinite


def fed(*steps):
    """A meter that was given (step, loss, accuracy, clips) of each of `steps`."""
    meter = Meter(torch.device("cpu"))
    for number, loss, accuracy, clips in steps:
        meter.add(number, torch.tensor(loss), {"accuracy": torch.tensor(accuracy)}, clips)
    return meter


def test_figures_are_means_over_the_steps_since_the_last_reading():
    meter = fed((0, 1.0, 0.5, 6), (1, 2.0, 0.25, 6), (2, 6.0, 0.0, 4))
    assert meter.read() == ({"loss": 3.0, "accuracy": 0.25}, 16)
    assert meter.read() == ({}, 0)
    meter.add(3, torch.tensor(8.0), {"accuracy": torch.tensor(1.0)}, 6)
    assert meter.read() == ({"loss": 8.0, "accuracy": 1.0}, 6)


def test_the_first_step_of_a_loss_that_is_not_finite_is_named():
    inf, nan = float("inf"), float("nan")
    meter = fed((6, 1.0, 0.5, 6), (7, inf, 0.5, 6), (8, nan, 0.5, 6))
    with pytest.raises(NotFinite, match=r"^step 8: the loss is inf$") as caught:
        meter.read()
    assert caught.value.step == 7
