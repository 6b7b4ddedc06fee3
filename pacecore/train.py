"""Self-supervised pre-training: predict the pace, and contrast clips of one video or one pace.

loss = lambda_cls * cross_entropy(pace) + lambda_ctr * contrastive          (Eq. 4 of the paper)
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pacecore.backbones import build_backbone
from pacecore.beginning import begin, in_run_folder
from pacecore.config import TrainOptions, taken
from pacecore.device import clip_format, pick_device
from pacecore.distributed import is_main, join, rank, world_size
from pacecore.engine import fit
from pacecore.errors import PacecoreError
from pacecore.evaluate import PaceResult, pace_accuracy
from pacecore.files import write_json
from pacecore.finetune import labels_and_classes
from pacecore.inputs import Inputs
from pacecore.loader import ClipBatch, TrainingSchedule, load_batches
from pacecore.losses import pretraining_loss
from pacecore.pictures import clip_sheet, to_rgb
from pacecore.protocol import ClipRunner, labels_of, unread_words
from pacecore.runlog import alone_in, alone_in_process, tell
from pacecore.sampling import loop_share
from pacecore.source import FrameSource
from pacecore.video_writer import write_png

_SHEET_CLIPS = 8

__all__ = ["PaceModel", "PaceTask", "pace_model", "pretrain"]


class PaceModel(nn.Module):
    """Backbone, pace classifier, and the optional projection of the contrastive branch.

    Clips (B, 3, T, H, W) -> logits (B, classes) and embeddings z (B, D): the globally averaged
    last map, or with `proj_dim` its linear + ReLU projection (last row of Table 2).
    """

    def __init__(self, backbone: nn.Module, classes: int, proj_dim: int = 0):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.feature_dim, classes)
        self.projection = (
            nn.Sequential(nn.Linear(backbone.feature_dim, proj_dim), nn.ReLU())
            if proj_dim
            else nn.Identity()
        )

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(clips)
        return self.head(features), self.projection(features)


def pace_model(options: TrainOptions) -> PaceModel:
    """The network of `options`, its weights drawn from the options' seed."""
    torch.manual_seed(options.seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    backbone.checkpointing = options.checkpointing
    # Without a contrast nothing would train it, for which ranks that average gradients would wait.
    proj_dim = options.proj_dim if options.contrast != "none" else 0
    return PaceModel(backbone, len(options.sampling().classes), proj_dim)


@dataclass
class PaceTask:
    """What fit() needs to know of pace prediction."""

    options: TrainOptions
    model: PaceModel
    held_out: FrameSource | None
    device: torch.device
    kind: str = "pretrain"
    headline: str = "accuracy"
    chosen_by: str = ""

    def loss(self, outputs: tuple[Tensor, ...], batch: ClipBatch) -> tuple[Tensor, dict]:
        logits, z = outputs
        return pretraining_loss(logits, z, batch.labels, batch.videos, self.options)

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        if self.held_out is None:
            return {}
        by, model, what = self.options, self.model, "held out"
        few = {"paces": by.sampling().classes, "clips": 3, "batch_clips": 32, "between": between}
        runner = ClipRunner.of(model, model, by, by, self.device, what, **few)
        found = pace_accuracy(runner, self.held_out)
        words = unread_words(found.unreadable, len(self.held_out), "held-out")
        if not found.clips:
            return {"warning": words}
        if self.options.lambda_cls:  # else the classifier has learnt nothing
            words = words or _collapse(found)
        return {
            "pace_accuracy": found.accuracy,
            "chance": 1 / len(found.classes),
            "confusion": found.confusion,
            "held_out_clips": found.clips,
            **({"warning": words} if words else {}),
        }

    def extra_state(self) -> dict[str, Any]:
        return {"classes": [str(pace) for pace in self.options.sampling().classes]}


def _collapse(result: PaceResult) -> str:
    """Words for the user when the network predicts one and the same pace for every clip."""
    columns = [sum(column) for column in zip(*result.confusion, strict=True)]
    if max(columns) == result.clips:
        pace = result.classes[columns.index(result.clips)]
        return f"collapsed: the network predicts pace {pace} for every held-out clip"
    return ""


def pretrain(
    options: TrainOptions, *, resume: bool = False, fall_back: bool = False
) -> dict[str, Any]:
    """Pre-trains as `options` say and returns the run's summary, with the verbs that the videos
    serve `next`.

    Writes into options.out, or where that is empty runs/train-1 or the next that is free, which the
    summary's options name: options.toml, metrics.jsonl, last.pt, clips.png, summary.json, and with
    matplotlib curves.png. With `resume` it goes on from the last checkpoint there (`fall_back`:
    from the one before, where the last is damaged). Raises PacecoreError for input that cannot be
    used, and TrainingError, which is one, where training cannot go on or is stopped, by Ctrl-C too;
    it says what was saved.
    """
    options = taken("pretrain", options, TrainOptions)
    device = pick_device(options.device)
    in_folder = in_run_folder("pretrain", options, resume=resume)
    with in_folder as options, alone_in_process(device), join(device), ExitStack() as held:
        if resume:
            held.enter_context(alone_in(options.out, resume=True))
        options, data, content = begin(
            "pretrain", options, device, resume=resume, fall_back=fall_back
        )
        if is_main():
            tell(_data_words(options, data) + _size_words(options, device))
        model = pace_model(options)
        task = PaceTask(options, model, data.held_out, device)
        counts = tuple(data.train.num_frames(video) for video in range(len(data.train)))
        schedule = TrainingSchedule(
            options.sampling(), counts, options.batch, options.repeat, rank(), world_size()
        )
        if not resume:
            held.enter_context(alone_in(options.out, resume=False))
        if is_main() and not resume:
            _sample_sheet(options, schedule, data.train)
        summary = fit(task, data.train, schedule, options, device, data=data.stored, resume=content)
        summary = {**summary, "videos": len(data.train), "options": asdict(options)}
        if is_main():
            write_json(Path(options.out) / "summary.json", summary)
        return {**summary, "next": _next_verbs(data)}


def _next_verbs(data: Inputs) -> list[str]:
    """The verbs that these videos serve: some need labels, some videos that were held out."""
    verbs = ["attend"] if data.held_out is None else ["test", "attend"]
    with suppress(PacecoreError):
        labels_and_classes(data.train)
        verbs.append("finetune")
        if data.held_out is not None:
            labels_of(data.held_out, "held out")
            verbs.append("retrieve")
    return verbs


def _sample_sheet(options: TrainOptions, schedule: TrainingSchedule, source: FrameSource) -> None:
    """Writes clips.png: the first clips of the run as the network sees them, one a row after its
    pace.

    A wrong channel order, range or crop is seen at a glance.
    """
    chosen = schedule(0)[: max(1, _SHEET_CLIPS // options.views)]
    batch = next(
        load_batches(source, lambda _: chosen, [0], clip_frames=options.clip_frames, workers=0)
    )
    if len(batch) == 0:
        return
    form = clip_format(options, torch.device("cpu"))
    pictures = to_rgb(batch.clips(form), form.mean, form.std, form.channel_order)
    paces = options.sampling().classes
    names = [str(paces[label]) for label in batch.labels.tolist()]
    write_png(Path(options.out) / "clips.png", clip_sheet(pictures[:_SHEET_CLIPS], names=names))


def _data_words(options: TrainOptions, data: Inputs) -> str:
    looping = f"clips that loop, which betrays their pace: {_loops(options, data.train)}"
    if data.held_out is not None:
        looping += f"; of those held out: {_loops(options, data.held_out, 'fit')}"
    left_out = "".join(f"\nleft out: {path}: {reason}" for path, reason in data.unreadable)
    return f"data: {data.words}\n{looping}{left_out}"


def _size_words(options: TrainOptions, device: torch.device) -> str:
    """Where memory ends on a CPU, the system kills the run without a word."""
    if device.type != "cpu" or options.width < 1 or options.crop < 112:
        return ""
    return (
        "\nwarning: the network at full size takes days on a CPU, and R(2+1)D 20 GB at batch 30;"
        " --preset small is made for one"
    )


def _loops(options: TrainOptions, source: FrameSource, start: str = "") -> str:
    """Share of the clips that loop, by pace; those held out start where they fit."""
    counts = [source.num_frames(video) for video in range(len(source))]
    shares = [
        (loop_share(counts, pace, options.clip_frames, start or options.start), pace)
        for pace in options.sampling().paces
    ]
    if not counts or not any(share for share, _ in shares):
        return "none"
    return ", ".join(f"{100 * share:.0f} % at {pace}" for share, pace in shares)
