"""The paper's claims in one table, each with what the grids' records say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from pacecore.paper import paper_figures

from .arms import LONG, PACE, PACE_CONTEXT, RANDOM, SCRATCH
from .differences import holm
from .page import BESIDE_CONTEXT

__all__ = ["CLAIMS", "Claim", "Seen", "claims_table", "paper_line"]

_MEASURED = BESIDE_CONTEXT | {"finetune-4x": "fine-tuned four times as long"}
_LONG = {arm.name: arm.words for arm in LONG}
_PACE, _OWN = _LONG["long"], _LONG["long-own"]
_CONTEXT, _CONTEXT_OWN = _LONG["long-pace-context"], _LONG["long-pace-context-own"]


@dataclass(frozen=True)
class Seen:
    """Where a claim is looked at: an arm of a record under a measure."""

    record: str  # of benchmarks/results
    arm: str
    measure: str
    note: str = ""
    main: bool = False  # whether it is of the longer schedule and of a question asked again


@dataclass(frozen=True)
class Claim:
    words: str
    against: Callable[[str], str]  # the arm beside which an arm is seen
    seen: tuple[Seen, ...]


_GRID, _GRID_LONG = "experiments-small", "experiments-small-long"
_MORE, _AGAIN = "experiments-small-long-more", "experiments-small-own"
_PLACE, _PLACE_LONG = "experiments-small-byset", "experiments-small-byset-long"
_UCF101 = "experiments-small-ucf101"
# Of the grids that ask again.
_OTHERS, _ELSEWHERE = "other seeds", "tested in another place"
_CLASSES = "three classes of UCF101"
_ALONE = {PACE_CONTEXT.words: PACE.words, _CONTEXT: _PACE, _CONTEXT_OWN: _OWN}

CLAIMS = (
    Claim(
        "above training from scratch",
        lambda arm: SCRATCH.words,
        (
            Seen(_GRID, PACE.words, "finetune"),
            Seen(_GRID, PACE_CONTEXT.words, "finetune"),
            Seen(_GRID_LONG, _PACE, "finetune"),
            Seen(_GRID_LONG, _PACE, "finetune-4x", main=True),
            Seen(_PLACE_LONG, _PACE, "finetune", _ELSEWHERE),
            Seen(_PLACE_LONG, _PACE, "finetune-4x", _ELSEWHERE, main=True),
            Seen(_UCF101, _PACE, "finetune", _CLASSES),
            Seen(_UCF101, _PACE, "finetune-4x", _CLASSES, main=True),
            Seen(_MORE, _CONTEXT_OWN, "finetune"),
            Seen(_MORE, _CONTEXT_OWN, "finetune-4x", main=True),
            Seen(_PLACE_LONG, _CONTEXT_OWN, "finetune", _ELSEWHERE),
            Seen(_PLACE_LONG, _CONTEXT_OWN, "finetune-4x", _ELSEWHERE, main=True),
            Seen(_UCF101, _CONTEXT_OWN, "finetune", _CLASSES),
            Seen(_UCF101, _CONTEXT_OWN, "finetune-4x", _CLASSES, main=True),
            Seen(_PLACE_LONG, _OWN, "finetune", _ELSEWHERE),
            Seen(_PLACE_LONG, _OWN, "finetune-4x", _ELSEWHERE),
        ),
    ),
    Claim(
        "above random weights",
        lambda arm: RANDOM.words,
        (
            Seen(_GRID, PACE.words, "probe"),
            Seen(_GRID_LONG, _PACE, "probe", main=True),
            Seen(_PLACE_LONG, _PACE, "probe", _ELSEWHERE, main=True),
            Seen(_UCF101, _PACE, "probe", _CLASSES, main=True),
            Seen(_MORE, _CONTEXT_OWN, "probe"),
            Seen(_AGAIN, _CONTEXT_OWN, "probe", _OTHERS),
            Seen(_PLACE, _CONTEXT_OWN, "probe", _ELSEWHERE),
            Seen(_UCF101, _CONTEXT_OWN, "probe", _CLASSES),
            Seen(_PLACE, _OWN, "probe", _ELSEWHERE),
            Seen(_GRID, PACE.words, "retrieve-1"),
            Seen(_GRID_LONG, _PACE, "retrieve-1", main=True),
            Seen(_PLACE_LONG, _PACE, "retrieve-1", _ELSEWHERE, main=True),
            Seen(_UCF101, _PACE, "retrieve-1", _CLASSES, main=True),
            Seen(_MORE, _CONTEXT_OWN, "retrieve-1"),
            Seen(_AGAIN, _CONTEXT_OWN, "retrieve-1", _OTHERS),
            Seen(_PLACE, _CONTEXT_OWN, "retrieve-1", _ELSEWHERE),
            Seen(_UCF101, _CONTEXT_OWN, "retrieve-1", _CLASSES),
            Seen(_PLACE, _OWN, "retrieve-1", _ELSEWHERE),
        ),
    ),
    Claim(
        "same context beside pace is above pace alone",
        _ALONE.__getitem__,
        (
            Seen(_GRID, PACE_CONTEXT.words, "finetune"),
            Seen(_GRID_LONG, _CONTEXT, "probe"),
            Seen(_GRID_LONG, _CONTEXT, "retrieve-1"),
            Seen(_MORE, _CONTEXT_OWN, "finetune", main=True),
            Seen(_MORE, _CONTEXT_OWN, "probe", main=True),
            Seen(_AGAIN, _CONTEXT_OWN, "probe", _OTHERS, main=True),
            Seen(_PLACE, _CONTEXT_OWN, "probe", _ELSEWHERE, main=True),
            Seen(_MORE, _CONTEXT_OWN, "retrieve-1", main=True),
            Seen(_AGAIN, _CONTEXT_OWN, "retrieve-1", _OTHERS, main=True),
            Seen(_PLACE, _CONTEXT_OWN, "retrieve-1", _ELSEWHERE, main=True),
        ),
    ),
)


def claims_table(
    read: Callable[[str], dict], claims: tuple[Claim, ...] = CLAIMS, *, main: bool = False
) -> list[str]:
    """Markdown lines, with `main` of those alone. read: gives a record by its name."""
    lines = [
        "| claim | of | measured | points | 95 % interval | by itself |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        words = claim.words
        for seen in (each for each in claim.seen if each.main or not main):
            against = claim.against(seen.arm)
            difference, low, high, verdict, stays = _found(read(seen.record), seen, against)
            arm = f"{seen.arm}, {seen.note}" if seen.note else seen.arm
            mark = "**" if stays else ""
            lines.append(
                f"| {words} | {arm} | {_MEASURED[seen.measure]} | {100 * difference:+.1f}"
                f" | {100 * low:+.1f} to {100 * high:+.1f} | {mark}{verdict}{mark} |"
            )
            words = ""
    return lines


def _found(record: dict, seen: Seen, against: str) -> tuple[float, float, float, str, bool]:
    """Difference, interval and verdict, and whether it is left when corrected for the number of
    comparisons: those of the grid with its baselines, or those with same context.
    """
    if against in (SCRATCH.words, RANDOM.words):
        cases = [case for case in record["cases"] if case.get("difference") is not None]
        wanted = {"arm": seen.arm, "measure": seen.measure}
    else:
        cases = record["beside_context"]  # how far the others are above same context
        wanted = {"arm": against, "context": seen.arm, "measured": _MEASURED[seen.measure]}
    (case,) = (each for each in cases if wanted.items() <= each.items())
    figures, verdict = (case["difference"], case["low"], case["high"]), case["verdict"]
    if "context" in wanted:
        difference, low, high = figures
        figures = 0.0 - difference, -high, -low  # 0, not -0
        verdict = {"above": "below", "below": "above"}.get(verdict, verdict)
    likelihoods = sorted(each["p"] for each in cases)
    return *figures, verdict, case["p"] in likelihoods[: holm(likelihoods)]


def paper_line() -> str:
    """What the paper's full method reaches, where that could be read."""
    known = [each for each in paper_figures() if each.network == "r21d"]
    figures = " and ".join(f"{each.percent:g} % of {each.data}" for each in known)
    return (
        f"The paper's R(2+1)D, {known[0].method} on {known[0].pretraining}, fine-tunes to {figures}"
        f" ({known[0].source})."
    )
