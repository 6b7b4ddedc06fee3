"""pacecore train: self-supervised pre-training by pace prediction."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pacecore.cli.options import given_values, options_of, run_options, say
from pacecore.config import AnyOptions, TrainOptions, from_mapping
from pacecore.rules import OptionError

__all__ = ["next_lines", "options_of_run", "refuse_idle_fall_back", "train"]

_NEXT = {
    "test": "accuracy on the held-out videos, with its confusions",
    "finetune": "action recognition from this checkpoint",
    "retrieve": "nearest neighbours in the training videos",
    "attend": "where the network looks, at each pace",
}


@click.command()
@click.argument("data", required=False)
@run_options
@options_of(TrainOptions, leave_out=("data",))
def train(
    preset: str | None, config: str | None, run: str | None, resume_previous: bool, **given: Any
) -> None:
    """Learn from the videos of DATA, without labels, by predicting the pace of clips.

    DATA is a folder of videos, of class folders, a data set in its official layout, a text or csv
    file with a path or path,label a line, or an index. With no DATA: the built-in demo set, made
    on the spot, and preset demo.
    """
    from pacecore.train import pretrain

    if run:
        options = options_of_run(TrainOptions, run, given, preset, config, resume_previous)
        summary = pretrain(options, resume=True, fall_back=resume_previous)
    else:
        refuse_idle_fall_back(resume_previous)
        values, preset = given_values(given, preset, config)
        if not values.get("data") and preset is None:
            preset = "demo"
        options = from_mapping(
            TrainOptions, values, preset=preset, source=config or "", given=given
        )
        summary = pretrain(options)
    say(closing_words(summary))


def refuse_idle_fall_back(resume_previous: bool) -> None:
    """A new run has no checkpoint before the last: who asks for that one means another run."""
    if resume_previous:
        raise OptionError("--resume-previous goes with --resume, which is missing")


def options_of_run(
    kind: type[AnyOptions],
    run: str,
    given: dict[str, Any],
    preset: str | None,
    config: str | None,
    fall_back: bool,
) -> AnyOptions:
    """The options that the run was started with, with what was given over them.

    fall_back: from the checkpoint before the last, where that is damaged.
    """
    from pacecore.checkpoint import check_kind, load_resume
    from pacecore.trained import stored_options

    if preset or config:
        raise OptionError(
            "--resume takes its options from the run: leave out --preset and --config"
        )
    out = given.get("out")
    if out is not None and os.path.realpath(out) != os.path.realpath(run):
        raise OptionError(f"--resume goes on in {run}: leave out --out, got {out!r}")
    content = load_resume(run, fall_back=fall_back)
    check_kind(run, content, "pretrain" if kind is TrainOptions else "finetune")
    options = stored_options(content, Path(run))
    wanted = {name: value for name, value in given.items() if value is not None}
    # Its weights are the run's own: one argument alone that is not where they came from is DATA.
    alone = wanted.get("checkpoint") if "data" not in wanted else None
    kept = getattr(options, "checkpoint", "")
    if alone and not (kept and os.path.realpath(alone) == os.path.realpath(kept)):
        wanted["data"] = wanted.pop("checkpoint")
    return replace(options, **wanted | {"out": run}).resolved()


def closing_words(summary: dict[str, Any]) -> str:
    """What a person reads at the end: what came out, and what to do with it."""
    folder = summary["options"]["out"]
    results, kept = summary["results"], Path(folder) / "last.pt"
    measured = " with the measuring" if results else ""
    lines = [
        f"trained {summary['clips']:,} clips in {summary['time']}{measured} on"
        f" {summary['device']}, {summary['clips_per_second']:.1f} clips/s,"
        f" {100 * summary['waiting_share']:.0f} % of the time waiting for data"
    ]
    if "pace_accuracy" in results:
        accuracy, chance = results["pace_accuracy"], results["chance"]
        lines.append(
            f"held-out pace accuracy {100 * accuracy:.1f} %, {accuracy / chance:.1f} times chance"
            f" ({100 * chance:.1f} %), on {results['held_out_clips']} clips"
        )
    for path, reason in summary["unreadable"].items():
        lines.append(f"left out: {path}: {reason}")
    lines += [f"run: {folder}   checkpoint: {kept}", f"curves: {summary['curves']}"]
    return "\n".join([*lines, *next_lines(kept, summary["next"])])


def next_lines(kept: Path, verbs: Sequence[str]) -> list[str]:
    """The commands that go on from the checkpoint `kept`, with the videos it was trained on."""
    named = f"./{kept}" if str(kept).startswith("-") else str(kept)  # else it reads as an option
    commands = [
        (shlex.join(["pacecore", verb, named]), words)
        for verb, words in _NEXT.items()
        if verb in verbs
    ]
    width = max((len(command) for command, _ in commands), default=0)
    lines = [f"  {command:{width}}   {words}" for command, words in commands]
    return ["next:", *lines] if lines else []
