"""pacecore retrieve: nearest neighbours."""

from typing import Any

import click

from pacecore.cli.options import Named, collect, options_of, results_beside, say, say_replaced
from pacecore.config import RetrieveOptions
from pacecore.rules import OptionError

__all__ = ["retrieve"]

_OF_FEATURES = ("k", "out", "device")  # how rows are compared; the others say how they are made


@click.command()
@click.argument("checkpoint", type=Named(), required=False)
@click.argument("data", required=False)
@click.option(
    "--features",
    nargs=2,
    type=Named(),
    metavar="GALLERY QUERIES",
    help="Two files of pacecore extract, in place of CHECKPOINT and DATA.",
)
@options_of(RetrieveOptions, leave_out=("data",))
def retrieve(checkpoint: str | None, features: tuple[str, str] | None, **given: Any) -> None:
    """For each held-out video of DATA, find the nearest training videos by CHECKPOINT's features.

    Prints how often any of the k nearest has the right label. With no DATA: the videos that the
    checkpoint was trained on. Writes figures, neighbours and features, and with --gallery a
    picture of queries and their neighbours.
    """
    from pacecore.retrieve import retrieve_files, run_retrieve
    from pacecore.trained import load_trained

    options = collect(RetrieveOptions, given)
    if features:
        if checkpoint:
            raise OptionError(f"--features takes the place of CHECKPOINT, got {checkpoint} too")
        idle = [name for name in given if given[name] is not None and name not in _OF_FEATURES]
        if idle:
            names = ", ".join("--" + name.replace("_", "-") for name in idle)
            raise OptionError(
                f"with --features only --k, --out and --device apply, got {names} too"
            )
        beside, result = features[1], retrieve_files(features, options)
    elif checkpoint:
        beside, result = checkpoint, run_retrieve(load_trained(checkpoint), options)
    else:
        raise OptionError("CHECKPOINT is missing; or name --features GALLERY QUERIES")
    say(_words(result))
    say(f"written to {results_beside(beside, options.out)}")
    say_replaced(result.get("replaced", ""))  # which the first rank alone knows


def _words(result: dict[str, Any]) -> str:
    ks = list(result["top"])
    lines = [
        f"{result['query_videos']:,} query videos, {result['gallery_videos']:,} gallery videos;"
        f" by {result['unit']}: {result['queries']:,} on {result['gallery']:,} rows of"
        f" {result['dimensions']:,} ({result['stage']}, {result['clips']} clips a video)",
        "".join(f"{'top-' + k:>9}" for k in ks),
        "".join(f"{100 * result['top'][k]:>7.1f} %" for k in ks),
    ]
    if result["classes_without_gallery"]:
        names = ", ".join(result["classes_without_gallery"])
        lines.append(f"classes without a gallery video, which can have no hit: {names}")
    if result["gallery_collapsed"]:
        lines.append(
            "warning: the gallery's features all point one way, so the nearest mean nothing"
        )
    if result["videos_in_both"]:
        both = f"{result['videos_in_both']:,} query videos are in the gallery too"
        lines.append(f"warning: {both}, where each finds itself")
    if result.get("videos_learned_from"):  # not known of files
        learned = f"{result['videos_learned_from']:,} of the query videos"
        lines.append(f"warning: {learned} are among those that the checkpoint was trained on")
    lines += [f"left out: {path}: {reason}" for path, reason in result["unreadable"].items()]
    return "\n".join(lines)
