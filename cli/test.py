"""pacecore test: accuracy on held-out videos."""

from typing import Any

import click

from pacecore.cli.options import Named, collect, options_of, results_beside, say, say_replaced
from pacecore.config import TestOptions

__all__ = ["test"]


@click.command()
@click.argument("checkpoint", type=Named())
@click.argument("data", required=False)
@options_of(TestOptions, leave_out=("data",))
def test(checkpoint: str, **given: Any) -> None:
    """Measure CHECKPOINT on the held-out videos of DATA.

    After a fine-tuning: 10 clips of each video, top-1, top-5, mean per class, confusion. After a
    pre-training: held-out pace accuracy and its confusion. With no DATA: the videos that the
    checkpoint was trained on. Writes test.json and, of actions, predictions.jsonl.
    """
    from pacecore.recognition import run_test
    from pacecore.trained import load_trained

    options = collect(TestOptions, given)
    result = run_test(load_trained(checkpoint), options, tell=lambda result: say(_words(result)))
    say(f"written: {results_beside(checkpoint, options.out) / 'test.json'}")
    say_replaced(result["replaced"])


def _words(result: dict[str, Any]) -> str:
    lines = [f"data: {result['data_words']}"]
    if result["kind"] == "pretrain":
        lines += [
            f"held-out pace accuracy {_percent(result['pace_accuracy'])}"
            f" (chance {_percent(result['chance'])}), {result['clips']:,} clips of"
            f" {result['videos']:,} videos",
            *confusion_table(result["classes"], result["confusion"]),
        ]
    else:
        low, high = result["top1_interval_95"]
        lines += [
            f"{result['videos']:,} videos, {result['clips_per_video']} clips each, mean of"
            f" {result['average']}; {len(result['unreadable'])} unreadable",
            f"top-1 {_percent(result['top1'])}  (95 % interval {_percent(low)} to"
            f" {_percent(high)}; chance {_percent(result['chance'])})",
            f"top-5 {_percent(result['top5'])}",
            f"mean per class {_percent(result['mean_per_class'])}",
            f"clip by clip: top-1 {_percent(result['clip_top1'])}, top-5"
            f" {_percent(result['clip_top5'])}",
        ]
        shares = result["per_class"]
        if len(shares) <= 20:
            lines += confusion_table(list(shares), result["confusion"])
        else:
            worst = sorted((s, name) for name, s in shares.items() if s is not None)[:10]
            lines.append("lowest: " + ", ".join(f"{name} {_percent(s)}" for s, name in worst))
        if result["classes_without_videos"]:
            names = ", ".join(result["classes_without_videos"])
            lines.append(f"classes without a video here, left out of the mean per class: {names}")
    if result["videos_learned_from"]:
        learned = f"{result['videos_learned_from']:,} of the held-out videos"
        lines.append(f"warning: {learned} are among those that the checkpoint was trained on")
    lines += [f"left out: {path}: {reason}" for path, reason in result["unreadable"].items()]
    return "\n".join(lines)


def confusion_table(classes: list[str], confusion: list[list[int]]) -> list[str]:
    """Lines: a row a true class, a column a predicted one, its share of right ones last."""
    width = max(max(map(len, classes)), 4)
    cell = max(5, *(len(str(count)) + 1 for row in confusion for count in row))
    head = "".join(f"{name[: cell - 1]:>{cell}}" for name in classes)
    lines = [f"{'true':<{width}}{head}   right"]
    for index, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        counts = "".join(f"{count:>{cell}}" for count in row)
        share = _percent(row[index] / sum(row)) if sum(row) else "-"
        lines.append(f"{name:<{width}}{counts}   {share}")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
