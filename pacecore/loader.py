"""From a source of videos to batches: decoding processes, prefetch, and the place to resume at.

A batch is a function of its number alone, so any number of workers gives the same batches and a
resumed run goes on with the next number. Workers decode and draw plans; the pixels are made by
ops.pace_clip on the training device.
"""

import contextlib
import mmap
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pacecore.arena import Arena, Room, RoomWriter
from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.ops import pace_clip
from pacecore.sampling import ClipPlan, Sampling, epoch_order, plan_views
from pacecore.source import FrameSource
from pacecore.workers import WorkerError, Workers, end_with_parent

__all__ = [
    "ClipBatch",
    "ClipFormat",
    "ClipRequest",
    "LoaderError",
    "TrainingSchedule",
    "load_batches",
    "on_device",
]


class LoaderError(PacecoreError):
    """The decoding workers cannot go on; names the files that were being read."""


@dataclass(frozen=True)
class ClipRequest:
    """The clips wanted of one video; its frames are decoded once for all of them."""

    video: int
    plans: tuple[ClipPlan, ...]


@dataclass(frozen=True)
class ClipFormat:
    """What pace_clip makes of a batch, its options: sizes in pixels, scale, order, type, layout."""

    resize: tuple[int, int]
    crop_size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channel_order: str = "rgb"
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format


_OF_CLIPS = ("plan", "crop", "jitter", "jitter_order", "labels", "videos")


@dataclass
class ClipBatch:
    """Decoded frames and plans of B clips; `clips` makes the network's input of them."""

    number: int
    frames: Frames
    plan: Tensor  # (B, T) int32, rows of frames
    crop: Tensor  # (B, 3) int32
    jitter: Tensor  # (B, T, 4) float32
    jitter_order: Tensor  # (B, T) int32
    labels: Tensor  # (B,) int64, pace labels
    videos: Tensor  # (B,) int64, numbers of the videos in the source
    bad: list[tuple[str, str]] = field(default_factory=list)  # files left out, and why
    room: Room | None = None  # on its way from a worker: where the bytes of the frames are

    def __len__(self) -> int:
        return self.labels.numel()

    def __getstate__(self) -> dict:
        """What a worker sends: all by value, but frames that lie in a room. As tensors each would
        be a file in /dev/shm, which may be full, and opening those took 1.5 ms a clip, as long as
        pace_clip itself.
        """
        small = {name: getattr(self, name).numpy() for name in _OF_CLIPS}
        frames = (self.frames.data.numpy(), self.frames.table.numpy())
        return {**vars(self), **small, "frames": frames}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, frames=Frames(*map(torch.from_numpy, state["frames"])))
        vars(self).update({name: torch.from_numpy(state[name]) for name in _OF_CLIPS})

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ClipBatch":
        return replace(
            self,
            frames=Frames(change(self.frames.data), change(self.frames.table)),
            **{name: change(getattr(self, name)) for name in _OF_CLIPS},
        )

    def arrived(self) -> "ClipBatch":
        """The same batch with its frames at hand."""
        if self.room is None:
            return self
        return replace(self, frames=Frames(self.room.data(), self.frames.table), room=None)

    def pin_memory(self) -> "ClipBatch":
        return self.arrived()._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "ClipBatch":
        """The same batch on `device`, without waiting for the copy."""
        if device.type == "cpu":
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, span: slice) -> "ClipBatch":
        """The clips of `span` alone, of the same frames."""
        return replace(self, **{name: getattr(self, name)[span] for name in _OF_CLIPS})

    def clips(self, form: ClipFormat, resident: Frames | None = None) -> Tensor:
        """The network's input (B, 3, T, H, W), made on the device where the batch lies.

        resident: the frames of the whole source, for a batch that was loaded with resident=True.
        """
        return pace_clip(
            self.frames if resident is None else resident,
            self.plan,
            self.crop,
            self.jitter,
            self.jitter_order,
            **vars(form),
        )


