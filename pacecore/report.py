"""Runs side by side in the form of the paper's tables, with the paper's own figures beside them.

A row is a setting (see pacecore.settings), and what it was measured on: runs of other seeds or
official splits are one row, mean and sample standard deviation. Nothing is computed anew; what the
verbs wrote into the run folders is read.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pacecore.errors import PacecoreError
from pacecore.files import aside, made_folder, write_json, write_text
from pacecore.paper import PaperFigure, method_of, paper_figures
from pacecore.runs import NoResults, Run, elsewhere, read_run, told_apart
from pacecore.settings import differing, grouped
from pacecore.tables import Table, one_line, tables_of

__all__ = ["make_report"]


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
    if pictures:
        from pacecore.plots import draw_runs  # raises where matplotlib is not installed
    out = made_folder(out)
    tables = tables_of(runs, known)
    groups, drawn = _named_groups(runs), []
    if pictures:
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


def _named_groups(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs of one setting together, for pictures: one run by its name, several by their setting."""
    groups = grouped(runs, lambda run: run.test)
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
        differs = differing(alike, set())[alike.index(group)]
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
        "retrievals": [
            {name: each[name] for name in ("stage", "pool", "unit", "top")}
            for each in run.retrievals
        ],
        "outdated": list(run.outdated),
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
        kind = "plain weights" if run.options.get("kind") == "weights" else run.kind
        words = ", ".join([kind, *words, run.summary.get("time", "no summary")])
        parts.append(one_line(f"- `{run.folder}`: {words}{_result_words(run)}"))
    parts += [one_line(f"- left out: {words}") for words in left_out]
    parts.append("")
    for file, what in drawn:
        what = one_line(what)
        parts += [f"### {what}", "", f"![{what}]({quote(os.fsencode(file))})", ""]
    page = "\n".join(parts).rstrip() + "\n"
    return page.encode(errors="backslashreplace").decode()  # a file's name need be no UTF-8


def _result_words(run: Run) -> str:
    """Of a tested run top-1 and its bootstrap interval over videos, of every result what other
    videos than the run's own held-out ones it is of, and which are left out.
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
    return words + "".join(f"; {said}" for said in run.outdated)


def _of(retrieval: dict[str, Any]) -> str:
    words = [retrieval["stage"], retrieval["unit"]]
    if retrieval["pool"] == "gap" != retrieval["stage"]:
        words.insert(1, "averaged")
    return f"retrieval by {' '.join(words)}"
