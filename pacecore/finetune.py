"""Supervised action recognition: a new head on a pre-trained backbone, or on a fresh one.

All weights are trained, or only the head on standardised features (linear probe), on clips at
pace 1 (section 4.1 of the paper). The best checkpoint is chosen on a share of the training videos,
never on the test split.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pacecore.backbones import Backbone, build_backbone
from pacecore.beginning import begin, in_run_folder
from pacecore.config import INPUT_OPTIONS, FinetuneOptions, taken
from pacecore.convert import unsaid_words
from pacecore.device import pick_device
from pacecore.distributed import is_main, join, rank, require_same, share_of, world_size
from pacecore.engine import fit
from pacecore.errors import PacecoreError
from pacecore.files import write_json
from pacecore.index import recordings
from pacecore.inputs import Inputs
from pacecore.loader import ClipBatch, TrainingSchedule
from pacecore.probe import Probe
from pacecore.protocol import ClipRunner, labels_of, unread_words
from pacecore.recognition import head_labels, measure_actions
from pacecore.runlog import alone_in, alone_in_process, tell
from pacecore.source import FrameSource, Subset
from pacecore.trained import NETWORK_OPTIONS, Trained, load_trained

__all__ = ["ActionModel", "finetune", "inherit_options", "labels_and_classes", "validation_split"]


class ActionModel(nn.Module):
    """Backbone and a linear classifier: clips (B, 3, T, H, W) -> (logits (B, classes),).

    With `frozen` the backbone keeps its weights, its batch norms use their running averages, and
    its features (B, D) are standardised before the dropout and the classifier: a linear probe. Its
    checkpoints are read with that worked into the classifier, by `load_trained`.
    """

    def __init__(
        self, backbone: Backbone, classes: int, *, dropout: float = 0.0, frozen: bool = False
    ):
        super().__init__()
        self.backbone = backbone
        if frozen:
            self.head = Probe(backbone.feature_dim, classes, dropout=dropout)
        else:
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(backbone.feature_dim, classes)
        self.frozen = frozen
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "ActionModel":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, clips: Tensor) -> tuple[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(clips)
        return (self.head(features if self.frozen else self.dropout(features)),)


def inherit_options(given: dict[str, Any], trained: Trained) -> tuple[dict[str, Any], list[str]]:
    """Options of a fine-tuning from `trained`: what is given, over network and input of the
    checkpoint. Beside them, in words, where the input given differs from the checkpoint's, what it
    leaves open, and what it lacks.

    Raises OptionError for a network other than the checkpoint's, by name.
    """
    values, notes = dict(given), []
    for name in (*NETWORK_OPTIONS, *INPUT_OPTIONS):
        stored = getattr(trained.options, name)
        wanted = values.setdefault(name, stored)
        if wanted == stored or (name == "resize" and wanted == list(stored)):  # as TOML has it
            continue
        if name in NETWORK_OPTIONS:
            trained.require_network(name, wanted)
        elif name not in trained.unsaid:
            notes.append(f"{name} is {wanted!r} here, {stored!r} in {trained.path}")
    if left := {name: usual for name, usual in trained.unsaid.items() if name not in given}:
        notes.append(f"{trained.path} {unsaid_words(left)}")
    if trained.missing:
        notes.append(
            f"{len(trained.missing)} weights are not in {trained.path} and start afresh, the first"
            f" {trained.missing[0]}"
        )
    return values, notes


def validation_split(
    labels: np.ndarray, share: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the videos to train on and to validate on, int64, ascending.

    About round(share * N) videos (at least one, where share > 0) are for validation, spread over
    the classes by their sizes. groups: videos of one class and group stay together; by default
    each is a group of its own, and the number is exact. Each class keeps one group at least to
    train on. A function of its arguments.
    """
    count = len(labels)
    wanted = max(1, round(share * count)) if share > 0 else 0
    keys = groups if groups is not None else range(count)
    members: dict[tuple, list[int]] = {}
    for video, key in enumerate(zip(labels.tolist(), keys, strict=True)):
        members.setdefault(key, []).append(video)
    draws = np.random.Philox(key=[seed, 64]).random_raw(len(members))
    drawn = [key for _, key in sorted(zip(draws.tolist(), members, strict=True))]
    # Each class's groups in the order drawn lie along 0..1 by their sizes, at their middles: the
    # lowest over all classes are an even share of each; the last of a class is never given.
    sizes = np.bincount(labels)
    behind = np.zeros(len(sizes))
    places = []
    for key in drawn:
        size = len(members[key])
        if behind[key[0]] + size < sizes[key[0]]:
            places.append(((behind[key[0]] + size / 2) / sizes[key[0]], len(places), key))
        behind[key[0]] += size
    taken: list[int] = []
    for _, _, key in sorted(places):
        if not wanted or (taken and len(taken) + len(members[key]) / 2 > wanted):
            break
        taken += members[key]
    validation = np.array(sorted(taken), dtype=np.int64)
    return np.setdiff1d(np.arange(count), validation), validation


