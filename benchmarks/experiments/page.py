"""What the cells say: each arm against its baseline, by how much, and how surely."""

import json
from dataclasses import dataclass

import numpy as np

from pacecore.checkpoint import load_checkpoint
from pacecore.errors import PacecoreError
from pacecore.probe import is_probe

from .arms import PACE_CONTEXT, RANDOM, SCRATCH, Arm
from .cells import Cell
from .differences import compare, holm
from .scenes import group_of, same_scene, without_scenes

__all__ = [
    "BESIDE_CONTEXT",
    "Comparison",
    "Measure",
    "beside_context",
    "evidence_page",
    "filmed_together",
    "hits_of",
    "summary",
    "trained_on",
]


@dataclass(frozen=True)
class Measure:
    """What is counted right or wrong, or in part right, for each held-out video."""

    name: str
    words: str
    file: str  # in the cell's folder
    baseline: Arm


MEASURES = (
    Measure("finetune", "fine-tuned, 10 clips, top-1", "finetune/predictions.jsonl", SCRATCH),
    Measure(
        "finetune-clips", "fine-tuned, clip by clip, top-1", "finetune/predictions.jsonl", SCRATCH
    ),
    Measure(
        "finetune-4x",
        "fine-tuned four times as long, 10 clips, top-1",
        "finetune-4x/predictions.jsonl",
        SCRATCH,
    ),
    Measure("probe", "linear probe, 10 clips, top-1", "probe/predictions.jsonl", RANDOM),
    Measure("retrieve-1", "retrieval, p5, top-1", "pretrain/neighbours-p5-video.jsonl", RANDOM),
    Measure("retrieve-5", "retrieval, p5, top-5", "pretrain/neighbours-p5-video.jsonl", RANDOM),
)


# Under which the arms are laid beside same context, in words.
BESIDE_CONTEXT = {
    "finetune": "fine-tuned",
    "probe": "in a linear probe",
    "retrieve-1": "in retrieval",
}

# Beside the table of the probes, where it is so.
_OF_RAW_FEATURES = (
    "These say nothing: the features were not standardised, and what such a probe reaches goes with"
    " their scale."
)


@dataclass(frozen=True)
class Comparison:
    """One arm's share of right videos, and how far it is above the baseline's."""

    arm: str
    measure: str
    seeds: int
    share: float
    deviation: float  # over seeds, of the sample; 0 for one seed
    difference: float | None  # None where there is no baseline, or for the baseline itself
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # of a difference as large, either way, where there is none
    right: tuple[str, ...] = ()  # of each seed: every video's hit, in the order of their paths
    against: int = 0  # seeds of the baseline

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return ""
        if self.low <= 0 <= self.high:
            return "not told apart"
        verdict = "above" if self.low > 0 else "below"
        return verdict if min(self.seeds, self.against) > 1 else f"{verdict}, of these trainings"


def hits_of(cell: Cell, measure: Measure) -> dict[str, float]:
    """1 for right, 0 for wrong, or the share of right clips, by video; {} where the cell has no
    such result.
    """
    path = cell.folder / measure.file
    if not cell.leaves(path):
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if measure.name == "finetune-clips":
        return {
            line["path"]: line["clips_predicted"].count(line["label"])
            / len(line["clips_predicted"])
            for line in lines
        }
    if "right" in lines[0]:
        return {line["path"]: float(line["right"]) for line in lines}
    labels = {}
    for split in ("train", "test"):
        listed = json.loads((path.parent / f"features-p5-video-{split}.json").read_text())
        labels |= {video["path"]: video["label"] for video in listed["videos"]}
    k = int(measure.name.rpartition("-")[2])
    return {
        line["query"]: float(
            any(labels[found["path"]] == labels[line["query"]] for found in line["neighbours"][:k])
        )
        for line in lines
    }


def _right(cells: list[Cell], arm: Arm, measure: Measure) -> tuple[list[str], np.ndarray]:
    """The videos' paths in order, and (seeds, videos) of an arm's finished cells; (0, 0) where
    there is none.
    """
    found = [hits_of(cell, measure) for cell in cells if cell.arm.name == arm.name]
    found = [hits for hits in found if hits]
    if not found:
        return [], np.zeros((0, 0))
    videos = sorted(found[0])
    if any(sorted(hits) != videos for hits in found):
        raise PacecoreError(f"{arm.name}: its cells were measured on other videos with each seed")
    return videos, np.array([[hits[video] for video in videos] for hits in found], dtype=np.float64)


