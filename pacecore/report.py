"""Runs side by side in the form of the paper's tables, with the paper's own figures beside them.

A row is a setting, and what it was measured on: runs that differ in seed or official split only are
one row, mean and sample standard deviation. Nothing is computed anew; what the verbs wrote into the
run folders is read.
"""

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.errors import PacecoreError
from pacecore.files import aside, made_folder, write_json, write_text
from pacecore.paper import PaperFigure, data_set_of, matching, method_of, paper_figures
from pacecore.rules import named_by
from pacecore.runs import Measured, NoResults, Run, elsewhere, measured_of, read_run, told_apart

__all__ = ["Table", "make_report"]

# What tells no setting; the kind is told beside it.
_INCIDENTAL = {"kind"}.union(
    *(
        named_by(kind, "run", "course", "place", "machine")
        for kind in (TrainOptions, FinetuneOptions)
    )
)

_OWN = "its own"  # the split that a run left out of its training
_NEW = "all new"  # videos that were not learned from, nor stand in the gallery


@dataclass
class Table:
    """One table of the page: a row a setting."""

    title: str
    heads: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        lines = [f"## {self.title}", "", line(self.heads), "|" + "---|" * len(self.heads)]
        lines += [line(row) for row in self.rows]
        return "\n".join([*lines, ""])


def _mean_words(values: Sequence[float]) -> str:
    """ "71.3 ± 1.2 (3)": mean in per cent, sample standard deviation, number; of one value the
    value alone. values: shares, 0..1.
    """
    values = [100 * value for value in values]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def make_report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    figures: str | Path | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Writes out/report.md, report.json and pictures of the runs in `folders`; returns the JSON.

    figures: JSON file of more of the paper's figures (see pacecore.paper). A folder without results
    yet is left out and named. Raises PacecoreError where no folder has any, and with `pictures`
    where matplotlib is not installed.
    """
    runs, left_out = _read_runs(folders)
    known = paper_figures(figures)
    out = made_folder(out)
    tables = [
        table
        for table in (_pace_table(runs), _action_table(runs, known), _retrieval_table(runs, known))
        if table.rows
    ]
    groups, drawn = _named_groups(runs), []
    if pictures:
        from pacecore.plots import draw_runs  # matplotlib comes with it

        drawn = draw_runs(groups, out)
    drawn += _copied(groups, out)
    result = {
        "runs": [_run_words(run) for run in runs],
        "left_out": left_out,
        "tables": [asdict(table) for table in tables],
        "paper": [asdict(figure) for figure in known],
        "pictures": [{"file": file, "what": what} for file, what in drawn],
    }
    write_json(out / "report.json", result)
    write_text(out / "report.md", _page(runs, left_out, tables, known, drawn))
    return result


def _read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs in `folders`, and why others are left out. Raises PacecoreError: none is a run's."""
    runs, left_out = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except NoResults as error:
            left_out.append(str(error))
    if not runs:
        raise PacecoreError(left_out[0] if left_out else "report: no run folder named")
    return told_apart(runs), left_out


def _grouped(
    runs: Iterable[Run], result_of: Callable[[Run], dict[str, Any]]
) -> list[tuple[dict[str, Any], list[Run]]]:
    """Runs of one setting together, in the order in which the settings first came."""
    groups: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    found = [(run, measured_of(result_of(run), run.options)) for run in runs]
    identities: dict[Measured, set[str]] = {}
    for _, of in found:
        identities.setdefault(replace(of, identity=""), set()).add(of.identity)
    for run, of in found:
        setting = _settings(run, result_of(run), of)
        if len(identities[replace(of, identity="")] - {""}) > 1:  # the data changed in between
            setting["measured"]["identity"] = of.identity or None
        text = json.dumps(setting, sort_keys=True, default=str)
        groups.setdefault(text, (setting, []))[1].append(run)
    return list(groups.values())


def _settings(run: Run, result: dict[str, Any], of: Measured) -> dict[str, Any]:
    """All that a run's `result`, {} before there is one, depends on but seed and split, where the
    split is the one that the run left out of its training.
    """

    def kept(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in _INCIDENTAL}

    own = run.options.get("fold")  # bare weights and files of features have none
    measured = {
        "data": of.place,
        "gallery": of.data if "top" in result and of.place != of.data else None,
        "fold": own and (_OWN if of.fold == own else of.fold),
        "videos": of.spoilt or _NEW,
        "clips": result.get("measured_with", {}).get("clips"),
        "average": result.get("average"),
    }
    return {
        "kind": run.kind,
        "data": run.data,
        "measured": measured,
        "pretraining data": run.learning.get("data") or "",
        "own": kept(run.options),
        "learning": kept(run.learning),
    }


def _differing(groups: list[tuple[dict[str, Any], list[Run]]], shown: set[str]) -> list[str]:
    """For each group, in words, what differs between the groups and has no column."""
    words: list[dict[str, None]] = [{} for _ in groups]
    for part in ("learning", "own", "measured"):
        names = {name for setting, _ in groups for name in setting[part]} - shown
        for name in sorted(names):
            values = [setting[part].get(name) for setting, _ in groups]
            known = {json.dumps(v, default=str) for v in values if v is not None}
            if len(known) > 1:
                for place, value in enumerate(values):
                    if value is not None:  # from scratch there is no pre-training to differ
                        words[place][f"{name} {value}"] = None
    return [", ".join(each) for each in words]


_IN_COLUMNS = {
    "backbone", "depth", "width", "paces", "freeze", "lambda_cls", "lambda_ctr", "contrast", "data",
    "videos",
}  # fmt: skip


