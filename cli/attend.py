"""pacecore attend: where a network looks."""

from typing import Any

import click

from pacecore.cli.options import Named, collect, options_of, results_beside, say
from pacecore.config import AttendOptions

__all__ = ["attend"]


@click.command()
@click.argument("checkpoint", type=Named())
@click.argument("data", required=False)
@options_of(AttendOptions, leave_out=("data", "clips", "batch_clips", "amp"))
def attend(checkpoint: str, **given: Any) -> None:
    """Draw where CHECKPOINT looks in the held-out videos of DATA, or in one video file.

    Each video from the same first frame at each pace: a sheet with a row a pace (PNG), and a film
    with a column a pace (MP4). With no DATA: the videos that the checkpoint was trained on.
    """
    from pacecore.attend import run_attend
    from pacecore.trained import load_trained

    options = collect(AttendOptions, given)
    result = run_attend(load_trained(checkpoint), options)
    folder = results_beside(checkpoint, options.out)
    for video in result["videos"]:
        say(f"{video['path']}: {folder / video['sheet']}, {folder / video['film']}")
