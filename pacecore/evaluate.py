"""Measuring a network: held-out pace accuracy, with the classes it confuses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from pacecore.distributed import all_reduce_sum, merge_over_ranks, rank, world_size
from pacecore.loader import ClipBatch, ClipFormat, ClipRequest, load_batches
from pacecore.sampling import Sampling, centre_plan, fitting_starts
from pacecore.source import FrameSource

__all__ = ["EvenRequests", "PaceResult", "evenly_spaced", "inference", "pace_accuracy"]


@dataclass(frozen=True)
class PaceResult:
    """Held-out pace accuracy: supplement Table 1 of the paper."""

    classes: tuple[str, ...]  # the paces, ascending
    confusion: list[list[int]]  # row: the pace shown, column: the pace predicted; counts of clips
    unreadable: tuple[str, ...] = ()

    @property
    def clips(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of clips whose pace is predicted right, 0..1; nan without clips."""
        right = sum(row[index] for index, row in enumerate(self.confusion))
        return right / self.clips if self.clips else float("nan")


def evenly_spaced(count: int, clips: int) -> np.ndarray:
    """Start frames floor(linspace(0, count - 1, clips)), (clips,) int64; of one clip the middle."""
    if clips == 1:
        return np.array([(count - 1) // 2], dtype=np.int64)
    return np.linspace(0, count - 1, clips).astype(np.int64)


@dataclass(frozen=True)
class EvenRequests:
    """Batch `number`: a few videos, each at every pace and at evenly spaced starts, centre crop.

    A clip's label is the place of its pace; only videos shorter than a clip loop.
    """

    sampling: Sampling
    paces: tuple[Fraction, ...]
    frame_counts: tuple[int, ...]  # of all videos of the source
    videos: tuple[int, ...]
    starts: int  # clips of each pace
    videos_per_batch: int

    @property
    def numbers(self) -> range:
        """The batches that hold all videos."""
        return range(-(-len(self.videos) // self.videos_per_batch))

    def __call__(self, number: int) -> list[ClipRequest]:
        first = number * self.videos_per_batch
        chosen = self.videos[first : first + self.videos_per_batch]
        return [ClipRequest(video, self._plans(self.frame_counts[video])) for video in chosen]

    def _plans(self, num_frames: int) -> tuple:
        return tuple(
            centre_plan(self.sampling, num_frames, int(start), pace, label)
            for label, pace in enumerate(self.paces)
            for start in evenly_spaced(
                fitting_starts(num_frames, pace, self.sampling.clip_frames), self.starts
            )
        )


def pace_accuracy(
    model: nn.Module,
    source: FrameSource,
    sampling: Sampling,
    form: ClipFormat,
    device: torch.device,
    *,
    starts: int = 3,
    workers: int = 1,
    amp: bool = False,
    clips_per_batch: int = 32,
) -> PaceResult:
    """Pace accuracy of `model` (clips -> logits, ...) on every video of `source`.

    Each video is shown at every pace from `starts` evenly spaced frames whose clips fit, so that
    looping cannot give the pace away but where a video is too short for a clip of that pace. Over
    several ranks the videos are shared out and the counts added up.
    """
    counts = tuple(source.num_frames(video) for video in range(len(source)))
    mine = tuple(range(rank(), len(source), world_size()))
    per_video = starts * len(sampling.classes)
    per_batch = max(1, clips_per_batch // per_video)
    requests = EvenRequests(sampling, sampling.classes, counts, mine, starts, per_batch)
    confusion = torch.zeros(len(sampling.classes), len(sampling.classes), dtype=torch.int64)
    unreadable: dict[str, str] = {}
    for batch, outputs in inference(
        model, source, requests, requests.numbers, form, device, sampling.clip_frames, workers, amp
    ):
        unreadable |= dict(batch.bad)
        if outputs is not None:
            predicted = outputs[0].argmax(dim=1).cpu()
            flat = batch.labels.cpu() * len(sampling.classes) + predicted
            confusion += torch.bincount(flat, minlength=confusion.numel()).view_as(confusion)
    confusion = all_reduce_sum(confusion, device)
    names = tuple(str(pace) for pace in sampling.classes)
    return PaceResult(names, confusion.tolist(), tuple(sorted(merge_over_ranks(unreadable))))


def inference(
    model: Callable[[Tensor], tuple[Tensor, ...]],
    source: FrameSource,
    requests: Callable[[int], list[ClipRequest]],
    numbers: range,
    form: ClipFormat,
    device: torch.device,
    clip_frames: int,
    workers: int,
    amp: bool,
    timeout_seconds: float = 120.0,
) -> Iterator[tuple[ClipBatch, tuple[Tensor, ...] | None]]:
    """Each batch with the model's outputs in fp32, or None for a batch without a readable video."""
    batches = load_batches(
        source,
        requests,
        numbers,
        clip_frames=clip_frames,
        workers=workers,
        timeout_seconds=timeout_seconds,
        pin_memory=device.type == "cuda",
        give_way=device.type == "cpu",
    )
    for batch in batches:
        if len(batch) == 0:
            yield batch, None
            continue
        moved = batch.to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            outputs = model(moved.clips(form))
        yield batch, tuple(output.float() for output in outputs)