def comparisons(
    cells: list[Cell], baseline: Arm | None = None, together: str | None = None
) -> list[Comparison]:
    """Every arm under every measure, in the order of the grid.

    baseline: what arms are compared with; None for each measure's own. together: a regular
    expression whose group, in a video's path, names what was filmed together with it.
    """
    arms = {cell.arm.name: cell.arm for cell in cells}
    result = []
    for measure in MEASURES:
        against = baseline or measure.baseline
        of_theirs, theirs = _right(cells, against, measure)
        for arm in arms.values():
            videos, mine = _right(cells, arm, measure)
            if not len(mine):
                continue
            spread = mine.mean(axis=1)
            figures = (None, None, None, None)
            if len(theirs) and arm.name != against.name:
                if videos != of_theirs:
                    raise PacecoreError(
                        f"{arm.name} and {against.name} were measured on other videos: are the"
                        " runs of another data set, or of another place of it?"
                    )
                groups = np.array([group_of(path, together) for path in videos])
                figures = compare(mine, theirs, groups)
            result.append(
                Comparison(
                    arm.words,
                    measure.name,
                    len(mine),
                    float(mine.mean()),
                    float(spread.std(ddof=1)) if len(mine) > 1 else 0.0,
                    *figures,
                    tuple(" ".join(f"{hit:g}" for hit in seed) for seed in mine),
                    len(theirs),
                )
            )
    return result


def _pace_accuracy(cells: list[Cell]) -> list[tuple[str, list[float], float]]:
    """(arm, accuracy of each seed, chance) of held-out pace prediction."""
    rows = []
    for name in dict.fromkeys(cell.arm.name for cell in cells):
        found = []
        for cell in cells:
            path = cell.pretrained / "summary.json"
            if cell.arm.name == name and path.is_file():
                results = json.loads(path.read_text(encoding="utf-8"))["results"]
                if results:  # none where no video was held out
                    found.append((cell.arm.words, results["pace_accuracy"], results["chance"]))
        if found:
            rows.append((found[0][0], [each[1] for each in found], found[0][2]))
    return rows


def _probes_raw(cells: list[Cell]) -> bool:
    """Whether features of any cell's probe were not standardised, as in older runs."""
    found = [cell.folder / "probe" / "last.pt" for cell in cells]
    return any(not is_probe(load_checkpoint(path)["model"]) for path in found if path.is_file())


def _by_seed(title: str, rows: list[tuple[str, list[float], float]]) -> list[str]:
    lines = ["", f"## {title}", "", "| weights | % by seed | chance % |", "|---|---|---|"]
    for words, shares, chance in rows:
        each = ", ".join(f"{100 * share:.1f}" for share in shares)
        lines.append(f"| {words} | {each} | {100 * chance:.1f} |")
    return lines


def evidence_page(
    cells: list[Cell],
    about: str,
    baseline: Arm | None = None,
    scene: str | None = None,
    together: str | None = None,
) -> str:
    """Markdown: the claims first, then a table for each measure.

    With a `baseline` all arms are compared with that one: ablations, which claim nothing. With a
    `scene`, as in scenes.py, there is a table of whether the features tell scenes, and one of
    retrieval by what is left of them without. together: as of `comparisons`.
    """
    found = comparisons(cells, baseline, together)
    if baseline:
        lines = ["# Ablations on real videos", "", about]
    else:
        lines = [
            "# The paper's claims on real videos",
            "",
            about,
            "",
            *_claims(cells, found, together),
        ]
    raw = _probes_raw(cells)
    lines += ["", _standing_out([each for each in found if not (raw and each.measure == "probe")])]
    for measure in MEASURES:
        rows = [each for each in found if each.measure == measure.name]
        if not rows:
            continue
        against = (baseline or measure.baseline).words
        lines += ["", f"## {measure.words[0].upper()}{measure.words[1:]}", ""]
        if measure.name == "probe" and raw:
            lines += [_OF_RAW_FEATURES, ""]
        lines += [
            f"| weights | seeds | % | above {against} by | 95 % interval | |",
            "|---|---|---|---|---|---|",
        ]
        for each in rows:
            spread = f" ± {100 * each.deviation:.1f}" if each.seeds > 1 else ""
            share = f"{100 * each.share:.1f}{spread}"
            if each.difference is None:
                lines.append(f"| {each.arm} | {each.seeds} | {share} | | | |")
            else:
                lines.append(
                    f"| {each.arm} | {each.seeds} | {share} | {100 * each.difference:+.1f}"
                    f" | {100 * each.low:+.1f} to {100 * each.high:+.1f} | {each.verdict} |"
                )
    lines += _by_seed("Held-out pace accuracy", _pace_accuracy(cells))
    if scene:
        title = "The same scene, of the five nearest neighbours, p5"
        lines += _by_seed(title, same_scene(cells, scene))
        title = "Retrieval without the scenes' mean features, p5, top-1"
        lines += _by_seed(title, without_scenes(cells, scene))
    return "\n".join(lines) + "\n"


