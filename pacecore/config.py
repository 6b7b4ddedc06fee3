"""The options of the verbs: one dataclass a verb. The full set is written into each run."""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeVar

from pacecore.errors import PacecoreError
from pacecore.presets import PRESETS
from pacecore.rules import OptionError, check_fields, option
from pacecore.sampling import BOUNDARIES, Sampling, parse_paces

__all__ = [
    "INPUT_OPTIONS",
    "AnyOptions",
    "AttendOptions",
    "ExtractOptions",
    "FeatureOptions",
    "FinetuneOptions",
    "MeasureOptions",
    "RetrieveOptions",
    "RunOptions",
    "TestOptions",
    "TrainOptions",
    "from_mapping",
    "input_scale",
    "taken",
]

AnyOptions = TypeVar("AnyOptions", bound="RunOptions | MeasureOptions")

# Options of the clips that a network was trained on, which its weights are of no use without.
INPUT_OPTIONS = ("clip_frames", "resize", "crop", "normalize", "channel_order")
# What a backbone is fed where nothing else is said: frames, resize (height, width), crop.
_INPUT = {"s3dg": (64, (256, 256), 224)}
_USUAL_INPUT = (16, (128, 171), 112)
# The fewest frames and the smallest crop whose map outlasts every pooling; others take any.
_SMALLEST_INPUT = {"c3d": (8, 16)}

# Options that tell something else than the setting; see pacecore.rules.
_run, _course, _place, _machine = (
    partial(option, tells=what) for what in ("run", "course", "place", "machine")
)

