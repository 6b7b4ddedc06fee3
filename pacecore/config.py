"""The options of training: one dataclass a verb, presets, TOML files, and their checks.

A field's metadata holds its help and its rule, so that the command line, the TOML reader and the
checks all read one definition. A preset is a name for a set of options; an option given beside it
wins; the full set is written into the run.
"""

import difflib
import math
import sys
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pacecore.errors import PacecoreError
from pacecore.sampling import BOUNDARIES, Jitter, Sampling, parse_paces

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "PRESETS",
    "AttendOptions",
    "ExtractOptions",
    "FinetuneOptions",
    "MeasureOptions",
    "OptionError",
    "RetrieveOptions",
    "RunOptions",
    "TestOptions",
    "TrainOptions",
    "from_mapping",
    "input_scale",
    "option_type",
    "read_toml",
    "write_toml",
]

AnyOptions = TypeVar("AnyOptions", bound="RunOptions | MeasureOptions")

# What a backbone is fed where nothing else is said: frames, resize (height, width), crop.
_INPUT = {"s3dg": (64, (256, 256), 224)}
_USUAL_INPUT = (16, (128, 171), 112)

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


class OptionError(PacecoreError):
    """An option is unknown or out of range; names the option, the rule and the value."""


def _option(default: Any, text: str, *, choices: tuple = (), low: Any = None, high: Any = None):
    rule = {"help": text, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=rule)