@dataclass
class _ActionTask:
    """What fit() needs to know of action recognition."""

    options: FinetuneOptions
    model: ActionModel
    labels: Tensor  # (videos,) int64, on the device
    validation: FrameSource | None
    classes: tuple[str, ...]
    origin: dict[str, Any]  # of labels and weights, for the checkpoint
    device: torch.device
    kind: str = "finetune"
    headline: str = "accuracy"
    chosen_by: str = "val_accuracy"

    def loss(self, outputs: tuple[Tensor, ...], batch: ClipBatch) -> tuple[Tensor, dict]:
        logits = outputs[0]
        target = self.labels[batch.videos]
        share = share_of(len(target))  # ranks may have a video more or less
        loss = F.cross_entropy(logits, target, label_smoothing=self.options.label_smoothing)
        right = (logits.detach().argmax(dim=1) == target).float().mean()
        return share * loss, {"accuracy": share * right}

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        if self.validation is None:
            return {}
        by, model = self.options, self.model
        runner = ClipRunner.of(model, model, by, by, self.device, "validate", between=between)
        result = measure_actions(runner, self.validation, self.classes)
        words = unread_words(result.unreadable, len(self.validation), "validation")
        if not result.videos:
            return {"warning": words}
        return {
            "val_accuracy": result.top1,
            "val_clip_accuracy": result.clip_top1,
            "val_videos": result.videos,
            **({"warning": words} if words else {}),
        }

    def extra_state(self) -> dict[str, Any]:
        return {"classes": list(self.classes), **self.origin}


