"""Tiny labelled videos and tiny networks for the tests of the verbs."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pacecore.backbones import build_backbone
from pacecore.checkpoint import save_checkpoint
from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.video_writer import write_video

CLASSES = ("Blue", "Green", "Red")
SIZE = (36, 48)
SMALL = {
    "backbone": "r3d",
    "width": 0.125,
    "clip_frames": 8,
    "resize": (32, 40),
    "crop": 32,
    "normalize": "unit",
    "workers": 0,
    "device": "cpu",
}


def write_tiny(path: Path, colour: int, seed: int, frames: int) -> None:
    """A square of one colour that moves over noise."""
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 120, (*SIZE, 3), dtype=np.uint8)

    def pictures():
        for number in range(frames):
            frame = background.copy()
            left = (seed + 2 * number) % (SIZE[1] - 16)
            frame[10:26, left : left + 16] = 30
            frame[10:26, left : left + 16, colour] = 230
            yield frame

    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pictures())


def tiny_set(folder: Path, *, train: int = 4, test: int = 2) -> Path:
    """Videos of three classes, folder/train/CLASS/*.mp4 and folder/test/CLASS/*.mp4."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                seed += 1
                path = folder / split / name / f"{split}{number}.mp4"
                write_tiny(path, 2 - label, seed, frames=20 + seed)
    return folder


def pretrained(path: Path, *, data: str = "", seed: int = 0, **changes) -> Path:
    """A checkpoint as pre-training writes it, of a network that was not trained."""
    options = TrainOptions(**{**SMALL, "data": data, **changes}).resolved()
    torch.manual_seed(seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    _warm(backbone, options)
    classes = [str(pace) for pace in options.sampling().classes]
    _save(path, "pretrain", options, backbone, classes)
    return path


def finetuned(path: Path, *, data: str = "", seed: int = 0, classes=CLASSES, **changes) -> Path:
    """A checkpoint as fine-tuning writes it, of a network that was not trained."""
    options = FinetuneOptions(**{**SMALL, "data": data, **changes}).resolved()
    torch.manual_seed(seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    _warm(backbone, options)
    _save(path, "finetune", options, backbone, list(classes))
    return path


def _warm(backbone: nn.Module, options) -> None:
    """Gives the batch norms averages that keep features apart."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        shape = (4, 3, options.clip_frames, options.crop, options.crop)
        backbone.train()(torch.rand(shape))


def _save(path: Path, kind: str, options, backbone: nn.Module, classes: list[str]) -> None:
    head = nn.Linear(backbone.feature_dim, len(classes))
    nn.init.normal_(head.weight, std=3.0)  # scores that differ from class to class
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    content = {"kind": kind, "model": state, "options": asdict(options), "classes": classes}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, content)
