"""pacecore convert: weights of other projects in, plain weights out."""

from pathlib import Path

import click

__all__ = ["convert"]


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
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
@click.option("--verbose", "-v", is_flag=True, help="Name every weight that was renamed.")
def convert(
    source: Path, out: Path | None, to: str, network: str | None, partial: bool, verbose: bool
) -> None:
    """Read the weights in SOURCE and write them to OUT, with OUT's .json beside them.

    Reads checkpoints of pacecore, video-pace, VCOP, PRP, RSPNet and CoCLR, and runs no code that a
    file brings along. OUT ending in .safetensors gets that format, any other ending torch's. With
    no OUT it only says what SOURCE holds.
    """
    from pacecore import convert as weights

    if out is None:
        click.echo(weights.read_weights(source, network, partial).report(verbose))
        return
    found = weights.convert(source, out, to, network, partial)
    click.echo(found.report(verbose))
    click.echo(f"wrote {out} and {out.with_suffix('.json')}")
