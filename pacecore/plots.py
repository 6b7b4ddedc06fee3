"""Curves and confusion matrices as pictures, by the extra `plots`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pacecore.errors import PacecoreError

try:
    from matplotlib.figure import Figure
except ImportError:
    raise PacecoreError(
        "matplotlib is not installed; install pacecore[plots], or leave the pictures out"
        " (--no-pictures)"
    ) from None

__all__ = ["draw_confusion", "draw_curves", "draw_runs"]


class _Measured(Protocol):
    name: str
    kind: str
    metrics: list[dict[str, Any]]
    test: dict[str, Any]


def draw_runs(runs: Sequence[_Measured], out: Path) -> list[tuple[str, str]]:
    """Curves of all runs and a confusion matrix of each tested one: (file name, what it shows)."""
    drawn = []
    for kind, what in (("pretrain", "pre-training"), ("finetune", "fine-tuning")):
        chosen = [run for run in runs if run.kind == kind and run.metrics]
        if chosen:
            draw_curves(chosen, out / f"curves-{kind}.png")
            drawn.append((f"curves-{kind}.png", f"loss and accuracy of {what}"))
    for run in runs:
        if run.test.get("confusion"):
            classes = run.test.get("classes") or list(run.test["per_class"])
            name = f"{run.name}-confusion.png"
            draw_confusion(np.array(run.test["confusion"]), classes, out / name)
            drawn.append((name, f"{run.name}: confusion, rows true, columns predicted"))
    return drawn


def draw_curves(runs: Sequence[_Measured], path: Path) -> None:
    """Loss and accuracy over epochs: training as lines, held-out or validation as dots."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        steps = {line["step"]: line["epoch"] for line in run.metrics if "epoch" in line}
        trained = [line for line in run.metrics if "loss" in line]
        epochs = [line["epoch"] for line in trained]
        loss.plot(epochs, [line["loss"] for line in trained], color=colour, label=run.name)
        shown = [line.get("accuracy", np.nan) for line in trained]
        accuracy.plot(epochs, shown, color=colour, alpha=0.5, linewidth=1)
        for name in ("pace_accuracy", "val_accuracy"):
            held = [line for line in run.metrics if name in line]
            places = [steps.get(line["step"], np.nan) for line in held]
            values = [line[name] for line in held]
            accuracy.plot(places, values, "o-", color=colour, markersize=4)
    loss.set(xlabel="epoch", ylabel="loss")
    accuracy.set(xlabel="epoch", ylabel="accuracy (dots: held out)", ylim=(0, 1.02))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    loss.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """counts (C, C): row the true class, column the predicted one; shown as shares of rows."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    few = len(classes) <= 20
    side = 2.5 + 0.45 * len(classes) if few else 9
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true")
    if few:
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=45, ha="right")
        axes.set_yticks(places, classes)
        for row in places:
            for column in places:
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = str(counts[row, column])
                    axes.text(column, row, text, ha="center", va="center", color=colour)
    figure.savefig(path, dpi=120)