_LONGEST_WAIT = 1e6  # seconds; the system counts milliseconds in 31 bits

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class RunOptions:
    """What pre-training and fine-tuning share."""

    data: str = _place("", "Folder, list or index of videos; empty: the built-in demo set.")
    held_out: str = _place(
        "auto",
        "Videos to measure on: auto (the data's test or val split, else every tenth), none, or a"
        " path.",
    )
    fold: str = _run("1", "Which of the data set's splits: a number, or a list's name.")
    out: str = _place("", "Run folder; empty: runs/<verb>-<n>.")
    seed: int = _run(0, "Seed of every draw.", low=0, high=2**63 - 1)
    device: str = _machine("auto", "auto, cpu, cuda or cuda:<n>.")
    workers: int = _machine(-1, "Decoding processes; -1: by the number of cores.", low=-1, high=512)
    data_on: str = _machine(
        "auto", "Where the frames of a store are held; auto: on the GPU if they fit.",
        choices=("auto", "host", "device"),
    )  # fmt: skip
    max_bad: int = _course(10, "Unreadable videos to skip before the run stops.", low=0)
    decode_timeout: float = _machine(
        120.0, "Seconds to wait for one batch of videos.", low=1, high=_LONGEST_WAIT
    )
    deterministic: bool = _run(False, "Bit-for-bit repeatable on CUDA too, at some cost.")
    # network
    backbone: str = option("r21d", "Network.", choices=("c3d", "r3d", "r21d", "s3dg"))
    depth: int = option(
        0, "Depth of r3d and r21d; 0: one block a stage, as in the paper.", choices=(0, 10, 18)
    )
    width: float = option(1.0, "Factor on the number of channels.", low=0.01, high=4.0)
    checkpointing: bool = _run(
        False, "Compute activations again in the backward pass: less memory, more time."
    )
    sync_bn: bool = option(False, "Batch norm over all ranks.")
    # clips
    clip_frames: int = option(0, "Frames of a clip; 0: 16, and 64 for s3dg.", low=0, high=4096)
    resize: tuple = option((), "HEIGHT,WIDTH of a resized frame; empty: 128,171 (s3dg 256,256).")
    crop: int = option(0, "Side of the crop; 0: 112, and 224 for s3dg.", low=0, high=4096)
    flip: float = option(0.5, "Probability of a mirrored clip.", low=0.0, high=1.0)
    jitter: bool = option(True, "Colour jitter.")
    jitter_scope: str = option("frame", "What draws its own jitter.", choices=("frame", "clip"))
    start: str = option(
        "all", "Start frames: all of the video, or only those that fit.", choices=("all", "fit")
    )
    boundary: str = option("restart", "What a clip does at the end.", choices=BOUNDARIES)
    normalize: str = option(
        "none", "Range of the input: none 0..255, unit 0..1.", choices=("none", "unit", "imagenet")
    )
    channel_order: str = option("rgb", "Order of the channels.", choices=("rgb", "bgr"))
    # optimisation
    batch: int = option(30, "Videos a step, over all ranks.", low=1)
    accumulate: int = option(
        1, "Parts that a batch is computed in, one after another, to save memory.", low=1
    )
    epochs: int = option(18, "Epochs.", low=1)
    max_steps: int = option(0, "Stop after so many steps; 0: after the epochs.", low=0)
    repeat: int = option(
        0, "How often an epoch visits each video; 0: 10 times, those of Kinetics once.", low=0
    )
    lr: float = option(1e-3, "Learning rate.", low=0.0)
    momentum: float = option(0.9, "Momentum of SGD.", low=0.0, high=1.0)
    nesterov: bool = option(False, "Nesterov's momentum.")
    weight_decay: float = option(5e-3, "Weight decay, on all parameters.", low=0.0)
    schedule: str = option("step", "Learning rate over time.", choices=("step", "cosine"))
    lr_step: int = option(6, "Epochs between divisions by ten (schedule step).", low=1)
    warmup_steps: int = option(0, "Steps of linear warm-up.", low=0)
    amp: str = option("none", "Type of the network's arithmetic.", choices=("none", "bf16"))
    compile: bool = _course(False, "Compile the network by torch.compile.")
    graph: bool = _course(False, "Replay the network from a CUDA graph.")
    # record
    save_minutes: float = _course(10.0, "Minutes between checkpoints; also at each epoch.", low=0)
    log_every: int = _course(10, "Steps between lines of metrics.jsonl.", low=1)
    tensorboard: bool = _machine(False, "Also write TensorBoard events (extra `tensorboard`).")

    def resolved(self: AnyOptions) -> AnyOptions:
        """The same options with every default that depends on another one filled in, checked."""
        checked = check_fields(self)
        frames, resize, crop = _INPUT.get(self.backbone, _USUAL_INPUT)
        result = replace(
            checked,
            clip_frames=self.clip_frames or frames,
            resize=self.resize or resize,
            crop=self.crop or crop,
        )
        result.check()
        return result

    def _sampling(self, **own: Any) -> Sampling:
        return Sampling(
            clip_frames=self.clip_frames,
            start=self.start,
            boundary=self.boundary,
            resize=tuple(self.resize),
            crop=(self.crop, self.crop),
            flip=self.flip,
            jitter=self.jitter_scope if self.jitter else None,
            seed=self.seed,
            **own,
        )

    def check(self) -> None:
        """Raises OptionError for the first value that breaks its rule."""
        check_fields(self)
        if not self.held_out:  # as of a variable that is not set; it would be the current folder
            raise OptionError("held_out must be auto, none or a path, got ''")
        if len(self.resize) != 2 or not all(
            type(side) is int and 1 <= side <= 4096 for side in self.resize
        ):
            raise OptionError(f"resize must be HEIGHT,WIDTH, each 1 to 4096, got {self.resize}")
        if self.crop > min(self.resize):
            raise OptionError(f"crop must be at most resize {self.resize}, got {self.crop}")
        if self.depth and self.backbone not in ("r3d", "r21d"):
            raise OptionError(f"depth must be 0 for {self.backbone}, got {self.depth}")
        frames, side = _SMALLEST_INPUT.get(self.backbone, (1, 1))
        if self.clip_frames < frames or self.crop < side:
            raise OptionError(
                f"clip_frames and crop must be at least {frames} and {side} for {self.backbone},"
                f" got {self.clip_frames} and {self.crop}"
            )
        if self.accumulate > self.batch:
            raise OptionError(
                f"accumulate must be at most batch, {self.batch}, got {self.accumulate}"
            )
        refused = {
            "graph": {"accumulate": 1, "checkpointing": False, "compile": False},
            "compile": {"checkpointing": False},  # torch compiles no context of one's own there
        }
        for each, others in refused.items():
            for name, off in others.items():
                if getattr(self, each) and (value := getattr(self, name)) != off:
                    raise OptionError(f"{each} does not work with {name}, got {name} = {value}")


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Self-supervised pre-training; the defaults are the paper's setting."""

    paces: str = option("1,2,3,4", "Paces to tell apart, such as 1/3,1/2,1,2,3.")
    reverse: str = option(
        "off", "Backwards clips: none, as augmentation, or as classes of their own.",
        choices=("off", "augment", "label"),
    )  # fmt: skip
    views: int = option(2, "Clips of a video in a batch.", low=1, high=64)
    view_paces: str = option(
        "distinct", "Paces of the views of a video.", choices=("distinct", "free")
    )
    view_augment: str = option(
        "own", "Crop, flip and jitter of the views of a video.", choices=("own", "shared")
    )
    lambda_cls: float = option(1.0, "Weight of the pace classification loss.", low=0.0)
    lambda_ctr: float = option(0.1, "Weight of the contrastive loss.", low=0.0)
    contrast: str = option(
        "context", "Positive pairs: clips of a video (Eq. 2), of a pace (Eq. 3), or no contrast.",
        choices=("context", "pace", "none"),
    )  # fmt: skip
    denominator: str = option(
        "anchor", "Denominator of Eq. 2 and Eq. 3.", choices=("anchor", "batch")
    )
    z_norm: bool = option(False, "Normalise the embeddings of the contrastive loss.")
    temperature: float = option(1.0, "Temperature of the contrastive loss.", low=1e-3, high=1e3)
    proj_dim: int = option(
        0, "Size of a projection before the contrastive loss; 0: none.", low=0, high=65536
    )

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
        if self.views == 1 and self.contrast == "context" and self.lambda_ctr > 0:
            # No clip would have a positive, and the loss would be 0 without a word.
            raise OptionError(
                "views must be 2 or more for contrast context, or contrast none; got views 1"
            )
        unlike = self.contrast == "context" or self.view_paces == "distinct"
        if self.batch == 1 and self.contrast != "none" and self.lambda_ctr > 0 and unlike:
            # Clips of one video have no negatives or no positives: the loss would be 0 again.
            raise OptionError(
                f"batch must be 2 or more for contrast {self.contrast}, or contrast none; got batch"
                " 1 (a higher accumulate saves memory too)"
            )

    def sampling(self) -> Sampling:
        return self._sampling(
            paces=parse_paces(self.paces),
            views=self.views,
            view_paces=self.view_paces,
            view_augment=self.view_augment,
            reverse=self.reverse,
        )


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """Supervised action recognition: all weights, a new head, pace 1, jitter off."""

    checkpoint: str = _place("", "Pre-trained weights; empty: from scratch.")
    partial: bool = option(False, "Take a file that lacks some of the weights, which start afresh.")
    freeze: str = option(
        "none",
        "Weights that stay: none, or the backbone's, whose features are then standardised (linear"
        " probe).",
        choices=("none", "backbone"),
    )
    val_share: float = option(
        0.0,
        "Share of the training videos to choose the best checkpoint on; of names such as"
        " v_Punch_g01_c02 in whole groups.",
        low=0.0,
        high=0.9,
    )
    dropout: float = option(0.0, "Dropout before the head.", low=0.0, high=0.99)
    label_smoothing: float = option(0.0, "Label smoothing.", low=0.0, high=0.99)
    lr: float = option(0.0, "Learning rate; 0: 3e-3, and 1e-2 for s3dg.", low=0.0)
    jitter: bool = option(False, "Colour jitter.")

    def check(self) -> None:
        """Raises OptionError for the first value that breaks its rule."""
        super().check()
        if self.dropout and self.compile and self.accumulate > 1:
            # The first pass over a part is not compiled, and draws other masks than the second.
            raise OptionError(
                f"dropout does not work with compile and accumulate = {self.accumulate} together,"
                f" got {self.dropout}"
            )

    def resolved(self) -> "FinetuneOptions":
        rate = self.lr or (1e-2 if self.backbone == "s3dg" else 3e-3)
        return super(FinetuneOptions, replace(self, lr=rate)).resolved()

    def sampling(self) -> Sampling:
        return self._sampling(paces=parse_paces("1"), views=1)


