"""Measuring a network: held-out pace accuracy, with the classes it confuses."""

from dataclasses import dataclass, field

import torch

from pacecore.distributed import all_reduce_sum, merge_over_ranks
from pacecore.protocol import ClipRunner
from pacecore.source import FrameSource

__all__ = ["PaceResult", "pace_accuracy"]


@dataclass(frozen=True)
class PaceResult:
    """Held-out pace accuracy: supplement Table 1 of the paper."""

    classes: tuple[str, ...]  # the paces, ascending
    confusion: list[list[int]]  # row: the pace shown, column: the pace predicted; counts of clips
    unreadable: dict[str, str] = field(default_factory=dict)  # file -> why it is left out

    @property
    def clips(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of clips whose pace is predicted right, 0..1; nan without clips."""
        right = sum(row[index] for index, row in enumerate(self.confusion))
        return right / self.clips if self.clips else float("nan")


def pace_accuracy(runner: ClipRunner, source: FrameSource) -> PaceResult:
    """Pace accuracy of the runner's network (clips -> logits, ...) on every video of `source`.

    Each video is shown at each of the runner's paces from evenly spaced frames whose clips fit, so
    that looping cannot give the pace away but where a video is too short for a clip of that pace.
    Over several ranks the videos are shared out and the counts added up.
    """
    count = len(runner.paces)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    for _, (logits, *_) in runner.run(source):
        predicted = logits.argmax(dim=1).view(count, runner.clips).cpu()  # a row for each pace
        confusion += torch.stack([torch.bincount(row, minlength=count) for row in predicted])
    confusion = all_reduce_sum(confusion, runner.device)
    names = tuple(map(str, runner.paces))
    return PaceResult(names, confusion.tolist(), merge_over_ranks(runner.unreadable))
