"""What the measuring verbs share: evenly spaced clips of each video, decoded once.

Ten clips at pace 1, starts floor(linspace(0, n - T, 10)), centre crop; shorter videos loop. Pace
accuracy shows each video so at every pace.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pacecore.backbones.tuning import MEMORY_FORMAT, memory_format, prepare
from pacecore.config import MeasureOptions, RunOptions
from pacecore.convert import unsaid_words
from pacecore.device import clip_format
from pacecore.distributed import is_main, rank, require_same, world_size
from pacecore.errors import PacecoreError
from pacecore.files import expanded, made_folder
from pacecore.inputs import Inputs, open_inputs, worker_count
from pacecore.loader import ClipBatch, ClipFormat, ClipRequest, load_batches
from pacecore.runlog import Progress, RunFolder, tell
from pacecore.sampling import Sampling, centre_plan, fitting_starts
from pacecore.source import FrameSource
from pacecore.trained import Trained, fingerprint, require_videos

__all__ = [
    "PATIENCE",
    "ClipRunner",
    "decoder_count",
    "evenly_spaced",
    "labels_of",
    "open_measured",
    "out_folder",
    "ready",
    "unread_words",
]

# Ranks have no step in common here: one may have much longer videos than another.
PATIENCE = timedelta(hours=2)

# On a CPU larger batches take longer a clip, since their maps leave the caches and are paged in
# anew: r21d at a quarter of the width and 16 x 56 x 56, 39 ms a clip by 8, 52 ms by 40.
_CPU_CLIPS = 8


def open_measured(trained: Trained, options: MeasureOptions) -> Inputs:
    """The videos of `options`, read as the checkpoint's training read its own.

    Without `data` those that it was trained on, which may be the demo set. Raises PacecoreError
    where a file of bare weights leaves that open, ranks were given other weights or options, or
    the results could not be written.
    """
    if not options.data and trained.kind == "weights":
        raise PacecoreError(f"{trained.path}: bare weights name no videos; name the data")
    if is_main():  # told before all videos are read
        RunFolder.check(Path(options.out or trained.path.parent))
    if world_size() > 1:
        network = nn.ModuleList([trained.backbone, trained.head or nn.Identity()])
        require_same(options, weights=fingerprint(network))
    stored = trained.options
    held_out = options.held_out or ("auto" if options.data else stored.held_out)
    if not options.data:
        require_videos(trained.path, stored.data, "" if options.held_out else stored.held_out)
    found = open_inputs(
        replace(
            stored,
            data=options.data or stored.data,
            held_out=held_out,
            fold=options.fold or stored.fold,
            device=options.device,
            workers=options.workers,
            decode_timeout=options.decode_timeout,
        ),
        trains=False,
    )
    if trained.unsaid and is_main():
        words = unsaid_words(trained.unsaid)
        tell(f"{trained.path} {words}; pacecore convert writes down what it is told")
    same = not options.data or os.path.realpath(expanded(options.data)) == os.path.realpath(
        expanded(stored.data)
    )
    own = same and held_out == stored.held_out and options.fold in ("", stored.fold)
    if own and trained.identity not in ("", found.identity) and is_main():
        tell(f"warning: {trained.path} was trained on other videos than these: {found.words}")
    return found


def out_folder(trained: Trained, options: MeasureOptions) -> Path:
    """Where results are written: `out`, else beside the checkpoint."""
    return made_folder(options.out or trained.path.parent)


def labels_of(source: FrameSource, what: str) -> np.ndarray:
    """Labels int64 (N,) of all videos. Raises PacecoreError, naming `what`, where one has none."""
    if len(source) == 0:
        raise PacecoreError(f"{what}: holds no video")
    labels = [source.label(video) for video in range(len(source))]
    bare = [video for video, label in enumerate(labels) if label is None]
    if bare:
        raise PacecoreError(
            f"{what}: {len(bare)} of {len(labels)} videos have no label, the first"
            f" {source.path(bare[0])}"
        )
    return np.array(labels, dtype=np.int64)


def unread_words(unreadable: dict[str, str], count: int, what: str) -> str:
    """For the user, where a figure is not of all `count` videos; else empty."""
    if not unreadable:
        return ""
    path, reason = next(iter(unreadable.items()))
    words = f"{len(unreadable)} of {count} {what} videos cannot be read, the first is {path}"
    return f"{words}: {reason}"


def evenly_spaced(count: int, clips: int) -> np.ndarray:
    """Start frames floor(linspace(0, count - 1, clips)), (clips,) int64; of one clip the middle."""
    if clips == 1:
        return np.array([(count - 1) // 2], dtype=np.int64)
    return np.linspace(0, count - 1, clips).astype(np.int64)


@dataclass
class ClipRunner:
    """Runs a network over the clips of videos as its training options make them: of each video
    `clips` at each of `paces`.

    After a pass `unreadable` holds the files left out, with the reason.
    """

    model: Callable[[Tensor], tuple[Tensor, ...]]  # clips (B, 3, T, H, W) -> outputs (B, ...)
    options: RunOptions  # of the training: size, crop, scale, order and length of clips
    device: torch.device
    paces: tuple[Fraction, ...] = (Fraction(1),)
    clips: int = 10
    batch_clips: int = 40  # clips at once at most; less from where a GPU's memory has ended on
    amp: bool = False
    workers: int = 1
    decode_timeout: float = 120.0
    what: str = "test"  # name on the progress line
    layout: torch.memory_format = MEMORY_FORMAT
    between: Callable[[], None] = lambda: None  # between batches; what it raises ends the pass
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Callable[[Tensor], tuple[Tensor, ...]],
        network: nn.Module,
        trained_by: RunOptions,
        options: RunOptions | MeasureOptions,
        device: torch.device,
        what: str,
        **own: Any,
    ) -> "ClipRunner":
        """Runs `model`, which holds `network`, as `options` say. own: fields beside those."""
        return cls(
            model=model,
            options=trained_by,
            device=device,
            amp=options.amp == "bf16",
            workers=decoder_count(options.workers, device),
            decode_timeout=options.decode_timeout,
            what=what,
            layout=memory_format(network, device),
            **own,
        )

    @property
    def form(self) -> ClipFormat:
        """How clips are laid out: as in training, but for the arithmetic's type."""
        amp = "bf16" if self.amp else "none"
        return clip_format(replace(self.options, amp=amp), self.device, self.layout)

    def run(
        self, source: FrameSource, videos: Sequence[int] | None = None
    ) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """(video, outputs (paces * clips, ...) in fp32 on the device) of each readable video of
        this rank's share of `videos` (all of the source by default), decoded once for all its
        clips: those of the first pace, then of the next. Raises PacecoreError where an output is
        not finite: of nan the first class would be the most probable.
        """
        every = range(len(source)) if videos is None else videos
        mine = tuple(every[rank() :: world_size()])
        of_video = len(self.paces) * self.clips
        per_batch = max(1, self.batch_clips // of_video)
        sampling = self.options.sampling()

        def requests(number: int) -> list[ClipRequest]:
            chosen = mine[number * per_batch : (number + 1) * per_batch]
            return [self._request(sampling, video, source.num_frames(video)) for video in chosen]

        loaded = load_batches(
            source,
            requests,
            range(-(-len(mine) // per_batch)),
            clip_frames=sampling.clip_frames,
            workers=self.workers,
            timeout_seconds=self.decode_timeout,
            pin_memory=self.device.type == "cuda",
            give_way=self.device.type == "cpu",
        )
        progress = Progress(self.what, len(mine), shows=is_main())
        done = 0
        progress.update(0)
        with closing(loaded) as batches:  # its processes end with this pass, however that ends
            for batch in batches:
                self.between()
                self.unreadable.update(batch.bad)
                done += len(batch.bad)
                if len(batch):
                    outputs = self._outputs(batch.to(self.device))
                    for first in range(0, len(batch), of_video):
                        video = int(batch.videos[first])
                        own = tuple(each[first : first + of_video] for each in outputs)
                        if not all(each.isfinite().all() for each in own):
                            how = ", in bf16; without --amp bf16 they may be" if self.amp else ""
                            raise PacecoreError(
                                f"{source.path(video)}: the network's outputs are not finite{how}"
                            )
                        yield video, own
                        done += 1
                progress.update(done, f"{of_video} clips each")
        progress.close()

    def _outputs(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """What the network gives, in fp32, of the batch's clips, made and run `batch_clips` at
        once, or as many as fit: where memory ends, in halves from there on.
        """
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)
        while True:
            size = min(self.batch_clips, len(batch))
            if self.device.type == "cpu":
                size = min(size, _CPU_CLIPS)
            try:
                parts = []
                for first in range(0, len(batch), size):
                    clips = batch.part(slice(first, first + size)).clips(self.form)
                    with torch.inference_mode(), autocast:
                        parts.append(tuple(output.float() for output in self.model(clips)))
                return tuple(torch.cat(each) for each in zip(*parts, strict=True))
            except torch.OutOfMemoryError:
                if size == 1:
                    frames, side = self.options.clip_frames, self.options.crop
                    raise PacecoreError(
                        f"one clip of {frames} frames of {side} x {side} does not fit the memory of"
                        f" {self.device}"
                    ) from None
                self.batch_clips = (size + 1) // 2
            torch.cuda.empty_cache()

    def _request(self, sampling: Sampling, video: int, frames: int) -> ClipRequest:
        """Each pace at evenly spaced starts, centre crop: only a video shorter than a clip loops,
        or at the paces of a training goes on as it did there. A clip's label is the place of its
        pace.
        """
        if self.paces == (Fraction(1),):
            sampling = replace(sampling, boundary="restart")
        plans = (
            centre_plan(sampling, frames, int(start), pace, label)
            for label, pace in enumerate(self.paces)
            for start in evenly_spaced(
                fitting_starts(frames, pace, sampling.clip_frames), self.clips
            )
        )
        return ClipRequest(video, tuple(plans))


def decoder_count(wish: int, device: torch.device) -> int:
    """Decoding processes of a pass: `wish`, or for -1 what training takes, on a CPU two at least.

    On a CPU they decode while the network waits for them (`give_way`), on all cores then: tried
    with r21d at a quarter of the width on two cores, two processes were faster than one, and either
    than as many that did not give way.
    """
    count = worker_count(wish, device)
    return max(2, count) if wish < 0 and device.type == "cpu" and count else count


def ready(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` in evaluation mode on `device`, laid out as its convolutions are fastest."""
    return prepare(model, device).eval()