def on_device(batches: Iterator[ClipBatch], device: torch.device) -> Iterator[ClipBatch]:
    """The same batches on `device`; to a GPU each is copied on a stream of its own, so that the
    copy runs beside the step before.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            arrived = batch.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        # The memory belongs to the copying stream and must not be used again before the step is
        # done.
        arrived._map(partial(_used_by, stream=computing))
        yield arrived


def _used_by(tensor: Tensor, stream: "torch.cuda.Stream") -> Tensor:
    tensor.record_stream(stream)
    return tensor


@dataclass(frozen=True)
class TrainingSchedule:
    """Which clips each step of training sees: every video `repeat` times an epoch, none dropped.

    The batches of an epoch hold `batch` videos at most and differ by one at most, so there is no
    small last one; neither do the contiguous shares that the ranks take of a batch.
    """

    sampling: Sampling
    frame_counts: tuple[int, ...]
    batch: int
    repeat: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "repeat"):
            if getattr(self, name) < 1:
                raise PacecoreError(f"{name} must be 1 or more, got {getattr(self, name)}")
        smallest = len(self.frame_counts) * self.repeat // self.steps_per_epoch
        if smallest < self.world:
            raise PacecoreError(
                f"batch must give each of {self.world} ranks a video, but the smallest of an epoch"
                f" has {smallest}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.frame_counts) * self.repeat // self.batch)

    def videos(self, step: int) -> list[tuple[int, int]]:
        """(pass over the data, video) of each video of the whole batch of step `step`."""
        count = len(self.frame_counts)
        epoch, place = divmod(step, self.steps_per_epoch)
        shown, steps = count * self.repeat, self.steps_per_epoch
        first, stop = shown * place // steps, shown * (place + 1) // steps
        result = []
        for local_pass in range(first // count, -(-stop // count)):
            data_pass = epoch * self.repeat + local_pass
            order = epoch_order(self.sampling.seed, data_pass, count)
            start = local_pass * count
            taken = order[max(first - start, 0) : stop - start]
            result += [(data_pass, int(video)) for video in taken]
        return result

    def share(self, step: int) -> list[tuple[int, int]]:
        """This rank's part of `videos`."""
        whole = self.videos(step)
        bounds = [len(whole) * rank // self.world for rank in range(self.world + 1)]
        return whole[bounds[self.rank] : bounds[self.rank + 1]]

    def __call__(self, step: int) -> list[ClipRequest]:
        return [
            ClipRequest(
                video,
                tuple(plan_views(self.sampling, self.frame_counts[video], data_pass, video)),
            )
            for data_pass, video in self.share(step)
        ]


class _Batches(Dataset):
    """Batch `number` of a source: its requests' frames decoded, its plans as tensors."""

    def __init__(
        self,
        source: FrameSource,
        requests: Callable[[int], list[ClipRequest]],
        clip_frames: int,
        workers: int,
        resident: bool,
    ):
        self.arena = None if resident else Arena.make(max(1, workers))
        self.source, self.requests, self.clip_frames = source, requests, clip_frames
        self.resident = resident
        self.made, self._making = multiprocessing.Pipe(duplex=False)  # numbers of batches
        # What each worker reads at the moment, so that a worker that dies leaves its file's name.
        # Memory that forked processes share anyway; /dev/shm may be full.
        memory = mmap.mmap(-1, max(1, workers) * 4096)
        self.reading = np.frombuffer(memory, np.uint8).reshape(-1, 4096)

    def __getitem__(self, number: int) -> ClipBatch:
        try:
            return self._make(number)
        finally:
            if get_worker_info():
                self._making.send_bytes(int(number).to_bytes(8, "little"))

    def _make(self, number: int) -> ClipBatch:
        rows, plans, videos, bad = [], [], [], []
        start, writer = 0, RoomWriter(self.arena, _writer())
        for request in self.requests(number):
            wanted = np.unique(np.concatenate([plan.frame_numbers for plan in request.plans]))
            self._announce(request.video)
            try:
                if self.resident:
                    lying = self.source.rows(request.video, wanted)
                else:
                    part = self.source.decode(request.video, wanted)
                    lying = np.arange(start, start + len(part))
                    writer.add(part)
                    start += len(part)
            except PacecoreError as error:
                path = str(self.source.path(request.video))
                bad.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            for plan in request.plans:
                rows.append(lying[np.searchsorted(wanted, plan.frame_numbers)])
                plans.append(plan)
                videos.append(request.video)
        frames, room = writer.finish()
        return self._collate(number, frames, room, rows, plans, videos, bad)

    def _announce(self, video: int) -> None:
        text = os.fsencode(self.source.path(video))[:4096]
        line = self.reading[_writer()]
        line[:] = 0
        line[: len(text)] = np.frombuffer(text, np.uint8)

    def read_now(self) -> str:
        """The files that the workers were reading last."""
        names = [line.tobytes().rstrip(b"\0") for line in self.reading]
        return ", ".join(os.fsdecode(name) for name in names if name) or "none yet"

    def _collate(self, number, frames, room, rows, plans, videos, bad) -> ClipBatch:
        def stack(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> Tensor:
            if not arrays:
                return torch.from_numpy(np.empty((0, *shape), dtype))
            return torch.from_numpy(np.stack(arrays).astype(dtype, copy=False))

        length = self.clip_frames
        return ClipBatch(
            number=number,
            frames=frames,
            plan=stack(rows, (length,), np.int32),
            crop=stack([plan.crop for plan in plans], (3,), np.int32),
            jitter=stack([plan.jitter for plan in plans], (length, 4), np.float32),
            jitter_order=stack([plan.jitter_order for plan in plans], (length,), np.int32),
            labels=torch.tensor([plan.label for plan in plans], dtype=torch.int64),
            videos=torch.tensor(videos, dtype=torch.int64),
            bad=bad,
            room=room,
        )


def _writer() -> int:
    """Number of this decoding process; 0 where the trainer itself decodes."""
    worker = get_worker_info()
    return worker.id if worker else 0


def _start_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)  # cores are shared out by worker, not by thread


def _start_worker_that_gives_way(number: int) -> None:
    _start_worker(number)
    os.nice(19)
    # Nor does one that wakes up interrupt the network then.
    with contextlib.suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _require_locks(workers: int) -> None:
    """Raises LoaderError where the system has not as many as DataLoader's queues are made of, which
    lie in /dev/shm: that may be full, and a DataLoader that finds it so leaves tracebacks behind.
    """
    try:
        _ = [multiprocessing.Lock() for _ in range(8 + 3 * workers)]
    except OSError as error:
        raise LoaderError(
            f"decoding cannot begin, as no process for it has its locks: {error.strerror}; workers"
            " 0 decodes in this one"
        ) from None


def load_batches(
    source: FrameSource,
    requests: Callable[[int], list[ClipRequest]],
    numbers: Sequence[int],
    *,
    clip_frames: int,
    workers: int,
    timeout_seconds: float = 120.0,
    pin_memory: bool = False,
    resident: bool = False,
    give_way: bool = False,
) -> Generator[ClipBatch, None, None]:
    """Batches `numbers` in order, prefetched two a worker; workers=0 decodes in this process.

    resident: the batches carry no frames; their plans are rows of one table of all frames of the
    source, which knows them (FrameStore.rows).
    give_way: workers decode while this process waits for them, for a network on the same cores,
    whose threads would otherwise wait for the one whose core a worker has taken.
    Unreadable videos are left out of their batch and named in its `bad`. Raises LoaderError, with
    the files being read, when a worker dies or gives nothing for `timeout_seconds`; PacecoreError
    for fewer than no workers.
    """
    if workers < 0:  # an option's -1 is for pacecore.inputs.worker_count
        raise PacecoreError(f"workers must be 0 or more, got {workers}")
    if workers and multiprocessing.current_process().daemon:
        raise PacecoreError(
            f"workers must be 0 in a daemonic process, as of a multiprocessing.Pool, got {workers}"
        )
    dataset = _Batches(source, requests, clip_frames, workers, resident)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        timeout=timeout_seconds if workers else 0,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker_that_gives_way if give_way else _start_worker,
        multiprocessing_context="fork" if workers else None,
    )
    if workers:
        _require_locks(workers)
    try:
        begun = Workers(loader, dataset.made)
    except WorkerError as error:
        raise LoaderError(f"decoding cannot begin: {error}; fewer --workers need less") from None
    with begun as batches:
        for number in numbers:
            try:
                batch = batches.next(number)
            except WorkerError as error:
                raise LoaderError(
                    f"decoding stopped: {error}; reading {dataset.read_now()}"
                ) from None
            yield batch.arrived()
            del batch  # its slot is free as soon as the user is done with it
