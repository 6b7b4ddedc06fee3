"""Every random draw of the input pipeline: which frames, crop, flip and jitter a clip gets.

Draws come from Philox, a counter-based generator, keyed by (seed, purpose) with the counter set
from (pass over the data, video, view) and counting on through the frames. A clip is thus a function
of these numbers alone: the same whatever the number of workers or ranks, and after a resume.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from functools import lru_cache
from numbers import Integral, Rational, Real

import numpy as np

from pacecore._extension import extension
from pacecore.errors import PacecoreError

__all__ = [
    "BOUNDARIES",
    "ClipPlan",
    "Sampling",
    "centre_plan",
    "epoch_order",
    "fitting_starts",
    "frame_indices",
    "loop_share",
    "parse_pace",
    "parse_paces",
    "plan_views",
]

BOUNDARIES = ("restart", "modulo", "clamp")  # in the order of enum Boundary in csrc/frame_index.h
_LONGEST = 2**31  # frames of a video, frames of a clip times pace: far above use, far below int64


class _Purpose(IntEnum):
    """What a draw is for; part of the key, so never renumber."""

    ORDER = 0
    PACE = 1
    START = 2
    CROP = 3
    FLIP = 4
    JITTER = 5
    REVERSE = 6


def parse_pace(pace: int | str | Fraction) -> Fraction:
    """A pace as a rational number: 2, "1/3", Fraction(3, 2); negative ones run backwards.

    Numerator and denominator are at most 1000. Raises PacecoreError for others, a float, zero, or
    text that is no ratio of integers.
    """
    try:
        if isinstance(pace, bool) or not isinstance(pace, str | Rational):
            raise ValueError
        if isinstance(pace, str) and not re.fullmatch(r"-?\d+(/\d+)?", pace):
            raise ValueError
        value = Fraction(pace)
        value = Fraction(int(value.numerator), int(value.denominator))  # NumPy's would overflow
    except (ValueError, TypeError, ZeroDivisionError):
        rule = "must be a whole number or a ratio such as 1/3"
        raise PacecoreError(f"pace {rule}, got {pace!r}") from None
    if value == 0 or max(abs(value.numerator), value.denominator) > 1000:
        rule = "must be n/d with n and d from 1 to 1000, or -n/d"
        raise PacecoreError(f"pace {rule}, got {pace}")
    return value


def parse_paces(paces: str) -> tuple[Fraction, ...]:
    """A set of paces, "1/3,1/2,1,2,3", in ascending order: the rank is the label (Table 1 of the
    paper). Raises PacecoreError for what is no such text.
    """
    _require(isinstance(paces, str), "paces must be text such as 1/3,1/2,1,2,3", paces)
    values = sorted(parse_pace(word.strip()) for word in paces.split(","))
    if len(set(values)) < len(values):
        raise PacecoreError(f"paces must differ from each other, got {paces}")
    if values[0] < 0:
        raise PacecoreError(f"paces must be positive, got {paces}")
    return tuple(values)


def frame_indices(
    num_frames: int,
    start_frame: int,
    pace: int | str | Fraction,
    clip_frames: int,
    boundary: str = "restart",
) -> np.ndarray:
    """Frame numbers, 0-based, of a clip that starts at `start_frame` and runs at `pace`.

    Step k of a run shows start + floor(k * pace): every p-th frame when fast, each frame 1/p times
    when slow (section 3.1 of the paper). At the end of the video `boundary` decides: "restart" goes
    on from frame 0 with phase 0, "modulo" wraps the frame number, "clamp" holds the last frame. A
    negative pace shows the same frames in reverse.

        frame_indices(10, 7, 3, 8)     ->  7 0 3 6 9 0 3 6
        frame_indices(10, 8, "1/2", 8) ->  8 8 9 9 0 0 1 1

    Returns an int64 array (clip_frames,). Raises PacecoreError for a value of another type
    or out of range.
    """
    value = parse_pace(pace)
    counts = {"num_frames": num_frames, "start_frame": start_frame, "clip_frames": clip_frames}
    for name, number in counts.items():
        _require(isinstance(number, Integral), f"{name} must be a whole number", number)
    frames, start, length = map(int, counts.values())
    _require(1 <= frames < _LONGEST, f"num_frames must be from 1 to {_LONGEST - 1}", frames)
    rule = f"start_frame must be from 0 to num_frames - 1 = {frames - 1}"
    _require(0 <= start < frames, rule, start)
    _require(1 <= length < _LONGEST, f"clip_frames must be from 1 to {_LONGEST - 1}", length)
    _require_one_of("boundary", boundary, BOUNDARIES)
    return extension().frame_indices(
        frames, start, value.numerator, value.denominator, BOUNDARIES.index(boundary), length
    )


def fitting_starts(num_frames: int, pace: Fraction, clip_frames: int) -> int:
    """How many start frames let a clip end without leaving the video; at least 1, so a short video
    starts at 0.
    """
    return max(1, num_frames - _last_step(pace, clip_frames))


def loop_share(
    lengths: np.ndarray | list[int], pace: Fraction, clip_frames: int, start: str = "all"
) -> float:
    """Share of clips that leave the video and loop, which betrays the pace.

    lengths: frames of each video. start: "all", starts uniform over all frames: on UCF101 16 frames
    loop in 10, 20, 31, 41 % of cases at pace 1, 2, 3, 4; "fit": where the clip fits, so that all
    clips of the videos that are too short loop, and no others. Raises PacecoreError for a value of
    another type or out of range.
    """
    pace = parse_pace(pace)
    _require_count("clip_frames", clip_frames)
    _require_one_of("start", start, _SAMPLING_CHOICES["start"])
    lengths, last = np.asarray(lengths), _last_step(pace, clip_frames)
    counts = lengths.ndim == 1 and len(lengths) and lengths.dtype.kind in "iuf"
    _require(counts and lengths.min() >= 1, "lengths must be numbers from 1, one axis", lengths)
    if start == "fit":
        return float(np.mean(lengths <= last))
    return float(np.mean(np.minimum(last, lengths) / lengths))


def _last_step(pace: Fraction, clip_frames: int) -> int:
    return (int(clip_frames) - 1) * abs(pace.numerator) // pace.denominator


# Colour jitter (section 3.4 of the paper): brightness, contrast and saturation are uniform in
# [1 - x, 1 + x], the hue in [-x, x] turns, in this share of the frames.
_FACTORS, _HUE, _JITTERED = 0.8, 0.2, 0.8
_SAMPLING_CHOICES = {
    "view_paces": ("distinct", "free"),
    "view_augment": ("own", "shared"),
    "start": ("all", "fit"),
    "boundary": BOUNDARIES,
    "reverse": ("off", "augment", "label"),
}


def _require(holds: bool, rule: str, got: object) -> None:
    if not holds:
        raise PacecoreError(f"{rule}, got {got!r}")


def _require_count(name: str, value: int) -> None:
    _require(
        isinstance(value, Integral) and value >= 1, f"{name} must be a whole number from 1", value
    )


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} must be one of {', '.join(choices)}", value)


@dataclass(frozen=True)
class Sampling:
    """How clips are drawn from videos: paces, views, geometry, jitter. Sizes in pixels (height,
    width). Raises PacecoreError for a value of another type or out of range.
    """

    paces: tuple[Fraction, ...] = tuple(map(Fraction, (1, 2, 3, 4)))
    clip_frames: int = 16
    views: int = 2
    view_paces: str = "distinct"  # "distinct": views of a video differ in pace; "free": drawn alike
    view_augment: str = "own"  # "shared": one crop, flip and jitter for all views of a video
    start: str = "all"  # "all": any frame of the video; "fit": only starts whose clip does not loop
    boundary: str = "restart"
    reverse: str = "off"  # "augment": half the clips backwards, same label; "label": signed paces
    resize: tuple[int, int] = (128, 171)
    crop: tuple[int, int] = (112, 112)
    flip: float = 0.5
    jitter: str | None = "frame"  # each frame draws its own; "clip": one draw for all; None: none
    seed: int = 0

    def __post_init__(self) -> None:
        fractions = isinstance(self.paces, tuple) and all(
            isinstance(pace, Rational) and pace > 0 for pace in self.paces
        )
        if not fractions or not self.paces or list(self.paces) != sorted(set(self.paces)):
            raise PacecoreError(
                f"paces must be positive and ascend, as parse_paces gives them, got {self.paces}"
            )
        for name in ("clip_frames", "views"):
            _require_count(name, getattr(self, name))
        jitters = self.jitter in ("frame", "clip", None)
        _require(jitters, "jitter must be frame, clip, or None for none", self.jitter)
        for name, choices in _SAMPLING_CHOICES.items():
            _require_one_of(name, getattr(self, name), choices)
        for name in ("resize", "crop"):
            size = getattr(self, name)
            pair = isinstance(size, tuple) and [isinstance(n, Integral) for n in size] == [True] * 2
            _require(pair, f"{name} must be (height, width)", size)
        inside = all(1 <= c <= r for c, r in zip(self.crop, self.resize, strict=True))
        _require(inside, f"crop must be 1 to resize {self.resize}", self.crop)
        probable = isinstance(self.flip, Real) and 0 <= self.flip <= 1
        _require(probable, "flip must be 0 to 1", self.flip)
        seeds = isinstance(self.seed, Integral) and 0 <= self.seed < 2**64
        _require(seeds, "seed must be a whole number from 0 to 2^64 - 1", self.seed)

    @property
    def classes(self) -> tuple[Fraction, ...]:
        """The paces that are told apart, ascending; with reverse="label" the negative ones too."""
        if self.reverse == "label":
            return tuple(sorted(self.paces + tuple(-pace for pace in self.paces)))
        return self.paces


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """All that was drawn for one clip; with the decoded frames it determines the clip."""

    pace: Fraction
    label: int
    start_frame: int
    frame_numbers: np.ndarray  # (T,) int64, frames of the video in the order shown
    crop: np.ndarray  # (3,) int32: top, left in the resized image, flip 0 or 1
    jitter: np.ndarray  # (T, 4) float32: brightness, contrast, saturation, hue
    jitter_order: np.ndarray  # (T,) int32: -1 none, else 2 bits a step (see ops.pace_clip)


def _uniforms(
    sampling_seed: int, purpose: _Purpose, data_pass: int, video: int, view: int, count: int
) -> np.ndarray:
    """`count` float64 in [0, 1), from 53 bits each."""
    key, counter = (  # lists of NumPy's own unsigned numbers would pass through float64
        np.array(words, dtype=np.uint64)
        for words in ((sampling_seed, int(purpose)), (0, data_pass, video, view))
    )
    generator = np.random.Philox(key=key, counter=counter)
    return (generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=2)  # every step asks, and of 250,000 videos it takes as long as a step
def epoch_order(seed: int, data_pass: int, num_videos: int) -> np.ndarray:
    """Order in which pass `data_pass` visits the videos: a permutation, int64 (num_videos,), not
    to be written to.
    """
    order = np.argsort(_uniforms(seed, _Purpose.ORDER, data_pass, 0, 0, num_videos), kind="stable")
    order.setflags(write=False)
    return order


def plan_views(sampling: Sampling, num_frames: int, data_pass: int, video: int) -> list[ClipPlan]:
    """The clips of one video in one pass over the data, one plan a view, each with its own start.

    With view_paces="distinct" the paces of the views differ; raises PacecoreError where there are
    fewer paces than views.
    """
    paces = sampling.classes
    if sampling.view_paces == "distinct" and sampling.views > len(paces):
        raise PacecoreError(
            f"views must be at most {len(paces)}, the number of paces, unless view_paces is free;"
            f" got {sampling.views}"
        )
    # Ranks of uniforms are a uniform permutation: its first entries are distinct paces, each
    # uniform.
    order = np.argsort(_uniforms(sampling.seed, _Purpose.PACE, data_pass, video, 0, len(paces)))
    plans = []
    for view in range(sampling.views):
        if sampling.view_paces == "distinct" or view == 0:
            label = int(order[view])
        else:
            draw = _uniforms(sampling.seed, _Purpose.PACE, data_pass, video, view, 1)[0]
            label = int(draw * len(paces))
        plans.append(_plan_view(sampling, num_frames, data_pass, video, view, label))
    return plans


def _plan_view(
    sampling: Sampling, num_frames: int, data_pass: int, video: int, view: int, label: int
) -> ClipPlan:
    def draw(purpose: _Purpose, count: int, view: int = view) -> np.ndarray:
        return _uniforms(sampling.seed, purpose, data_pass, video, view, count)

    # The view whose crop, flip and jitter are used.
    look = 0 if sampling.view_augment == "shared" else view
    pace = sampling.classes[label]
    starts = (
        fitting_starts(num_frames, pace, sampling.clip_frames)
        if sampling.start == "fit"
        else num_frames
    )
    start_frame = int(draw(_Purpose.START, 1)[0] * starts)
    shown = -pace if sampling.reverse == "augment" and draw(_Purpose.REVERSE, 1)[0] < 0.5 else pace
    room = np.subtract(sampling.resize, sampling.crop) + 1
    top, left = (draw(_Purpose.CROP, 2, look) * room).astype(np.int32)
    flip = draw(_Purpose.FLIP, 1, look)[0] < sampling.flip
    factors, order = _draw_jitter(sampling, draw(_Purpose.JITTER, 12 * sampling.clip_frames, look))
    return ClipPlan(
        pace=shown,
        label=label,
        start_frame=start_frame,
        frame_numbers=frame_indices(
            num_frames, start_frame, shown, sampling.clip_frames, sampling.boundary
        ),
        crop=np.array([top, left, flip], dtype=np.int32),
        jitter=factors,
        jitter_order=order,
    )


def _draw_jitter(sampling: Sampling, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (T, 4) float32 and order (T,) int32. Three counter steps of four draws belong to
    each frame.
    """
    rows = uniforms.reshape(sampling.clip_frames, 12)
    if sampling.jitter is None:
        return _no_jitter(sampling.clip_frames)
    if sampling.jitter == "clip":
        rows = np.broadcast_to(rows[:1], rows.shape)
    low, high = 1 - _FACTORS, 1 + _FACTORS
    factors = np.empty((sampling.clip_frames, 4), dtype=np.float32)
    factors[:, :3] = low + rows[:, 1:4] * (high - low)
    factors[:, 3] = (2 * rows[:, 4] - 1) * _HUE
    steps = np.argsort(rows[:, 5:9], axis=1)
    order = (steps << np.array([0, 2, 4, 6])).sum(axis=1)
    return factors, np.where(rows[:, 0] < _JITTERED, order, -1).astype(np.int32)


def _no_jitter(clip_frames: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((clip_frames, 4), np.float32), np.full(clip_frames, -1, dtype=np.int32)


def centre_plan(
    sampling: Sampling, num_frames: int, start_frame: int, pace: Fraction, label: int
) -> ClipPlan:
    """The clip of an evaluation: given start, centre crop at floor((size - crop) / 2), no flip, no
    jitter.
    """
    top, left = np.subtract(sampling.resize, sampling.crop) // 2
    factors, order = _no_jitter(sampling.clip_frames)
    return ClipPlan(
        pace=pace,
        label=label,
        start_frame=start_frame,
        frame_numbers=frame_indices(
            num_frames, start_frame, pace, sampling.clip_frames, sampling.boundary
        ),
        crop=np.array([top, left, 0], dtype=np.int32),
        jitter=factors,
        jitter_order=order,
    )