def _standing_out(found: list[Comparison]) -> str:
    compared = [each for each in found if each.p is not None]
    alone = sum(each.verdict != "not told apart" for each in compared)
    corrected = holm([each.p for each in compared])
    return (
        f"Of the {len(compared)} comparisons in the tables below, {alone}"
        f" stand{'s' * (alone == 1)} out, each taken by itself, where chance alone would give"
        f" about {0.05 * len(compared):.1f}; corrected for their number (Holm),"
        f" {corrected or 'none'}."
    )


def _claims(cells: list[Cell], found: list[Comparison], together: str | None) -> list[str]:
    """The paper's claims, each with what these cells say of it."""

    def rows(measure: str) -> list[Comparison]:
        return [each for each in found if each.measure == measure and each.difference is not None]

    lines = []
    for title, measure in (
        ("Pre-training is above training from scratch", "finetune"),
        ("Pre-training is above training from scratch four times as long", "finetune-4x"),
        ("Retrieval is above random weights", "retrieve-1"),
    ):
        told: dict[str, list[str]] = {}
        for each in sorted(rows(measure), key=lambda each: each.verdict):
            told.setdefault(each.verdict, []).append(each.arm)
        if measure == "finetune-4x" and not rows(measure):
            continue  # most grids do not ask it
        words = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in told.items())
        lines.append(f"- {title}: {words or 'not measured'}.")
    beside: dict[tuple[str, str], list[str]] = {}
    for each in beside_context(cells, together):
        low, high = (f"{100 * each[end]:+.1f}" for end in ("low", "high"))
        words = (
            f"{each['arm']} {100 * each['difference']:+.1f} ({low} to {high}, {each['verdict']})"
        )
        beside.setdefault((each["measured"], each["context"]), []).append(words)
    for (measured, context), words in beside.items():
        lines.append(
            f"- Same context beside pace is the best, {measured}; beside {context}:"
            f" {'; '.join(words)}."
        )
    return lines


def beside_context(cells: list[Cell], together: str | None = None) -> list[dict]:
    """How far each arm is above each that has same context beside pace, under three measures."""
    arms = {cell.arm.name: cell.arm for cell in cells}.values()
    return [
        {
            "context": context.words,
            "measured": BESIDE_CONTEXT[each.measure],
            "arm": each.arm,
            "difference": each.difference,
            "low": each.low,
            "high": each.high,
            "p": each.p,
            "verdict": each.verdict,
        }
        for context in arms
        if context.words.startswith(PACE_CONTEXT.words)
        for each in comparisons(cells, context, together)
        if each.measure in BESIDE_CONTEXT and each.difference is not None
    ]


def filmed_together(cells: list[Cell], together: str | None) -> list[str]:
    """What each held-out video was filmed together with, in the order of their paths, as the hits
    of the record are: with these the intervals can be had from it again.
    """
    for cell in cells:
        for measure in MEASURES:
            if hits := hits_of(cell, measure):
                return [group_of(path, together) for path in sorted(hits)]
    return []


def summary(
    cells: list[Cell],
    baseline: Arm | None = None,
    scene: str | None = None,
    together: str | None = None,
) -> list[dict]:
    """The same for the record."""
    found = comparisons(cells, baseline, together)
    cases: list[dict] = [{**vars(each), "verdict": each.verdict} for each in found]
    standardised = not _probes_raw(cells)
    for case in cases:
        if case["measure"] == "probe":
            case["standardised"] = standardised
    by_seed = {"pace": _pace_accuracy(cells)}
    if scene:
        by_seed["scene"] = same_scene(cells, scene)
        by_seed["retrieve-1, without scenes"] = without_scenes(cells, scene)
    for measure, rows in by_seed.items():
        for words, shares, chance in rows:
            cases.append({"arm": words, "measure": measure, "by_seed": shares, "chance": chance})
    return cases


def trained_on(cells: list[Cell]) -> list[str]:
    """The machines of the finished cells, in words."""
    return list(
        dict.fromkeys(each for cell in cells if cell.finished() for each in cell.machines())
    )
