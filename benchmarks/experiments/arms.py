"""What is compared: the pre-trainings of the paper's Table 3, its ablations, and their settings."""

from dataclasses import dataclass, replace

__all__ = [
    "ABLATIONS",
    "ARMS",
    "LONG",
    "OWN",
    "PACE",
    "PACE_CONTEXT",
    "RANDOM",
    "SCRATCH",
    "SETTINGS",
    "Arm",
    "Setting",
]


@dataclass(frozen=True)
class Arm:
    """One way to get weights before the labels are used."""

    name: str  # of its folder
    words: str
    pretraining: tuple[str, ...] | None  # options of `pacecore train`; None: no pre-training
    schedules: int = 1  # times the setting's length of pre-training
    finetunes: tuple[int, ...] = (1,)  # of all weights, each so many times the setting's length


@dataclass(frozen=True)
class Setting:
    """Sizes and schedules of one scale. Each tuple holds options of a verb."""

    common: tuple[str, ...]  # of every training
    pretrain: tuple[str, ...]  # length of the schedule, all its numbers to be multiplied
    clips: int  # of a pre-training batch, over the views
    views: int  # of a video, at most; fewer where there are fewer paces
    labelled: tuple[str, ...]  # of fine-tuning and of the linear probe
    finetune: tuple[str, ...]  # length, as of `pretrain`
    probe: tuple[str, ...]  # length and learning rate
    # Steps that measure the batch norms' statistics of random weights; of what they begin with each
    # leaves 0.9, and variances of such a network are down to 0.01.
    random: tuple[str, ...]
    minutes: float = 40  # that a cell may take, times its arm's schedules


_NO_CONTRAST = ("--contrast", "none", "--lambda-ctr", "0")
_NO_PACE = ("--lambda-cls", "0", "--lambda-ctr", "1")

SCRATCH = Arm("scratch", "from scratch", None)
# Weights as drawn: the learning rate is 0.
RANDOM = Arm("random", "random weights", ("--lr", "0", *_NO_CONTRAST), finetunes=())
PACE = Arm("pace", "pace", _NO_CONTRAST)
PACE_CONTEXT = Arm("pace-context", "pace + same context", ("--contrast", "context"))
_PACE_PACE = Arm("pace-pace", "pace + same pace", ("--contrast", "pace"))

ARMS = (
    SCRATCH,
    PACE,
    PACE_CONTEXT,
    _PACE_PACE,
    Arm("context", "same context", ("--contrast", "context", *_NO_PACE)),
    Arm("contrast-pace", "same pace", ("--contrast", "pace", *_NO_PACE)),
    RANDOM,
)


def _long(name: str, arm: Arm) -> Arm:
    return replace(arm, name=name, words=f"{arm.words}, four times the steps", schedules=4)


def _paces(name: str, paces: str, *more: str) -> Arm:
    return Arm(f"paces-{name}", f"paces {paces}", (*_NO_CONTRAST, "--paces", paces, *more))


_STEP3 = _paces("step3", "1,4,7,10")
# Whether the schedule is what is short.
_LONG_PACE = _long("long", PACE)

_OWN = ("--view-augment", "own")
_PACE_OWN = Arm("own-augment", "pace, views with crops of their own", (*_NO_CONTRAST, *_OWN))
_CONTEXT_OWN = Arm(
    "pace-context-own",
    "pace + same context, views with crops of their own",
    ("--contrast", "context", *_OWN),
)
_SAME_PACE_OWN = Arm(
    "pace-pace-own",
    "pace + same pace, views with crops of their own",
    ("--contrast", "pace", *_OWN),
)
_LONG_OWN = _long("long-own", _PACE_OWN)
_LONG_CONTEXT_OWN = _long("long-pace-context-own", _CONTEXT_OWN)

# The claims again after four times the steps without labels, and after four times the steps with
# labels too; what might mend same context: one crop, flip and jitter for all views make clips of a
# video alike whatever they show; the same of pace + same pace and of pace alone, to part the crops
# from the contrast; and whether paces further apart, whose features a linear probe, not
# standardised then, liked best after the short schedule, are better after the long one. The
# contrastive ways alone are not here.
LONG = (
    replace(SCRATCH, finetunes=(1, 4)),
    replace(_LONG_PACE, finetunes=(1, 4)),
    replace(_long("long-pace-context", PACE_CONTEXT), finetunes=(1, 4)),
    replace(_long("long-pace-pace", _PACE_PACE), finetunes=(1, 4)),
    replace(_LONG_CONTEXT_OWN, finetunes=(1, 4)),
    replace(_long("long-pace-pace-own", _SAME_PACE_OWN), finetunes=(1, 4)),
    replace(_LONG_OWN, finetunes=(1, 4)),
    replace(_long("long-step3", _STEP3), finetunes=(1, 4)),
    RANDOM,
)

# Whether same context beside pace is above pace alone, both with crops of their own, in other
# trainings than those in which it was first seen: by seeds that the grid above has not had.
OWN = (
    *(replace(arm, finetunes=()) for arm in (_LONG_OWN, _LONG_CONTEXT_OWN)),
    RANDOM,
)


# Pace prediction alone, as in the supplement, so that nothing else explains a difference. The arm
# `pace` of the grid above is their paces 1 to 4.
ABLATIONS = (
    _paces("1-3", "1,2,3"),
    _paces("1-5", "1,2,3,4,5"),
    _paces("1-6", "1,2,3,4,5,6"),
    _paces("slow", "1/4,1/3,1/2,1"),
    _paces("slow-fast", "1/3,1/2,1,2,3"),
    _paces("step2", "1,3,5,7"),
    _STEP3,
    Arm(
        "reverse-augment",
        "backwards as augmentation",
        (*_NO_CONTRAST, "--reverse", "augment"),
    ),
    Arm("reverse-label", "backwards as classes", (*_NO_CONTRAST, "--reverse", "label")),
    Arm("no-jitter", "without colour jitter", (*_NO_CONTRAST, "--no-jitter")),
    _PACE_OWN,
    _LONG_PACE,
    Arm(
        "context-own",
        "same context, views with crops of their own",
        ("--contrast", "context", *_NO_PACE, *_OWN),
    ),
)

# A cell is about 12 minutes of one core of an AMD EPYC.
_SMALL = Setting(
    # On a GPU cuDNN's search for the fastest convolutions, which a repeatable training does
    # without, takes longer than 240 steps. On a CPU it changes nothing.
    common=("--preset", "small", "--deterministic"),
    pretrain=("--epochs", "4", "--max-steps", "240"),
    clips=32,
    views=4,
    labelled=("--batch", "16"),
    finetune=("--epochs", "100", "--max-steps", "200"),
    # Of 200 and 800 steps at 0.003 and 0.01, and 200 at 0.03: what left the least loss of
    # training, of random weights and of pace, with seed 0.
    probe=("--epochs", "400", "--max-steps", "800", "--lr", "0.01"),
    random=("--max-steps", "120"),
)

SETTINGS = {
    "small": _SMALL,
    # Half as long on a processor that multiplies bfloat16 (AMX).
    "small-bf16": replace(_SMALL, common=(*_SMALL.common, "--amp", "bf16")),
    # The paper's own, for a GPU and a data set in full.
    "full": Setting(
        common=("--preset", "paper", "--amp", "bf16"),
        pretrain=("--epochs", "18", "--lr-step", "6"),
        clips=60,
        views=2,
        labelled=(),
        finetune=("--epochs", "18", "--lr-step", "6"),
        probe=("--epochs", "18", "--lr", "0.1"),
        random=("--max-steps", "120"),
        minutes=24 * 60,
    ),
}
