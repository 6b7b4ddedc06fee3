"""What a run counts and averages between two lines of its log."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pacecore.distributed import all_reduce_sum, world_size

__all__ = ["Meter", "NotFinite", "Totals"]


@dataclass
class Totals:
    """Counts that go on over a resume."""

    step: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    measured_seconds: float = 0.0  # on held-out videos

    @property
    def _training_seconds(self) -> float:
        return max(self.seconds - self.measured_seconds, 1e-9)

    @property
    def clips_per_second(self) -> float:
        """While training."""
        return self.clips / self._training_seconds

    @property
    def waiting_share(self) -> float:
        """Of the time of training, what went by waiting for data."""
        return self.waited_seconds / self._training_seconds


class NotFinite(ArithmeticError):
    """The loss of step `step`, from 0, is not a finite number; in words it counts from 1."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"step {step + 1}: the loss is {loss}")
        self.step = step


class Meter:
    """Keeps losses and figures on the device until they are read: reading one waits for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self._window: list[tuple[int, Tensor, dict[str, Tensor], int]] = []

    def add(self, step: int, loss: Tensor, metrics: dict[str, Tensor], clips: int) -> None:
        """loss and each of `metrics`: (), detached; clips: this rank's."""
        self._window.append((step, loss, metrics, clips))

    def read(self) -> tuple[dict[str, Any], int]:
        """Means of loss and figures since the last reading, and the clips of all ranks; every rank
        must call it. ({}, 0) where nothing was added. Raises NotFinite for the first such loss.
        """
        if not self._window:
            return {}, 0
        names = list(self._window[0][2])
        rows = [
            torch.stack([loss, *(metrics[name].float() for name in names)])
            for _, loss, metrics, _ in self._window
        ]
        steps = [step for step, *_ in self._window]
        count = torch.tensor(sum(clips for *_, clips in self._window))
        self._window.clear()
        # Each rank's figures are scaled so that their mean over the ranks is the whole batch's.
        table = all_reduce_sum(torch.stack(rows).cpu(), self.device) / world_size()
        losses = table[:, 0]
        if not torch.isfinite(losses).all():
            place = int((~torch.isfinite(losses)).nonzero()[0])
            raise NotFinite(steps[place], float(losses[place]))
        means = dict(zip(names, table.mean(dim=0)[1:].tolist(), strict=True))
        clips = int(all_reduce_sum(count, self.device))
        return {"loss": float(losses.mean()), **means}, clips