def _rows(
    runs: Iterable[Run], result_of: Callable[[Run], dict[str, Any]]
) -> Iterator[tuple[list[Run], dict[str, Any], str]]:
    """Of each setting its runs, what they were measured on, and how it differs from others."""
    groups = _grouped(runs, result_of)
    places = {setting["measured"]["data"] for setting, _ in groups}
    alike = len({Path(place).name for place in places}) < len(places)
    shown = _IN_COLUMNS - {"data"} if alike else _IN_COLUMNS  # names tell them apart, or paths
    for (setting, members), other in zip(groups, _differing(groups, shown), strict=True):
        yield members, setting["measured"], other


def _data_words(name: str, measured: dict[str, Any]) -> str:
    return name if measured["videos"] == _NEW else f"{name} ({measured['videos']})"


def _as_published(measured: dict[str, Any]) -> bool:
    """Whether a figure is of videos that are new to the run, by the split it was trained on."""
    return measured["videos"] == _NEW and measured["fold"] in (None, _OWN)


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
    for members, by, other in _rows(measured, _pace_result):
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
    for members, by, other in _rows(measured, lambda run: run.test):
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
    for kind in sorted(kinds):
        stage, pool, unit = kind
        found = {
            run.folder: each
            for run in runs
            for each in run.retrievals
            if (each["stage"], each["pool"], each["unit"]) == kind
        }
        measured = [run for run in runs if run.folder in found]
        for members, by, other in _rows(measured, lambda run, of=found: of[run.folder]):
            run, results = members[0], [found[each.folder] for each in members]
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


def _named_groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs of one setting together, for pictures: one run by its name, several by their setting."""
    groups = _grouped(runs, lambda run: run.test)
    words = []
    for _, members in groups:
        first, name = members[0], members[0].name
        if len(members) > 1:
            name = method_of(first.learning)
            if first.kind == "finetune":
                name += ", head only" if first.options.get("freeze") == "backbone" else ", all"
        words.append(name)
    named = []
    for group, name in zip(groups, words, strict=True):
        alike = [each for each, other in zip(groups, words, strict=True) if other == name]
        differs = _differing(alike, set())[alike.index(group)]
        many = f" ({len(group[1])} runs)" if len(group[1]) > 1 else ""
        named.append((f"{name}, {differs}{many}" if differs else f"{name}{many}", group[1]))
    return named


_PICTURES = (
    ("clips.png", "what the network is fed"),
    ("gallery-*.png", "queries and neighbours"),
    ("attend-*.png", "attention, a row a pace"),
)


def _copied(groups: list[tuple[str, list[Run]]], out: Path) -> list[tuple[str, str]]:
    """Pictures that the verbs left in the run folders: of each kind a setting's first."""
    drawn = []
    for _, members in groups:
        for pattern, what in _PICTURES:
            found = [(each, path) for each in members for path in sorted(each.folder.glob(pattern))]
            for run, path in found[:1]:
                name = f"{run.name}-{path.name}"
                with aside(out / name) as part:
                    shutil.copyfile(path, part)
                drawn.append((name, f"{run.name}: {what}"))
    return drawn


def _run_words(run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "kind": run.kind,
        "options": run.options,
        "pretrained": run.pretrained,
        "test": {name: value for name, value in run.test.items() if name != "confusion"},
        "retrievals": [each["top"] for each in run.retrievals],
    }


def _page(
    runs: list[Run],
    left_out: list[str],
    tables: list[Table],
    known: tuple[PaperFigure, ...],
    drawn: list[tuple[str, str]],
) -> str:
    parts = ["# Runs side by side", ""]
    parts.append(
        "Means and sample standard deviations over the runs of one setting, their number in"
        " brackets. The paper's figures stand beside a row only where it is the paper's setting:"
        " network, width, clip, pre-training and data, of videos that were not learned from."
    )
    parts.append("")
    parts += [table.markdown() for table in tables]
    if not tables:
        parts += ["No run has been tested or used for retrieval yet.", ""]
    rows = [[each.table or "-", each.words, str(each.percent), each.source] for each in known]
    parts.append(Table("Figures of the paper", ["table", "what", "%", "read in"], rows).markdown())
    parts += ["## Runs", ""]
    for run in runs:
        said = (("seed", "seed"), ("split", "fold"))  # bare weights and files of features have none
        words = [f"{word} {run.options[name]}" for word, name in said if name in run.options]
        words = ", ".join([run.kind, *words, run.summary.get("time", "no summary")])
        parts.append(f"- `{run.folder}`: {words}{_result_words(run)}")
    parts += [f"- left out: {words}" for words in left_out]
    parts.append("")
    for file, what in drawn:
        parts += [f"### {what}", "", f"![{what}]({quote(file)})", ""]
    return "\n".join(parts).rstrip() + "\n"


def _result_words(run: Run) -> str:
    """Of a tested run top-1 and its bootstrap interval over videos, and of every result what other
    videos than the run's own held-out ones it is of.
    """
    words = ""
    if "top1" in run.test:
        words = f"; top-1 {100 * run.test['top1']:.1f} %"
    if "top1_interval_95" in run.test:
        low, high = run.test["top1_interval_95"]
        words += f", 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    for what, result in [("tested", run.test), *((_of(each), each) for each in run.retrievals)]:
        said = elsewhere(result, run.options)
        words += f"; {what} {said}" if said else ""
    return words


def _of(retrieval: dict[str, Any]) -> str:
    words = [retrieval["stage"], retrieval["unit"]]
    if retrieval["pool"] == "gap" != retrieval["stage"]:
        words.insert(1, "averaged")
    return f"retrieval by {' '.join(words)}"
