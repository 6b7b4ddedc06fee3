"""`pacecore data`: from folders of videos to something that trains."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from pacecore.cli.demo import demo
from pacecore.cli.options import Named
from pacecore.datasets import data_index, find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.files import expanded, there, write_json, writing
from pacecore.index import BadVideo, VideoIndex, none_readable
from pacecore.rules import OptionError
from pacecore.sampling import parse_paces

__all__ = ["data"]

_SHOWN = 20  # findings of one kind that are printed; the JSON report has all


@click.group()
def data() -> None:
    """Index, check and pack videos, or make the demo set."""


data.add_command(demo)


def _source_options(command: Callable) -> Callable:
    for option in (
        click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only this one."),
        click.option("--fold", default="1", show_default=True, help="Which of several splits."),
        click.option("--root", type=Named(path_type=Path), help="Where listed paths begin."),
        click.option(
            "--missing",
            type=click.Choice(["error", "skip"]),
            default="error",
            show_default=True,
            help="What to do with a listed video that is not there.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0, 512),
            default=0,
            show_default=True,
            help="Processes; 0: one a core.",
        ),
    ):
        command = option(command)
    return click.argument("source", type=Named(path_type=Path))(command)


def _require_number(context: click.Context, option: click.Parameter, value: float) -> float:
    """No range keeps nan out, which every comparison denies."""
    if value != value:
        raise click.BadParameter("nan is no number")
    return value


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int, int], None]]:
    with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True) as bar:
        yield lambda done, _: bar.update(done - bar.pos)


def _say_missing(found: VideoIndex) -> None:
    if found.missing:
        count, first = len(found.missing), found.missing[0][0]
        click.echo(f"left out: {count} listed videos that are not there, the first is {first}")


def _say_bad(bad: list[BadVideo]) -> None:
    for one in bad[:_SHOWN]:
        click.echo(f"left out: {one.path}: {one.reason}")
    if len(bad) > _SHOWN:
        click.echo(f"left out: {len(bad) - _SHOWN} more")


@data.command(short_help="Count the frames of every video and write them to an index.")
@_source_options
@click.argument("output", type=Named(path_type=Path))
def index(source: Path, output: Path, workers: int, **how: str) -> None:
    """Count the frames of every video of SOURCE and write the index OUTPUT, one JSON object a line.

    OUTPUT can be trained on in place of SOURCE: the readable videos alone, with their splits and
    labels. Where SOURCE has no test split and videos that cannot be read, other videos may be held
    out of OUTPUT than of SOURCE: one in ten of what each names.
    """
    found = find_videos(source, **how)
    if output.exists() and output.samefile(expanded(source)):
        raise PacecoreError(f"{output}: OUTPUT must be another file than SOURCE, which is {source}")
    with _progress("counting frames", len(found)) as progress:
        counted, bad = data_index(found, output, workers=workers, on_progress=progress)
    _say_missing(found)
    _say_bad(bad)
    frames = sum(entry.num_frames or 0 for entry in counted.entries)
    what = f"{counted.layout} in {counted.root}"  # of a list found where nobody named it
    click.echo(f"{output}: {len(counted)} videos, {frames:,} frames ({what})")


@data.command(short_help="Decode every video once and say what is wrong.")
@_source_options
@click.option("--json", "report_file", type=Named(path_type=Path), help="Report to a file.")
@click.option("--paces", default="1,2,3,4", show_default=True, help="Whose loops are counted.")
@click.option(
    "--clip-frames",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Frames of a clip.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 1e6),
    callback=_require_number,
    default=600.0,
    show_default=True,
    help="Seconds for one video.",
)
@click.pass_context
def check(
    context: click.Context,
    source: Path,
    workers: int,
    report_file: Path | None,
    paces: str,
    clip_frames: int,
    timeout: float,
    **how: str,
) -> None:
    """Decode every video of SOURCE once and say what is wrong. Exit code 1: look at something.

    Of a frame store, every frame is compared with its checksum; of the options --json applies.
    """
    from pacecore.check import data_check, store_check
    from pacecore.store import FrameStore

    _require_place(report_file, source)
    if FrameStore.is_at(source):
        _require_none_idle(context)
        store = FrameStore.open(source)
        with _progress("checking", len(store)) as progress:
            report = store_check(store, progress)
        _print_store_report(report)
    else:
        pace_set = parse_paces(paces)
        found = find_videos(source, **how)
        with _progress("decoding", len(found)) as progress:
            report = data_check(
                found,
                paces=pace_set,
                clip_frames=clip_frames,
                fold=how["fold"],
                workers=workers,
                timeout_seconds=timeout,
                on_progress=progress,
            )
        _print_report(report)
    if report_file:
        _write_report(report, report_file)
    if report["serious"]:
        context.exit(1)


def _require_none_idle(context: click.Context) -> None:
    """How videos are found and decoded says nothing of a store."""
    given = [
        each.opts[0]
        for each in context.command.params
        if isinstance(each, click.Option)
        and each.name != "report_file"
        and context.get_parameter_source(each.name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise OptionError(f"of a frame store only --json applies, got {', '.join(given)} too")


def _require_place(report_file: Path | None, source: Path) -> None:
    """Told before the work, not after."""
    if report_file is None:
        return
    source = expanded(source)
    parts = [source, *(source.iterdir() if (source / "frames.bin").is_file() else ())]
    if report_file.exists() and any(each.exists() and report_file.samefile(each) for each in parts):
        raise PacecoreError(f"{report_file}: --json must be another file than SOURCE, {source}")
    reason = ""
    if report_file.is_dir():
        reason = os.strerror(errno.EISDIR)
    elif there(report_file):
        reason = "" if os.access(report_file, os.W_OK) else os.strerror(errno.EACCES)
    elif not os.access(report_file.parent, os.W_OK | os.X_OK):
        reason = f"{report_file.parent} is no folder for new files"
    if reason:
        raise PacecoreError(f"{report_file}: cannot be written: {reason}")


def _may_be_replaced(path: Path) -> bool:
    """Whether a file can be put in its place; /dev/stdout is what it leads to, of whatever kind."""
    if path.is_symlink() or not os.access(path.parent, os.W_OK | os.X_OK):
        return False
    return path.is_file() or not path.exists()


def _write_report(report: dict, report_file: Path) -> None:
    if _may_be_replaced(report_file):
        write_json(report_file, report)
    else:
        with writing(report_file):
            report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _print_store_report(report: dict) -> None:
    for finding in report["findings"][:_SHOWN]:
        click.echo(finding["detail"])
    bad = report["serious"]
    words = f"{bad} of them damaged" if bad else "every frame as it was packed"
    click.echo(f"{report['root']}: {report['videos']} videos, {words}")


def _print_report(report: dict) -> None:
    click.echo(f"{report['root']}: {report['layout']}")
    readable = f"{report['readable']} of {report['videos']} videos"
    click.echo(f"decoded whole: {readable}, {report['frames']:,} frames")
    codecs = ", ".join(f"{name} {count}" for name, count in sorted(report["codecs"].items()))
    click.echo(f"codecs: {codecs or 'none'}")
    splits = list(report["splits"])
    width = max([5, *map(len, report["classes"])])
    click.echo("\n" + "class".ljust(width) + "".join(f"{split:>10}" for split in splits))
    for name, counts in report["classes"].items():
        click.echo(name.ljust(width) + "".join(f"{counts.get(s, 0):>10}" for s in splits))
    total = "".join(f"{report['splits'][split]:>10}" for split in splits)
    click.echo("all".ljust(width) + total)
    if report["lengths"]:
        lengths = report["lengths"]
        click.echo(
            f"\nframes of a video: {lengths['least']:g} to {lengths['most']:g}, "
            f"median {lengths['median']:g}"
        )
        most = max(lengths["bins"].values())
        for name, count in lengths["bins"].items():
            click.echo(f"{name:>14} {count:>7} {'#' * -(-40 * count // most)}")
        shares = ", ".join(f"{share:.0%} at pace {pace}" for pace, share in report["loops"].items())
        click.echo(f"clips of {report['clip_frames']} frames that loop, and so betray their pace:")
        click.echo(f"  {shares}")
    _print_findings(report)


def _print_findings(report: dict) -> None:
    for kind, count in sorted(report["kinds"].items()):
        click.echo(f"\n{kind}: {count}")
        for finding in [f for f in report["findings"] if f["kind"] == kind][:_SHOWN]:
            click.echo(f"  {os.path.relpath(finding['path'], report['root'])}: {finding['detail']}")
        if count > _SHOWN:
            click.echo(f"  and {count - _SHOWN} more")
    if not report["kinds"]:
        click.echo("\nnothing wrong found")


def _parse_size(context: click.Context, option: click.Parameter, text: str) -> tuple[int, int]:
    words = text.replace(",", "x").split("x")
    if len(words) != 2 or not all(word.isdecimal() and 0 < int(word) <= 8192 for word in words):
        raise click.BadParameter(f"must be HEIGHTxWIDTH, each of 1 to 8192, got {text!r}")
    return int(words[0]), int(words[1])


@data.command("pack", short_help="Decode every video once into a frame store.")
@_source_options
@click.argument("folder", type=Named(path_type=Path))
@click.option(
    "--size",
    default="128x171",
    show_default=True,
    callback=_parse_size,
    help="HEIGHTxWIDTH that training resizes to.",
)
def pack_command(
    source: Path, folder: Path, size: tuple[int, int], workers: int, **how: str
) -> None:
    """Decode SOURCE once into the frame store FOLDER, at the size that training resizes to.

    Frames are kept as 8-bit YUV 4:2:0 of that size, so that clips differ slightly from those of the
    files, by less than a grey level on average. A pack that was broken off goes on where it stood.
    """
    from pacecore.store import folder_to_pack, pack, store_bytes

    found = find_videos(source, **how)
    folder_to_pack(folder)  # told before the counting
    with _progress("counting frames", len(found)) as progress:
        counted, bad = probe_all(found, workers, progress)
    _say_missing(found)
    if not counted.entries:
        raise PacecoreError(f"{source}: {none_readable(len(found), bad)}")
    _say_bad(bad)
    frames = sum(entry.num_frames or 0 for entry in counted.entries)
    megabytes = store_bytes(counted, size) / 1e6
    click.echo(f"{len(counted)} videos, {frames:,} frames: the store takes {megabytes:,.1f} MB")
    with _progress("packing", len(counted)) as progress:
        store, bad = pack(counted, folder, size, workers=workers, on_progress=progress)
    _say_bad(bad)
    click.echo(f"{folder}: {len(store)} videos of {size[0]} x {size[1]}")
