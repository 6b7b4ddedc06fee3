"""What the verbs left in a run's folder, read back."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.convert import INPUT_OPTIONS
from pacecore.errors import PacecoreError
from pacecore.runlog import RunFolder
from pacecore.trained import NETWORK_OPTIONS

__all__ = ["NoResults", "Run", "read_run", "told_apart"]


class NoResults(PacecoreError):
    """A folder in which no verb has left results, as of a run that is still going on."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    name: str
    kind: str  # "pretrain", "finetune", or "features": retrieval by two files of features
    options: dict[str, Any]
    pretrained: dict[str, Any]  # options of the pre-training; {} from scratch
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    test: dict[str, Any]  # test.json; {} where it was not tested
    retrievals: list[dict[str, Any]]

    @property
    def learning(self) -> dict[str, Any]:
        """Options of the pre-training, of this run or of the one behind it."""
        return self.options if self.kind == "pretrain" else self.pretrained

    @property
    def data(self) -> str:
        return self.options.get("data") or "demo set"


def read_run(folder: str | Path) -> Run:
    """The results in a run folder. Raises NoResults for one without any, PacecoreError for a broken
    file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PacecoreError(f"{folder}: no such run folder")
    summary = _read(folder / "summary.json", "options")
    test = _read(folder / "test.json", "trained_with")
    found = sorted(folder.glob("retrieve-*.json"))
    retrievals = [_read(path, "top", "stage", "pool", "unit") for path in found]
    if not (summary or test or retrievals):
        raise NoResults(f"{folder}: holds no summary.json, test.json or retrieve-*.json")
    first = next(each for each in (summary, test, *retrievals) if each)
    options = first.get("options") or first.get("trained_with") or {}
    trained = "pretrain" if "paces" in options else "finetune"
    if first.get("kind") == "weights":
        options |= {"kind": "weights"}
    return Run(
        folder=folder,
        name=folder.resolve().name,
        kind=trained if options else "features",
        options=_filled(options),
        pretrained=_filled(first.get("pretrained") or {}),
        summary=summary,
        metrics=RunFolder(folder, writes=False).metrics(),
        test=test,
        retrievals=retrievals,
    )


def _filled(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run, those that its version did not have yet at their defaults. Of bare weights
    those of network and input, since nobody here trained them by the others.
    """
    if options.get("kind") == "weights":
        return {name: options[name] for name in ("kind", *NETWORK_OPTIONS, *INPUT_OPTIONS)}
    kind = TrainOptions if "paces" in options else FinetuneOptions
    return {each.name: each.default for each in fields(kind)} | options if options else {}


def told_apart(runs: list[Run]) -> list[Run]:
    """The runs, each with a name of its own: its folder's, or with the folder's above it."""
    names = [run.name for run in runs]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise PacecoreError(f"report: a run folder is named twice: {', '.join(names)}")
    result = []
    for number, run in enumerate(runs):
        parent = run.folder.resolve().parent.name
        name = run.name if names.count(run.name) == 1 else f"{parent}-{run.name}"
        taken = {each.name for each in result}
        result.append(replace(run, name=f"{name}-{number}" if name in taken else name))
    return result


def _read(path: Path, *needed: str) -> dict[str, Any]:
    """The record, {} where there is none; other programs write files of such names too."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not record.keys() >= set(needed):
            raise ValueError(f"it must have {', '.join(needed)}")
        return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PacecoreError(f"{path}: not a record of pacecore: {error}") from None