@dataclass(frozen=True)
class RunOptions:
    """What pre-training and fine-tuning share."""

    data: str = _option("", "Folder, list or index of videos; empty: the built-in demo set.")
    held_out: str = _option(
        "auto", "Videos to measure on: auto (the data's test split, else a tenth), none, or a path."
    )
    fold: str = _option("1", "Which of the data set's splits: a number, or a list's name.")
    out: str = _option("", "Run folder; empty: runs/<verb>-<n>.")
    seed: int = _option(0, "Seed of every draw.", low=0, high=2**63 - 1)
    device: str = _option("auto", "auto, cpu, cuda or cuda:<n>.")
    workers: int = _option(-1, "Decoding processes; -1: by the number of cores.", low=-1, high=512)
    data_on: str = _option(
        "auto", "Where the frames of a store are held; auto: on the GPU if they fit.",
        choices=("auto", "host", "device"),
    )  # fmt: skip
    max_bad: int = _option(10, "Unreadable videos to skip before the run stops.", low=0)
    decode_timeout: float = _option(120.0, "Seconds to wait for one batch of videos.", low=1)
    deterministic: bool = _option(False, "Bit-for-bit repeatable on CUDA too, at some cost.")
    # network
    backbone: str = _option("r21d", "Network.", choices=("c3d", "r3d", "r21d", "s3dg"))
    depth: int = _option(0, "Depth of r3d and r21d; 0: one block a stage, as in the paper.", low=0)
    width: float = _option(1.0, "Factor on the number of channels.", low=0.01, high=8.0)
    checkpointing: bool = _option(False, "Recompute activations to save memory.")
    sync_bn: bool = _option(False, "Batch norm over all ranks.")
    # clips
    clip_frames: int = _option(0, "Frames of a clip; 0: 16, and 64 for s3dg.", low=0, high=4096)
    resize: tuple = _option((), "HEIGHT,WIDTH of a resized frame; empty: 128,171 (s3dg 256,256).")
    crop: int = _option(0, "Side of the crop; 0: 112, and 224 for s3dg.", low=0, high=4096)
    flip: float = _option(0.5, "Probability of a mirrored clip.", low=0.0, high=1.0)
    jitter: bool = _option(True, "Colour jitter.")
    jitter_scope: str = _option("frame", "What draws its own jitter.", choices=("frame", "clip"))
    start: str = _option(
        "all", "Start frames: all of the video, or only those that fit.", choices=("all", "fit")
    )
    boundary: str = _option("restart", "What a clip does at the end.", choices=BOUNDARIES)
    normalize: str = _option(
        "none", "Range of the input: none 0..255, unit 0..1.", choices=("none", "unit", "imagenet")
    )
    channel_order: str = _option("rgb", "Order of the channels.", choices=("rgb", "bgr"))
    # optimisation
    batch: int = _option(30, "Videos a step, over all ranks.", low=1)
    accumulate: int = _option(1, "Parts that a batch is computed in, one after another.", low=1)
    epochs: int = _option(18, "Epochs.", low=1)
    max_steps: int = _option(0, "Stop after so many steps; 0: after the epochs.", low=0)
    repeat: int = _option(10, "How often an epoch visits each video.", low=1)
    lr: float = _option(1e-3, "Learning rate.", low=0.0)
    momentum: float = _option(0.9, "Momentum of SGD.", low=0.0, high=1.0)
    nesterov: bool = _option(False, "Nesterov's momentum.")
    weight_decay: float = _option(5e-3, "Weight decay, on all parameters.", low=0.0)
    schedule: str = _option("step", "Learning rate over time.", choices=("step", "cosine"))
    lr_step: int = _option(6, "Epochs between divisions by ten (schedule step).", low=1)
    warmup_steps: int = _option(0, "Steps of linear warm-up.", low=0)
    amp: str = _option("none", "Type of the network's arithmetic.", choices=("none", "bf16"))
    # record
    save_minutes: float = _option(10.0, "Minutes between checkpoints; also at each epoch.", low=0)
    log_every: int = _option(10, "Steps between lines of metrics.jsonl.", low=1)
    tensorboard: bool = _option(False, "Also write TensorBoard events (extra `tensorboard`).")

    def resolved(self: AnyOptions) -> AnyOptions:
        """The same options with every default that depends on another one filled in, checked."""
        frames, resize, crop = _INPUT.get(self.backbone, _USUAL_INPUT)
        result = replace(
            self,
            clip_frames=self.clip_frames or frames,
            resize=tuple(self.resize) or resize,
            crop=self.crop or crop,
        )
        result.check()
        return result

    def check(self) -> None:
        """Raises OptionError for the first value that breaks its rule."""
        for each in fields(self):
            _check_field(each, getattr(self, each.name))
        if len(self.resize) != 2 or not all(1 <= side <= 4096 for side in self.resize):
            raise OptionError(f"resize must be HEIGHT,WIDTH, each 1 to 4096, got {self.resize}")
        if self.crop > min(self.resize):
            raise OptionError(f"crop must be at most resize {self.resize}, got {self.crop}")
        if self.accumulate > self.batch:
            raise OptionError(
                f"accumulate must be at most batch, {self.batch}, got {self.accumulate}"
            )


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Self-supervised pre-training; the defaults are the paper's setting."""

    paces: str = _option("1,2,3,4", "Paces to tell apart, such as 1/3,1/2,1,2,3.")
    reverse: str = _option(
        "off", "Backwards clips: none, as augmentation, or as classes of their own.",
        choices=("off", "augment", "label"),
    )  # fmt: skip
    views: int = _option(2, "Clips of a video in a batch.", low=1, high=64)
    view_paces: str = _option(
        "distinct", "Paces of the views of a video.", choices=("distinct", "free")
    )
    view_augment: str = _option(
        "own", "Crop, flip and jitter of the views of a video.", choices=("own", "shared")
    )
    lambda_cls: float = _option(1.0, "Weight of the pace classification loss.", low=0.0)
    lambda_ctr: float = _option(0.1, "Weight of the contrastive loss.", low=0.0)
    contrast: str = _option(
        "context", "Positive pairs: clips of a video (Eq. 2), of a pace (Eq. 3), or no contrast.",
        choices=("context", "pace", "none"),
    )  # fmt: skip
    denominator: str = _option("anchor", "Denominator of Eq. 2.", choices=("anchor", "batch"))
    z_norm: bool = _option(False, "Normalise the embeddings of the contrastive loss.")
    temperature: float = _option(1.0, "Temperature of the contrastive loss.", low=1e-3, high=1e3)
    proj_dim: int = _option(0, "Size of a projection before the contrastive loss; 0: none.", low=0)

    def check(self) -> None:
        super().check()
        sampling = self.sampling()
        if len(sampling.classes) < 2 and self.lambda_cls > 0:
            raise OptionError(f"paces must be two or more to tell apart, got {self.paces}")
        if self.view_paces == "distinct" and self.views > len(sampling.classes):
            raise OptionError(
                f"views must be at most the number of paces, {len(sampling.classes)}, unless"
                f" view_paces is free; got {self.views}"
            )
        if self.lambda_cls == 0 and (self.lambda_ctr == 0 or self.contrast == "none"):
            raise OptionError("lambda_cls and the contrastive loss must not both be off")

    def sampling(self) -> Sampling:
        return Sampling(
            paces=parse_paces(self.paces),
            clip_frames=self.clip_frames,
            views=self.views,
            view_paces=self.view_paces,
            view_augment=self.view_augment,
            start=self.start,
            boundary=self.boundary,
            reverse=self.reverse,
            resize=tuple(self.resize),
            crop=(self.crop, self.crop),
            flip=self.flip,
            jitter=Jitter(scope=self.jitter_scope) if self.jitter else None,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """Supervised action recognition: all weights, a new head, pace 1, jitter off."""

    checkpoint: str = _option("", "Pre-trained weights; empty: from scratch.")
    freeze: str = _option(
        "none", "Weights that stay: none, or the backbone's (linear probe).",
        choices=("none", "backbone"),
    )  # fmt: skip
    val_share: float = _option(
        0.0,
        "Share of the training videos to choose the best checkpoint on; of names such as"
        " v_Punch_g01_c02 in whole groups.",
        low=0.0,
        high=0.9,
    )
    dropout: float = _option(0.0, "Dropout before the head.", low=0.0, high=0.99)
    label_smoothing: float = _option(0.0, "Label smoothing.", low=0.0, high=0.99)
    lr: float = _option(0.0, "Learning rate; 0: 3e-3, and 1e-2 for s3dg.", low=0.0)
    jitter: bool = _option(False, "Colour jitter.")

    def resolved(self) -> "FinetuneOptions":
        rate = self.lr or (1e-2 if self.backbone == "s3dg" else 3e-3)
        return super(FinetuneOptions, replace(self, lr=rate)).resolved()

    def sampling(self) -> Sampling:
        return Sampling(
            paces=parse_paces("1"),
            clip_frames=self.clip_frames,
            views=1,
            start=self.start,
            boundary=self.boundary,
            resize=tuple(self.resize),
            crop=(self.crop, self.crop),
            flip=self.flip,
            jitter=Jitter(scope=self.jitter_scope) if self.jitter else None,
            seed=self.seed,
        )


@dataclass(frozen=True)
class MeasureOptions:
    """What the verbs that only use a network share; how clips are made is the checkpoint's."""

    data: str = _option("", "Folder, list or index of videos; empty: what it was trained on.")
    held_out: str = _option("", "Videos to measure on; empty: as it was trained.")
    fold: str = _option("", "Which of the data set's splits; empty: as it was trained.")
    out: str = _option("", "Folder for the results; empty: beside the checkpoint.")
    device: str = _option("auto", "auto, cpu, cuda or cuda:<n>.")
    workers: int = _option(-1, "Decoding processes; -1: by the number of cores.", low=-1, high=512)
    decode_timeout: float = _option(120.0, "Seconds to wait for one batch of videos.", low=1)
    amp: str = _option("none", "Type of the network's arithmetic.", choices=("none", "bf16"))
    batch_clips: int = _option(
        40, "Clips at once; where memory ends, it goes on with half as many.", low=1
    )
    clips: int = _option(10, "Clips of a video, evenly spaced.", low=1, high=10_000)

    def resolved(self: AnyOptions) -> AnyOptions:
        self.check()
        return self

    def check(self) -> None:
        """Raises OptionError for the first value that breaks its rule."""
        for each in fields(self):
            _check_field(each, getattr(self, each.name))


@dataclass(frozen=True)
class TestOptions(MeasureOptions):
    """The 10-clip protocol of action recognition, or held-out pace accuracy."""

    __test__ = False  # not a test case, whatever pytest makes of the name
    average: str = _option(
        "softmax", "What is averaged over the clips of a video.", choices=("softmax", "logits")
    )
    resamples: int = _option(2000, "Resamples of the bootstrap interval.", low=100, high=1_000_000)
    seed: int = _option(0, "Seed of the bootstrap.", low=0)


@dataclass(frozen=True)
class ExtractOptions(MeasureOptions):
    """Features of videos to a file."""

    stage: str = _option("p5", "Which features.", choices=("p4", "p5", "gap"))
    pool: str = _option(
        "max", "Max-pooled and flattened, or averaged over the map.", choices=("max", "gap")
    )
    unit: str = _option("video", "One row a video, or a clip.", choices=("video", "clip"))
    split: str = _option("all", "Which videos.", choices=("all", "train", "test"))
    format: str = _option("npy", "Kind of file.", choices=("npy", "safetensors"))


@dataclass(frozen=True)
class RetrieveOptions(MeasureOptions):
    """Nearest neighbours of the held-out videos among the training videos."""

    stage: str = _option("p5", "Which features.", choices=("p4", "p5", "gap"))
    pool: str = _option(
        "max", "Max-pooled and flattened, or averaged over the map.", choices=("max", "gap")
    )
    unit: str = _option("video", "What is searched: videos, or clips.", choices=("video", "clip"))
    k: str = _option("1,5,10,20,50", "Numbers of neighbours, such as 1,5,10.")
    gallery: int = _option(0, "Queries to draw with their neighbours.", low=0, high=100)

    def check(self) -> None:
        super().check()
        if not self.ks:
            raise OptionError(f"k must be whole numbers from 1, such as 1,5,10, got {self.k!r}")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of neighbours, ascending; empty where `k` is not a list of such."""
        words = [word.strip() for word in self.k.split(",")]
        if not all(word.isascii() and word.isdigit() and int(word) >= 1 for word in words):
            return ()
        return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True)
class AttendOptions(MeasureOptions):
    """Where the network looks, at each pace."""

    paces: str = _option("", "Paces to show; empty: those it was trained on, else 1,2,3,4.")
    start_frame: int = _option(0, "First frame, the same at each pace.", low=0)
    every: int = _option(3, "Frames from one picture of the sheet to the next.", low=1)
    time: str = _option(
        "mean", "Attention over time: its mean, its last step, or each step for its own frames.",
        choices=("mean", "last", "all"),
    )  # fmt: skip
    count: int = _option(4, "How many of the held-out videos to show.", low=1)
    rate: int = _option(8, "Frames a second of the film.", low=1, high=120)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {"channel_order": "bgr", "contrast": "none", "lambda_ctr": 0.0, "views": 1},
    "modern": {
        "jitter_scope": "clip",
        "z_norm": True,
        "temperature": 0.1,
        "schedule": "cosine",
        "amp": "bf16",
    },
    "small": {
        "width": 0.25,
        "resize": (64, 86),
        "crop": 56,
        "start": "fit",
        "jitter_scope": "clip",
        "normalize": "unit",
        "lr": 0.03,
        "schedule": "cosine",
        "weight_decay": 5e-4,
        "nesterov": True,
        "batch": 8,
        "epochs": 4,
        "views": 4,
        "view_augment": "shared",
        "z_norm": True,
        "temperature": 0.1,
    },
}
# What runs when no data are named: small, thinner still, for the demo set's plain pictures. With
# jitter, or at three times the learning rate, it was still at chance after as many steps.
PRESETS["demo"] = PRESETS["small"] | {
    "width": 0.125,
    "jitter": False,
    "lr": 0.01,
    "max_steps": 260,
}


def option_type(each: Field) -> type:
    """The plain type of an option's value: bool, int, float, str or tuple."""
    return each.type if isinstance(each.type, type) else get_args(each.type)[0]


def _check_field(each: Field, value: Any) -> None:
    kind, rule = option_type(each), each.metadata
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise OptionError(f"{each.name} must be {_TYPE_NAMES[kind]}, got {value!r}")
    if rule["choices"] and value not in rule["choices"]:
        names = ", ".join(map(str, rule["choices"]))
        raise OptionError(f"{each.name} must be one of {names}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise OptionError(f"{each.name} must be finite, got {value}")
    if rule["low"] is not None and value < rule["low"]:
        raise OptionError(f"{each.name} must be at least {rule['low']}, got {value}")
    if rule["high"] is not None and value > rule["high"]:
        raise OptionError(f"{each.name} must be at most {rule['high']}, got {value}")


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "HEIGHT,WIDTH",
}


def from_mapping(
    kind: type[AnyOptions], values: dict[str, Any], *, preset: str | None = None, source: str = ""
) -> AnyOptions:
    """Resolved options of `kind` from the preset's values and, over them, `values`.

    Raises OptionError for an unknown key (with the nearest name) or a value that breaks its rule;
    `source` names the file that the values came from.
    """
    known = {each.name: each for each in fields(kind)}
    merged: dict[str, Any] = {}
    if preset:
        if preset not in PRESETS:
            raise OptionError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        merged = {name: value for name, value in PRESETS[preset].items() if name in known}
    for name, value in values.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise OptionError(f"{source + ': ' if source else ''}unknown option {name}{hint}")
        kept = tuple(value) if option_type(known[name]) is tuple and type(value) is list else value
        merged[name] = (
            float(kept) if option_type(known[name]) is float and type(kept) is int else kept
        )
    try:
        return kind(**merged).resolved()
    except PacecoreError as error:
        raise OptionError(f"{source}: {error}" if source else str(error)) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The options written in a TOML file. Raises OptionError naming the file."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise OptionError(f"{path}: options cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not a TOML file: {error}") from None


def write_toml(options: RunOptions) -> str:
    """The full set of options as TOML text, which read_toml reads back."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(options).items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def input_scale(normalize: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the three channels, R G B, in units of 0..255, for an option `normalize`."""
    if normalize == "imagenet":
        return _IMAGENET_MEAN, _IMAGENET_STD
    return (0.0,) * 3, (255.0 if normalize == "unit" else 1.0,) * 3
