"""The paper's tables of runs: a row a setting, its mean over seeds, and the paper's own figure."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pacecore.paper import PaperFigure, data_set_of, matching, method_of
from pacecore.runs import Run
from pacecore.settings import NEW, OWN, differing, grouped

__all__ = ["Table", "one_line", "tables_of"]


@dataclass
class Table:
    """One table of the page: a row a setting."""

    title: str
    heads: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"

        lines = [f"## {self.title}", "", line(self.heads), "|" + "---|" * len(self.heads)]
        lines += [line(row) for row in self.rows]
        return "\n".join([*lines, ""])


def one_line(name: str) -> str:
    """`name`, which may be of a folder and hold new lines, as a line of Markdown takes it."""
    return " ".join(name.splitlines())


def _mean_words(values: Sequence[float]) -> str:
    """ "71.3 ± 1.2 (3)": mean in per cent, sample standard deviation, number; of one value the
    value alone. values: shares, 0..1.
    """
    values = [100 * value for value in values]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def tables_of(runs: list[Run], known: tuple[PaperFigure, ...]) -> list[Table]:
    """The tables that `runs` have rows for. known: the paper's figures."""
    tables = (_pace_table(runs), _action_table(runs, known), _retrieval_table(runs, known))
    return [table for table in tables if table.rows]


_IN_COLUMNS = {"backbone", "depth", "width", "contrast", "data", "videos"}


def _rows(
    groups: list[tuple[dict[str, Any], list[Run]]], *columns: str
) -> Iterator[tuple[list[Run], dict[str, Any], str]]:
    """Of each setting its runs, what they were measured on, and how it differs from others.

    columns: options that the table has columns of, beside those of all tables.
    """
    places = {setting["measured"]["data"] for setting, _ in groups}
    alike = len({Path(place).name for place in places}) < len(places)
    shown = _IN_COLUMNS.union(columns) - ({"data"} if alike else set())  # names tell them apart
    for (setting, members), other in zip(groups, differing(groups, shown), strict=True):
        yield members, setting["measured"], other


def _data_words(name: str, measured: dict[str, Any]) -> str:
    return name if measured["videos"] == NEW else f"{name} ({measured['videos']})"


def _as_published(measured: dict[str, Any]) -> bool:
    """Whether a figure is of videos that are new to the run, by the split it was trained on."""
    return measured["videos"] == NEW and measured["fold"] in (None, OWN)


def _network(options: dict[str, Any]) -> str:
    depth = f"-{options['depth']}" if options.get("depth", 0) not in (0, 10) else ""
    width = options.get("width", 1.0)
    return f"{options.get('backbone', '?')}{depth}" + (f" x {width}" if width != 1 else "")


def _pace_table(runs: list[Run]) -> Table:
    table = Table(
        "Pace prediction, held out (supplement, Table 1)",
        ["network", "method", "paces", "data", "accuracy %", "chance %", "differs in"],
    )
    measured = [run for run in runs if run.kind == "pretrain" and _pace_result(run)]
    for members, by, other in _rows(grouped(measured, _pace_result), "paces"):
        run = members[0]
        table.rows.append(
            [
                _network(run.options),
                method_of(run.options),
                run.options["paces"],
                _data_words(data_set_of(by["data"], {}), by),
                _mean_words([_pace_result(each)["pace_accuracy"] for each in members]),
                f"{100 * _pace_result(run)['chance']:.1f}",
                other,
            ]
        )
    return table


def _pace_result(run: Run) -> dict[str, Any]:
    """What `test` measured, else what the training did, by fewer clips; {} where neither has."""
    if "pace_accuracy" in run.test:
        return run.test
    results = run.summary.get("results", {})
    by = {"measured_with": {"clips": "as in training"}}
    return {**results, **by} if "pace_accuracy" in results else {}


def _action_table(runs: list[Run], known: tuple[PaperFigure, ...]) -> Table:
    heads = ["network", "pre-training", "paces", "trained", "data", "top-1 %", "top-5 %"]
    heads += ["mean per class %", "clip top-1 %", "paper %", "differs in"]
    measured = [run for run in runs if run.kind == "finetune" and "top1" in run.test]
    clips = " or ".join(str(n) for n in sorted({run.test["clips_per_video"] for run in measured}))
    table = Table(f"Action recognition, {clips} clips a video (Tables 1 to 4)", heads)
    groups = grouped(measured, lambda run: run.test)
    for members, by, other in _rows(groups, "paces", "freeze"):
        run, folder = members[0], by["data"]
        tests = [each.test for each in members]
        data = data_set_of(folder, run.test)
        frozen = run.options.get("freeze") == "backbone"
        setting = run.options, run.learning, folder, data
        usual = run.test["clips_per_video"] == 10 and run.test.get("average") != "logits"
        usual = usual and _as_published(by) and not frozen
        paper = matching(known, "top1", *setting) if usual else ""
        table.rows.append(
            [
                _network(run.options),
                method_of(run.learning),
                str(run.learning.get("paces", "-")),
                "head only" if frozen else "all",
                _data_words(data, by),
                *(
                    _mean_words([test[name] for test in tests])
                    for name in ("top1", "top5", "mean_per_class", "clip_top1")
                ),
                paper or "-",
                other,
            ]
        )
    return table


def _retrieval_table(runs: list[Run], known: tuple[PaperFigure, ...]) -> Table:
    ks = sorted({int(k) for run in runs for each in run.retrievals for k in each["top"]})
    heads = ["network", "weights", "features", "by", "data", *(f"top-{k} %" for k in ks)]
    table = Table("Retrieval (Table 5)", [*heads, "paper %", "differs in"])
    kinds = {(each["stage"], each["pool"], each["unit"]) for run in runs for each in run.retrievals}
    found = {
        kind: {
            run.folder: each
            for run in runs
            for each in run.retrievals
            if (each["stage"], each["pool"], each["unit"]) == kind
        }
        for kind in sorted(kinds)
    }
    groups = [
        (kind, group)
        for kind, of in found.items()
        for group in grouped(
            [run for run in runs if run.folder in of], lambda run, of=of: of[run.folder]
        )
    ]
    rows = _rows([group for _, group in groups])
    for (kind, _), (members, by, other) in zip(groups, rows, strict=True):
        stage, pool, unit = kind
        run, results = members[0], [found[kind][each.folder] for each in members]
        folder = by["data"]
        data = data_set_of(folder, results[0])
        weights = "-" if run.kind == "features" else method_of(run.learning)
        if run.kind == "finetune":
            weights = f"fine-tuned from {weights}" if run.pretrained else "fine-tuned"
        paper = {}
        usual = pool == "max" and unit == "video" and results[0].get("clips", 10) == 10
        if run.kind == "pretrain" and usual and _as_published(by):
            setting = run.options, run.learning, folder, data
            paper = {k: matching(known, f"{stage}-top{k}", *setting) for k in ks}
        table.rows.append(
            [
                _network(run.options or results[0]),
                weights,
                stage + (", averaged" if pool == "gap" and stage != "gap" else ""),
                unit,
                _data_words(data, by),
                *(
                    _mean_words([each["top"][str(k)] for each in results])
                    if all(str(k) in each["top"] for each in results)
                    else "-"
                    for k in ks
                ),
                ", ".join(f"top-{k} {figure}" for k, figure in paper.items() if figure) or "-",
                other,
            ]
        )
    return table
