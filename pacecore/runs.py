"""What the verbs left in a run's folder, read back."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pacecore.config import INPUT_OPTIONS, FinetuneOptions, TrainOptions
from pacecore.errors import PacecoreError
from pacecore.files import read_text, reason_of, there
from pacecore.runlog import RunFolder
from pacecore.trained import NETWORK_OPTIONS

__all__ = [
    "Measured", "NoResults", "Run", "elsewhere", "measured_of", "read_run", "replaced_by",
    "told_apart",
]  # fmt: skip


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
    outdated: tuple[str, ...] = ()  # in words, results of other weights than the run has now

    @property
    def learning(self) -> dict[str, Any]:
        """Options of the pre-training, of this run or of the one behind it."""
        return self.options if self.kind == "pretrain" else self.pretrained

    @property
    def data(self) -> str:
        return self.options.get("data") or "demo set"


@dataclass(frozen=True)
class Measured:
    """Which videos a result is of: those that the measurement named, else its run's own."""

    data: str  # folder, list or index; of two files of features both
    held_out: str  # "auto", or a path
    fold: str  # "" where neither tells
    identity: str  # of the videos, and of a gallery; "" where there is no result
    spoilt: str  # what makes the figure larger than of new videos; "" where nothing is known to

    @property
    def place(self) -> str:
        """What the measured videos are named by."""
        return self.data if self.held_out in ("auto", "none") else self.held_out


def measured_of(result: dict[str, Any], options: dict[str, Any]) -> Measured:
    """What `result`, {} before there is one, was measured on, of a run trained with `options`: as
    `protocol.open_measured` takes it from both.
    """
    by, spoilt = result.get("measured_with", {}), ""
    measured = result.get("videos", result.get("query_videos", 0))  # of which none is unreadable
    for name, words in (
        ("videos_learned_from", "learned from"),
        ("videos_in_both", "in the gallery too"),
    ):
        if not spoilt and (count := result.get(name)):
            spoilt = f"{'some' if count < measured else 'all'} {words}"
    named = by.get("data", result.get("data"))
    return Measured(
        data=named or options.get("data") or result.get("data") or "demo set",
        held_out=by.get("held_out") or (not named and options.get("held_out")) or "auto",
        fold=by.get("fold") or options.get("fold") or "",
        identity=result.get("videos_identity") or "",
        spoilt=spoilt,
    )


def elsewhere(result: dict[str, Any], options: dict[str, Any]) -> str:
    """In words, what other videos than the run's own held-out ones a result is of."""
    of, own, words = measured_of(result, options), measured_of({}, options), []
    if "data" in options and of.place != own.place:  # bare weights have none of their own
        words.append(f"on {of.place}")
    if "fold" in options and of.fold != own.fold:
        words.append(f"on split {of.fold}")
    if count := result.get("videos_learned_from"):
        asked = result.get("videos", result.get("query_videos", 0))
        words.append(f"with {count:,} of {asked:,} held-out videos learned from")
    if count := result.get("videos_in_both"):
        words.append(f"with {count:,} of {result['query_videos']:,} queries in the gallery too")
    return ", ".join(words)


def replaced_by(result: dict[str, Any], path: Path) -> str:
    """In words, on what other videos the result in the file `path` is, which `result` is about to
    replace; "" where there is none, or of the same videos.
    """
    with suppress(PacecoreError, AttributeError, TypeError):  # another program's, or broken
        if not (before := _read(path, "measured_with")):
            return ""
        of, now = (measured_of(each, each.get("trained_with", {})) for each in (before, result))
        if of.identity != now.identity:
            count = before.get("videos", before.get("query_videos"))
            split = f", split {of.fold}" if of.fold and of.place == of.data else ""
            return f"the result on other videos, {count} of {of.place}{split}"
    return ""


def read_run(folder: str | Path) -> Run:
    """The results in a run folder, those of weights that the run has gone on from as words alone.
    Raises NoResults for one without any, and for a file, which a shell's runs/* has among the
    folders; PacecoreError for a broken file of a run.
    """
    folder = Path(folder)
    try:
        if not there(folder):
            raise PacecoreError(f"{folder}: no such run folder")
        if not folder.is_dir():
            raise NoResults(f"{folder}: is a file and no run folder")
    except OSError as error:
        raise PacecoreError(f"{folder}: cannot be read: {error.strerror}") from None
    summary = _read(folder / "summary.json", "options")
    found = {"test.json": _read(folder / "test.json", "trained_with")}
    for path in sorted(folder.glob("retrieve-*.json")):
        found[path.name] = _read(path, "top", "stage", "pool", "unit")
    found = {name: each for name, each in found.items() if each}  # {} of a link to nothing
    if not (summary or found):
        raise NoResults(f"{folder}: holds no summary.json, test.json or retrieve-*.json")
    first = summary or next(iter(found.values()))
    outdated = {name: _outdated(name, each, summary) for name, each in found.items()}
    found = {name: each for name, each in found.items() if not outdated[name]}
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
        test=found.pop("test.json", {}),
        retrievals=list(found.values()),
        outdated=tuple(filter(None, outdated.values())),
    )


def _outdated(name: str, result: dict[str, Any], summary: dict[str, Any]) -> str:
    """In words, that the result in the file `name` is of weights that the run's own checkpoint has
    no more by `summary`; "" where it is not, or nothing tells.
    """
    checkpoint = Path(str(result.get("checkpoint", "")))
    out = str(result.get("measured_with", {}).get("out") or checkpoint.parent)
    if os.path.abspath(out) != os.path.abspath(checkpoint.parent):  # of another run's
        return ""
    step = result.get("step")
    steps = {"last.pt": summary.get("steps"), "best.pt": summary.get("best", {}).get("step")}
    now = steps.get(checkpoint.name)
    # Of a run that was stopped since, the summary is older than its weights.
    if not isinstance(step, int) or not isinstance(now, int) or step >= now:
        return ""
    verb = "retrieve" if "top" in result else "test"
    return f"{name} is of step {step}, the run has gone on to {now}: {verb} again"


def _filled(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run, those that its version did not have yet at their defaults. Of bare weights
    those of network and input, since nobody here trained them by the others.
    """
    if options.get("kind") == "weights":
        kept = "kind", *NETWORK_OPTIONS, *INPUT_OPTIONS
        said = {name: options[name] for name in ("labelled",) if name in options}
        return {name: options[name] for name in kept} | said
    if not options.keys() - {"labelled"}:  # of a fine-tuning from scratch before, if any
        return options
    kind = TrainOptions if "paces" in options else FinetuneOptions
    return {each.name: each.default for each in fields(kind)} | options


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


_OF_NAMES = {"options", "trained_with", "measured_with", "top", "pretrained", "results", "best"}


def _read(path: Path, *needed: str) -> dict[str, Any]:
    """The record, {} where there is none; other programs write files of such names too."""
    try:
        record = json.loads(read_text(path))
        if not isinstance(record, dict) or not record.keys() >= set(needed):
            raise ValueError(f"it must have {', '.join(needed)}")
        for name in _OF_NAMES & record.keys():
            if not isinstance(record[name], dict):
                raise ValueError(f"{name} must be an object, got {record[name]!r:.100}")
        return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise PacecoreError(f"{path}: not a record of pacecore: {reason_of(error)}") from None
