"""pacecore extract: features of videos to a file."""

from typing import Any

import click

from pacecore.cli.options import Named, collect, options_of, say, say_replaced
from pacecore.config import ExtractOptions

__all__ = ["extract"]


@click.command()
@click.argument("checkpoint", type=Named())
@click.argument("data", required=False)
@options_of(ExtractOptions, leave_out=("data",))
def extract(checkpoint: str, **given: Any) -> None:
    """Write features of the videos of DATA, made by CHECKPOINT, for other tools.

    One file for the training videos and one for the held-out ones, rows in the order of the JSON
    beside it. Called again after a stop it goes on where it was. With no DATA: the videos that the
    checkpoint was trained on.
    """
    from pacecore.extract import run_extract
    from pacecore.trained import load_trained

    options = collect(ExtractOptions, given)
    left_out = {}
    for features in run_extract(load_trained(checkpoint), options):
        shape = " x ".join(map(str, features.values.shape))
        say(f"{features.path}: {shape}, {len(features.order['videos']):,} videos")
        say_replaced(features.replaced)
        left_out |= features.order["unreadable"]
    for path, reason in left_out.items():
        say(f"left out: {path}: {reason}")
