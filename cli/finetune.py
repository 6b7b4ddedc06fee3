"""pacecore finetune: supervised action recognition."""

from pathlib import Path
from typing import Any

import click

from pacecore.cli.options import given_values, options_of, run_options, say
from pacecore.cli.train import (
    next_lines,
    options_of_run,
    refuse_idle_fall_back,
)
from pacecore.config import FinetuneOptions, from_mapping
from pacecore.rules import OptionError

__all__ = ["finetune"]


@click.command()
@click.argument("checkpoint", required=False)
@click.argument("data", required=False)
@click.option(
    "--scratch",
    is_flag=True,
    help="From fresh weights: the one argument is DATA, or none for the demo set.",
)
@run_options
@options_of(FinetuneOptions, leave_out=("data", "checkpoint"))
def finetune(
    checkpoint: str | None,
    data: str | None,
    scratch: bool,
    preset: str | None,
    config: str | None,
    run: str | None,
    resume_previous: bool,
    **given: Any,
) -> None:
    """Learn the labels of DATA, starting from CHECKPOINT: a checkpoint, or weights of another
    project.

    Network, size and colours of the clips are the checkpoint's own. With no DATA: the videos that
    the checkpoint was trained on. --freeze backbone trains the head alone, on standardised features
    (linear probe). With --resume the one argument is DATA, where the videos were moved.
    """
    from pacecore.finetune import finetune as run_finetune

    if run:
        if scratch:
            raise OptionError("--resume goes on from the run's weights: leave out --scratch")
        given |= {"checkpoint": checkpoint, "data": data}
        options = options_of_run(FinetuneOptions, run, given, preset, config, resume_previous)
        summary = run_finetune(options, resume=True, fall_back=resume_previous)
    else:
        refuse_idle_fall_back(resume_previous)
        if scratch:
            if data is not None:
                raise OptionError(f"--scratch takes DATA alone, got {checkpoint} and {data}")
            checkpoint, data = None, checkpoint
        elif checkpoint is None and not config:
            raise OptionError("CHECKPOINT is missing; --scratch starts from fresh weights")
        given |= {"checkpoint": checkpoint, "data": data}
        options, trained = _options(given, preset, config, scratch)
        summary = run_finetune(options, trained=trained)
    say(closing_words(summary))


def _options(
    given: dict[str, Any], preset: str | None, config: str | None, scratch: bool = False
) -> tuple[FinetuneOptions, Any]:
    """The run's options, and the checkpoint that they start from."""
    from pacecore.finetune import inherit_options
    from pacecore.trained import load_trained, require_videos

    values, preset = given_values(given, preset, config)
    if scratch:
        values["checkpoint"] = ""  # over the file's
    trained = None
    if values.get("checkpoint"):
        trained = load_trained(values["checkpoint"], partial=bool(values.get("partial")))
        values, notes = inherit_options(values, trained)
        if "data" not in values:
            if trained.kind == "weights":
                raise OptionError(f"{trained.path}: bare weights name no videos; name the data")
            values["data"] = trained.options.data
            require_videos(trained.path, values["data"])
            values.setdefault("fold", trained.options.fold)
            if trained.options.held_out != "none":  # as in a pre-training that measured nothing
                values.setdefault("held_out", trained.options.held_out)
        for note in notes:
            say(f"note: {note}", err=True)
    elif not values.get("data") and preset is None and not config:
        preset = "small"
    options = from_mapping(FinetuneOptions, values, preset=preset, source=config or "", given=given)
    return options, trained


def closing_words(summary: dict[str, Any]) -> str:
    """What a person reads at the end: what came out, and what to do with it."""
    folder = Path(summary["options"]["out"])
    kept = folder / ("best.pt" if summary["best"] else "last.pt")
    measured = " with the measuring" if summary["best"] else ""
    lines = [
        f"trained {summary['clips']:,} clips of {summary['videos']:,} videos in"
        f" {summary['time']}{measured} on {summary['device']},"
        f" {summary['clips_per_second']:.1f} clips/s"
    ]
    if summary["best"]:
        best = summary["best"]
        lines.append(
            f"best on {best['val_videos']} videos of the training split, set aside by"
            f" {summary['validation_by']}:"
            f" {100 * best['val_accuracy']:.1f} % after step {best['step']}: {kept}"
        )
    elif "warning" in summary["results"]:
        lines.append(f"no best: {summary['results']['warning']}: last.pt is the result")
    else:
        lines.append("no validation share (--val-share): last.pt is the result")
    for path, reason in summary["unreadable"].items():
        lines.append(f"left out: {path}: {reason}")
    lines += [f"run: {folder}", f"curves: {summary['curves']}"]
    return "\n".join([*lines, *next_lines(kept, summary["next"])])