def finetune(
    options: FinetuneOptions,
    *,
    trained: Trained | None = None,
    resume: bool = False,
    fall_back: bool = False,
) -> dict[str, Any]:
    """Fine-tunes as `options` say and returns the run's summary, with the verbs that go on `next`.

    The network's options have to be the checkpoint's, and the clips' should be: `inherit_options`
    takes both from it. trained: what options.checkpoint holds, where it was read already. Writes
    into options.out, or where that is empty runs/finetune-1 or the next that is free, which the
    summary's options name: options.toml, metrics.jsonl, last.pt, best.pt where val_share is above
    0, summary.json, and with matplotlib curves.png. Raises PacecoreError for input that cannot be
    used, and TrainingError as pretrain does.
    """
    options = taken("finetune", options, FinetuneOptions)
    device = pick_device(options.device)
    in_folder = in_run_folder("finetune", options, resume=resume)
    with in_folder as options, alone_in_process(device), join(device), ExitStack() as held:
        if resume:
            held.enter_context(alone_in(options.out, resume=True))
        options, data, content = begin(
            "finetune", options, device, resume=resume, fall_back=fall_back
        )
        try:
            labels, classes = labels_and_classes(data.train)
        except PacecoreError as error:  # how the videos were taken says why
            raise PacecoreError(f"{error}; {data.words}") from None
        labelling = hashlib.sha256(labels.tobytes()).hexdigest()[:16]
        require_same(options, classes=classes, labelling=labelling)
        if content and tuple(content["classes"]) != classes:
            raise PacecoreError(f"{options.out}: the run was trained on other classes")
        if content and content["labelling"] != labelling:
            raise PacecoreError(f"{options.out}: the run was trained on other labels of its videos")
        if trained is None and options.checkpoint and not content:
            trained = load_trained(options.checkpoint, partial=options.partial)
        cut_from = recordings(data.train.path(video) for video in range(len(data.train)))
        chosen, validation = validation_split(labels, options.val_share, options.seed, cut_from)
        grouped = len(set(cut_from)) < len(cut_from)
        if options.val_share and not len(validation):
            unit = "group of clips" if grouped else "video"
            raise PacecoreError(
                f"val_share: each class has one {unit}, which is needed for training"
            )
        pretrained = content["pretrained"] if content else pretraining_of(trained)
        task = _ActionTask(
            options,
            action_model(options, len(classes), trained),
            torch.from_numpy(labels[chosen]).to(device),
            Subset(data.train, validation.tolist()) if len(validation) else None,
            classes,
            {"labelling": labelling, "pretrained": pretrained},
            device,
        )
        if is_main():
            words = f"; {len(validation)} of them to choose the best on" if len(validation) else ""
            if words and grouped:
                groups = len({cut_from[video] for video in validation})
                words += f", which are {groups} whole groups by their names (_gNN_)"
            tell(f"data: {data.words}\n{len(classes)} classes, {len(labels)} videos{words}")
        train = Subset(data.train, chosen.tolist())
        counts = tuple(train.num_frames(video) for video in range(len(train)))
        schedule = TrainingSchedule(
            options.sampling(), counts, options.batch, options.repeat, rank(), world_size()
        )
        if not resume:
            held.enter_context(alone_in(options.out, resume=False))
        summary = fit(task, train, schedule, options, device, data=data.stored, resume=content)
        summary |= {
            "kind": "finetune",
            "videos": len(train),
            "validation_videos": len(validation),
            "validation_by": "group" if grouped else "video",
            "classes": list(classes),
            "pretrained": pretrained,
            "options": asdict(options),
        }
        if is_main():
            write_json(Path(options.out) / "summary.json", summary)
        return {**summary, "next": _next_verbs(data, classes)}


def _next_verbs(data: Inputs, classes: tuple[str, ...]) -> list[str]:
    """["test"] where videos of these classes were held out."""
    with suppress(PacecoreError):
        if data.held_out is not None:
            head_labels(data.held_out, classes, "held out")
            return ["test"]
    return []


def action_model(options: FinetuneOptions, classes: int, trained: Trained | None) -> ActionModel:
    """The network of `options`: weights of `trained` where there are any, the rest by the seed."""
    torch.manual_seed(options.seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    if trained is not None:
        for name in NETWORK_OPTIONS:
            trained.require_network(name, getattr(options, name))
        state = trained.backbone.state_dict()
        held = {name: state[name] for name in state if name not in trained.missing}
        backbone.load_state_dict(held, strict=not trained.missing)
    backbone.checkpointing = options.checkpointing
    return ActionModel(
        backbone, classes, dropout=options.dropout, frozen=options.freeze == "backbone"
    )


def pretraining_of(trained: Trained | None) -> dict[str, Any]:
    """Options of the pre-training behind `trained`, for the record; {} from scratch. Under
    "labelled" those of the videos of each fine-tuning that has moved its weights since.
    """
    if trained is None:
        return {}
    if trained.kind == "finetune":
        if trained.options.freeze == "backbone":
            return trained.pretrained
        own = {name: getattr(trained.options, name) for name in ("data", "held_out", "fold")}
        return trained.pretrained | {"labelled": [*trained.pretrained.get("labelled", []), own]}
    return {"kind": trained.kind, **asdict(trained.options)}


def labels_and_classes(source: FrameSource) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) of a training split and the names of its classes.

    Raises PacecoreError, by name, for videos without labels and classes without videos.
    """
    labels, classes = labels_of(source, "training split"), source.classes
    if not classes:
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    if len(classes) < 2:
        got = f"{len(classes)}: {', '.join(classes)}"
        raise PacecoreError(f"training split: needs two classes or more, got {got}")
    lacking = sorted(set(range(len(classes))) - set(labels.tolist()))
    if lacking:
        names = ", ".join(classes[label] for label in lacking[:10])
        raise PacecoreError(
            f"training split: {len(lacking)} of {len(classes)} classes have no video: {names}"
        )
    return labels, classes