@dataclass(frozen=True)
class MeasureOptions:
    """What the verbs that only use a network share; how clips are made is the checkpoint's."""

    data: str = _place("", "Folder, list or index of videos; empty: what it was trained on.")
    held_out: str = _place(
        "",
        "Videos to measure on; empty: the test or val split of DATA, else every tenth, or with no"
        " DATA as it was trained.",
    )
    fold: str = _run("", "Which of the data set's splits; empty: as it was trained.")
    out: str = _place("", "Folder for the results; empty: beside the checkpoint.")
    device: str = _machine("auto", "auto, cpu, cuda or cuda:<n>.")
    workers: int = _machine(-1, "Decoding processes; -1: by the number of cores.", low=-1, high=512)
    decode_timeout: float = _machine(
        120.0, "Seconds to wait for one batch of videos.", low=1, high=_LONGEST_WAIT
    )
    amp: str = option("none", "Type of the network's arithmetic.", choices=("none", "bf16"))
    batch_clips: int = option(
        40,
        "Clips at once at most, on a CPU no more than 8; where a GPU's memory ends, it goes on with"
        " half as many.",
        low=1,
    )
    clips: int = option(10, "Clips of a video, evenly spaced.", low=1, high=10_000)

    def resolved(self: AnyOptions) -> AnyOptions:
        result = check_fields(self)
        result.check()
        return result

    def check(self) -> None:
        """Raises OptionError for the first value that breaks its rule."""
        check_fields(self)


