"""Which runs are of one setting, on which videos they were measured, and how settings differ.

Runs of one setting differ only in seed, official split, the places of their files, and what rules
count as course or machine: how a run goes and what does it; and in checkpointing and deterministic,
which change how the same losses are come by.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.rules import named_by
from pacecore.runs import Measured, Run, measured_of

__all__ = ["NEW", "OWN", "differing", "grouped"]

OWN = "its own"  # the split that a run left out of its training
NEW = "all new"  # videos that were not learned from, nor stand in the gallery

# What tells no setting; the kind is told beside it.
_INCIDENTAL = {"kind"}.union(
    *(
        named_by(kind, "run", "course", "place", "machine")
        for kind in (TrainOptions, FinetuneOptions)
    )
)


def grouped(
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
        "fold": own and (OWN if of.fold == own else of.fold),
        "videos": of.spoilt or NEW,
        "clips": result.get("measured_with", {}).get("clips"),
        "amp": result.get("measured_with", {}).get("amp"),
        "average": result.get("average"),
    }
    return {
        "kind": run.kind,
        "measured": measured,
        "trained": {
            "pre-trained on": run.learning.get("data") or None,
            "trained on": run.data if run.data != of.place else None,
        },
        "own": kept(run.options),
        "learning": kept(run.learning),
    }


def differing(groups: list[tuple[dict[str, Any], list[Run]]], shown: set[str]) -> list[str]:
    """For each group, in words, what differs between the groups and has no column."""
    words: list[dict[str, None]] = [{} for _ in groups]
    for part in ("trained", "learning", "own", "measured"):
        names = {name for setting, _ in groups for name in setting[part]} - shown
        for name in sorted(names):
            values = [setting[part].get(name) for setting, _ in groups]
            if name in ("lambda_cls", "lambda_ctr"):  # the method tells which of the losses are on
                values = [value or None for value in values]
            known = {json.dumps(v, default=str) for v in values if v is not None}
            if len(known) > 1:
                for place, value in enumerate(values):
                    if value is not None:  # from scratch there is no pre-training to differ
                        words[place][f"{name} {value}"] = None
    return [", ".join(each) for each in words]
