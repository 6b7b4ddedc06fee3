"""pacecore report: runs side by side."""

import click

from pacecore.cli.options import Named

__all__ = ["report"]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=Named())
@click.option(
    "--out",
    default="report",
    show_default=True,
    type=Named(),
    help="Folder of the page.",
)
@click.option(
    "--figures",
    type=Named(),
    help="JSON file of more figures of the paper.",
)
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Curves and confusion matrices.",
)
def report(runs: tuple[str, ...], out: str, figures: str | None, pictures: bool) -> None:
    """Lay the run folders RUNS side by side in the form of the paper's tables.

    Writes report.md and report.json: runs of one setting are one row, mean and deviation over
    seeds and splits, with the paper's own figures where the same setting was run.
    """
    from pacecore.report import make_report

    result = make_report(runs, out, figures=figures, pictures=pictures)
    for table in result["tables"]:
        click.echo(table["title"])
        for line in aligned([table["heads"], *table["rows"]]):
            click.echo("  " + line)
    outdated = [f"{run['folder']}: {words}" for run in result["runs"] for words in run["outdated"]]
    for words in [*result["left_out"], *outdated]:
        click.echo(f"left out: {words}")
    click.echo(f"{out}/report.md: {len(result['runs'])} runs, {len(result['pictures'])} pictures")


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
