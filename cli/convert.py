"""pacecore convert: weights of other projects in, plain weights out."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pacecore.cli.options import Named, options_of
from pacecore.config import INPUT_OPTIONS, TrainOptions
from pacecore.rules import OptionError

__all__ = ["convert"]


@click.command()
@click.argument("source", type=Named(path_type=Path))
@click.argument("out", type=Named(path_type=Path), required=False)
@click.option(
    "--to",
    type=click.Choice(["plain", "official"]),
    default="plain",
    show_default=True,
    help="plain: a state dict in pacecore's names. official: video-pace's file and names.",
)
@click.option(
    "--network",
    type=click.Choice(["c3d", "r3d", "r21d", "s3dg"]),
    help="Refuse a file that holds another network.",
)
@click.option("--partial", is_flag=True, help="Take a file that lacks some of the weights.")
@options_of(
    TrainOptions,
    leave_out=tuple(each.name for each in fields(TrainOptions) if each.name not in INPUT_OPTIONS),
    defaults=False,  # what is not given is as SOURCE says
)
@click.option("--verbose", "-v", is_flag=True, help="Name every weight that was renamed.")
def convert(
    source: Path,
    out: Path | None,
    to: str,
    network: str | None,
    partial: bool,
    verbose: bool,
    **input: Any,
) -> None:
    """Read the weights in SOURCE and write them to OUT, with OUT's .json beside them.

    Reads checkpoints of pacecore, video-pace, VCOP, PRP, RSPNet and CoCLR, and runs no code that a
    file brings along. OUT ending in .safetensors gets that format, any other ending torch's. With
    no OUT it only says what SOURCE holds. What clips the weights were trained on (frames, resize,
    crop, range, channels) is written beside them, as SOURCE says or as it is given, for the verbs
    that measure.
    """
    from pacecore import convert as weights

    given = {name: value for name, value in input.items() if value is not None}
    if out is None and given:
        raise OptionError(f"{next(iter(given))} is written down beside OUT, which is not given")
    if out is None:
        click.echo(weights.read_weights(source, network, partial).report(verbose))
        return
    found = weights.convert(source, out, to, network, partial, given)
    click.echo(found.report(verbose))
    click.echo(f"wrote {out} and {out.with_suffix('.json')}")
