"""Tiny labelled videos and tiny networks for the tests of the verbs."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pacecore.backbones import build_backbone
from pacecore.checkpoint import save_checkpoint
from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.errors import PacecoreError
from pacecore.ops import pace_clip
from pacecore.sampling import frame_indices
from pacecore.source import VideoFiles
from pacecore.video import decode, probe
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


def decoding(monkeypatch, fails: Callable[[Path], bool] = lambda path: False) -> list[Path]:
    """The videos that are decoded from here on; those that `fails` is true of are cut short."""
    decode_one, opened = VideoFiles.decode, []

    def noting(self, video, wanted):
        path = self.path(video)
        if fails(path):
            raise PacecoreError(f"{path}: cut short")
        opened.append(path)
        return decode_one(self, video, wanted)

    monkeypatch.setattr(VideoFiles, "decode", noting)
    return opened


def plain_clips(path: Path, count: int):
    """The `count` clips of the protocol, (1, 3, 8, 32, 32) each, by the definition: one after
    another, nothing shared.
    """
    num_frames, length = probe(path).num_frames, SMALL["clip_frames"]
    for step in range(count):
        start = max(0, num_frames - length) * step // (count - 1)
        numbers = frame_indices(num_frames, start, 1, length)
        wanted, rows = np.unique(numbers, return_inverse=True)
        yield pace_clip(
            decode(path, wanted),
            torch.from_numpy(rows[None].astype(np.int32)),
            torch.tensor([[0, 4, 0]], dtype=torch.int32),  # (32 - 32) // 2, (40 - 32) // 2
            resize=(32, 40),
            crop_size=(32, 32),
            std=(255.0, 255.0, 255.0),
        )


def pretrained(path: Path, *, data: str = "", seed: int = 0, **changes) -> Path:
    """A checkpoint as pre-training writes it, of a network that was not trained."""
    options = TrainOptions(**{**SMALL, "data": data, **changes}).resolved()
    classes = [str(pace) for pace in options.sampling().classes]
    return _checkpoint(path, "pretrain", options, classes, seed)


def finetuned(path: Path, *, data: str = "", seed: int = 0, classes=CLASSES, **changes) -> Path:
    """A checkpoint as fine-tuning writes it, of a network that was not trained."""
    options = FinetuneOptions(**{**SMALL, "data": data, **changes}).resolved()
    return _checkpoint(path, "finetune", options, list(classes), seed)


def _warm(backbone: nn.Module, options) -> None:
    """Gives the batch norms averages that keep features apart."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        shape = (4, 3, options.clip_frames, options.crop, options.crop)
        backbone.train()(torch.rand(shape))


def _checkpoint(path: Path, kind: str, options, classes: list[str], seed: int) -> Path:
    torch.manual_seed(seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    _warm(backbone, options)
    head = nn.Linear(backbone.feature_dim, len(classes))
    nn.init.normal_(head.weight, std=3.0)  # scores that differ from class to class
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    content = {"kind": kind, "model": state, "options": asdict(options), "classes": classes}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, content)
    return path
