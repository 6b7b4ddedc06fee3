"""`pacecore data demo`: makes the built-in demo set."""

import shlex
from pathlib import Path

import click

from pacecore.cli.options import Named
from pacecore.demo import DemoOptions, make_demo
from pacecore.video_writer import video_encoder

__all__ = ["demo"]


@click.command(short_help="Make the demo set: short video files, drawn.")
@click.argument("folder", type=Named(path_type=Path), default="pacecore-demo")
@click.option(
    "--seed", default=DemoOptions.seed, show_default=True, help="Another set of pictures."
)
@click.option(
    "--groups", default=DemoOptions.groups, show_default=True, help="Groups of each class."
)
@click.option("--clips", default=DemoOptions.clips, show_default=True, help="Videos of each group.")
def demo(folder: Path, seed: int, groups: int, clips: int) -> None:
    """Make the demo set in FOLDER: short video files in UCF101's layout, drawn, not filmed.

    Six kinds of motion (the classes) of textured objects over moving backgrounds. A set that is
    there already is left as it is.
    """
    if video_encoder() != "libx264":
        click.echo(
            f"PyAV lacks libx264, so the files are {video_encoder()} and not H.264", err=True
        )
    with click.progressbar(label="making the demo set", length=1) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(1)

        make_demo(folder, seed=seed, groups=groups, clips=clips, progress=progress)
    command = shlex.join(["pacecore", "train", str(folder)])
    click.echo(f"{folder}: the demo set. Train on it with: {command}")
