"""pacecore bench: how fast it is here, beside what else one would use."""

import shlex
from pathlib import Path

import click

from pacecore.cli.options import Named

__all__ = ["bench"]


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<n>.")
@click.option("--quick", is_flag=True, help="Few and small cases: minutes instead of an hour.")
@click.option("--only", default="", help="Benchmarks by name, such as pace_clip,info_nce.")
@click.option("--out", default="bench", type=Named(), show_default=True, help="Folder of both.")
@click.option(
    "--data",
    type=Named(),
    help="Videos to feed from; default: PACECORE_DATA/ucf101 where that is set, else the demo set.",
)
@click.option(
    "--official",
    type=Named(),
    help="Your copy of laura-wang/video-pace, whose own loader and network then run beside ours.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    device: str,
    quick: bool,
    only: str,
    out: str,
    data: str | None,
    official: str | None,
) -> None:
    """Measure kernels, paths and training against the alternatives that are installed.

    Writes bench-DEVICE.json and the page bench-DEVICE.md: each row a way, its figure, by how much
    ours is faster, the hardware's limit measured in the same run, and the share of it reached.
    What is not installed is said and left out. Exit code 1 when a benchmark failed.
    """
    from pacecore.benchmarks.common import end_by_signals
    from pacecore.benchmarks.suite import run_suite
    from pacecore.device import pick_device

    end_by_signals()
    place = pick_device(device)
    shown = ["--device", place.type, *(["--quick"] if quick else [])]
    shown += ["--only", only] if only else []
    for name, path in (("data", data), ("official", official)):
        shown += [f"--{name}", Path(path).name] if path else []
    runs = run_suite(
        str(place),
        Path(out),
        quick=quick,
        only=[name.strip() for name in only.split(",") if name.strip()],
        data=data,
        official=official,
        command=shlex.join(["pacecore", "bench", *shown]),
        on_done=_say,
    )
    click.echo(f"page: {Path(out) / f'bench-{place.type}.md'}")
    if any(run.state == "failed" for run in runs):
        ctx.exit(1)


def _say(run) -> None:
    from pacecore.benchmarks.rows import short

    click.echo(f"{run.state:8}{run.name:12}{run.seconds:6.1f} s  {run.said}".rstrip())
    case = None
    for row in run.rows:
        if row.case != case:
            case = row.case
            click.echo(f"    {case}")
        times = f"ours {row.times:.1f} x" if row.times is not None else ""
        share = f"{100 * row.share:.0f} % of the limit" if row.share is not None else ""
        words = f"{short(row.value):>12} {row.unit:20} {times:14} {share}".rstrip()
        click.echo(f"      {row.way[:36]:38}{words}")