@dataclass(frozen=True)
class TestOptions(MeasureOptions):
    """The 10-clip protocol of action recognition, or held-out pace accuracy."""

    __test__ = False  # not a test case, whatever pytest makes of the name
    average: str = option(
        "softmax",
        "After a fine-tuning: what is averaged over the clips of a video.",
        choices=("softmax", "logits"),
    )
    resamples: int = option(
        2000, "After a fine-tuning: resamples of the interval.", low=100, high=1_000_000
    )
    seed: int = _run(0, "Seed of these resamples.", low=0)


@dataclass(frozen=True)
class FeatureOptions(MeasureOptions):
    """Which features of videos."""

    stage: str = option("p5", "Which features.", choices=("p4", "p5", "gap"))
    pool: str = option(
        "max", "Max-pooled and flattened, or averaged over the map.", choices=("max", "gap")
    )
    unit: str = option("video", "One row a video, or a clip.", choices=("video", "clip"))


@dataclass(frozen=True)
class ExtractOptions(FeatureOptions):
    """Features of videos to a file."""

    split: str = option("all", "Which videos.", choices=("all", "train", "test"))
    format: str = option(
        "npy", "Kind of file; one of the other kind gives way.", choices=("npy", "safetensors")
    )


@dataclass(frozen=True)
class RetrieveOptions(FeatureOptions):
    """Nearest neighbours of the held-out videos among the training videos."""

    k: str = option("1,5,10,20,50", "Numbers of neighbours, such as 1,5,10.")
    gallery: int = option(0, "Queries to draw with their neighbours.", low=0, high=100)

    def check(self) -> None:
        super().check()
        if not self.ks:
            raise OptionError(f"k must be whole numbers from 1, such as 1,5,10, got {self.k!r}")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of neighbours, ascending; empty where `k` is not a list of such."""
        words = [word.strip() for word in self.k.split(",")]
        short = all(word.isascii() and word.isdigit() and len(word) < 19 for word in words)
        if not short or min(map(int, words)) < 1:
            return ()
        return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True)
class AttendOptions(MeasureOptions):
    """Where the network looks, at each pace."""

    paces: str = option("", "Paces to show; empty: those it was trained on, else 1,2,3,4.")
    start_frame: int = option(0, "First frame, the same at each pace.", low=0)
    every: int = option(3, "Frames from one picture of the sheet to the next.", low=1)
    time: str = option(
        "mean", "Attention over time: its mean, its last step, or each step for its own frames.",
        choices=("mean", "last", "all"),
    )  # fmt: skip
    count: int = option(4, "How many of the held-out videos to show.", low=1)
    rate: int = option(8, "Frames a second of the film.", low=1, high=120)


def taken(verb: str, options: Any, kind: type[AnyOptions]) -> AnyOptions:
    """The resolved `options` of a verb. Raises OptionError where they are another verb's, or for a
    value that breaks its rule.
    """
    if not isinstance(options, kind):
        got = type(options).__name__
        raise OptionError(f"{verb}: options must be {kind.__name__}, got {got}")
    return options.resolved()


def from_mapping(
    kind: type[AnyOptions],
    values: dict[str, Any],
    *,
    preset: str | None = None,
    source: str = "",
    given: Mapping[str, Any] = MappingProxyType({}),
) -> AnyOptions:
    """Resolved options of `kind` from the preset's values and, over them, `values`.

    Raises OptionError for an unknown key (with the nearest name) or a value that breaks its rule;
    `source` names the file that the values came from, but those `given` beside it (None: was not).
    """
    known = {each.name: each for each in fields(kind)}
    merged: dict[str, Any] = {}
    named = f"{source}: " if source else ""
    if preset is not None:
        if preset not in tuple(PRESETS):  # of a file it may be a list, which no dict looks up
            raise OptionError(f"{named}preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        merged = {name: value for name, value in PRESETS[preset].items() if name in known}
    for name, value in values.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise OptionError(f"{named}unknown option {name}{hint}")
        merged[name] = _as_plain(known[name].type, value)
    try:
        return kind(**merged).resolved()
    except PacecoreError as error:
        first = str(error).split()[0]  # the option's name; of one pace, without its s
        own = given.get(first) is given.get(f"{first}s") is None
        raise OptionError(f"{named if own else ''}{error}") from None


def _as_plain(kind: type, value: Any) -> Any:
    """A value as an option of this type holds it: numbers of NumPy and paths as what they stand
    for, lists as tuples. What it cannot be stays, to be refused.
    """
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(_as_plain(int, side) for side in value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        return value
    if kind is int and isinstance(value, Integral):
        return int(value)
    if kind is float and isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


def input_scale(normalize: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the three channels, R G B, in units of 0..255, for an option `normalize`."""
    if normalize == "imagenet":
        return _IMAGENET_MEAN, _IMAGENET_STD
    return (0.0,) * 3, (255.0 if normalize == "unit" else 1.0,) * 3
