"""Curves and confusion matrices as pictures, by the extra `plots`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pacecore.errors import PacecoreError
from pacecore.files import aside

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
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


Group = tuple[str, Sequence[_Measured]]  # runs of one setting, and its words


def draw_runs(groups: Sequence[Group], out: Path) -> list[tuple[str, str]]:
    """Curves, and a confusion matrix of each tested setting: (file name, what it shows)."""
    drawn = []
    for kind, what in (("pretrain", "pre-training"), ("finetune", "fine-tuning")):
        chosen = [
            (words, [run for run in runs if run.kind == kind and run.metrics])
            for words, runs in groups
        ]
        chosen = [(words, runs) for words, runs in chosen if runs]
        if chosen:
            draw_curves(chosen, out / f"curves-{kind}.png")
            drawn.append((f"curves-{kind}.png", f"loss and accuracy of {what}"))
    for words, runs in groups:
        tested = [run for run in runs if run.test.get("confusion")]
        if not tested:
            continue
        first = tested[0]
        classes = _classes(first)
        name = f"{first.name}-confusion.png"
        tested = [run for run in tested if _classes(run) == classes]  # else the data has changed
        counts = sum(np.array(run.test["confusion"]) for run in tested)
        draw_confusion(counts, classes, out / name)
        summed = "summed, " if len(tested) > 1 else ""
        drawn.append((name, f"{words}: confusion, {summed}rows true, columns predicted"))
    return drawn


def _classes(run: _Measured) -> list[str]:
    return list(run.test.get("classes") or run.test["per_class"])


def _shown(name: str) -> str:
    """`name`, which may be of a folder and hold bytes that are no UTF-8, as a font takes it."""
    return name.encode(errors="backslashreplace").decode()


def _save(figure: Figure, path: Path) -> None:
    with aside(path) as part:
        figure.savefig(part, dpi=120)


_LONGEST = 30  # letters of a name beside a matrix, of which longer ones would leave nothing
_LINES = ("-", "--", ":", "-.")
# Names of classes and runs may have a $, and a user's matplotlibrc may ask for a TeX.
_PLAIN_TEXT = rc_context({"text.parse_math": False, "text.usetex": False})


@_PLAIN_TEXT
def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Loss and accuracy over epochs of runs of one kind, a colour a setting: training as lines,
    held-out or validation accuracy as dots.
    """
    # In the legend a letter is about a twelfth of an inch wide, a line a fifth high.
    longest = 6 + max(len(words) for words, _ in groups)
    columns = max(1, min(3, len(groups), 120 // longest))
    figure = Figure(figsize=(10, 4 + 0.2 * -(-len(groups) // columns)), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, (words, runs) in enumerate(groups):
        look = {"color": f"C{number % 10}", "linestyle": _LINES[number // 10 % len(_LINES)]}
        for place, run in enumerate(runs):
            # A label that begins with _ is left out of the legend.
            _draw_run(run, loss, accuracy, look, "" if place else f" {_shown(words)}")
    loss.set(xlabel="epoch", ylabel="loss")
    dots = "held out" if groups[0][1][0].kind == "pretrain" else "validation"
    accuracy.set(xlabel="epoch", ylabel=f"accuracy (dots: {dots})", ylim=(0, 1.02))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=5)  # of a short run each number is long
    figure.legend(loc="outside lower center", ncols=columns, fontsize="small")
    _save(figure, path)


def _draw_run(run: _Measured, loss: Axes, accuracy: Axes, look: dict[str, str], label: str) -> None:
    steps = {line["step"]: line["epoch"] for line in run.metrics if "epoch" in line}
    trained = [line for line in run.metrics if "loss" in line]
    epochs = [line["epoch"] for line in trained]
    alone = {"marker": "."} if len(trained) == 1 else {}  # a line of one point shows nothing
    loss.plot(epochs, [line["loss"] for line in trained], label=label or None, **alone, **look)
    shown = [line.get("accuracy", np.nan) for line in trained]
    accuracy.plot(epochs, shown, alpha=0.5, linewidth=1, **alone, **look)
    for name in ("pace_accuracy", "val_accuracy"):
        held = [line for line in run.metrics if name in line]
        places = [steps.get(line["step"], np.nan) for line in held]
        accuracy.plot(places, [line[name] for line in held], marker="o", markersize=4, **look)


@_PLAIN_TEXT
def draw_confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """counts (C, C): row the true class, column the predicted one; shown as shares of rows. Of more
    than 20 classes without the counts, of more than 150 without the names, which are cut short.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    few, named = len(classes) <= 20, len(classes) <= 150
    side = 2.5 + (0.45 if few else 0.15) * len(classes) if named else 9
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true")
    places = range(len(classes))
    names = map(_shown, classes)
    names = [each if len(each) <= _LONGEST else f"{each[: _LONGEST - 1]}…" for each in names]
    if named:
        size = "medium" if few else 7  # points, of which a row has 11
        turned = {"rotation": 45, "ha": "right"} if few else {"rotation": 90}
        axes.set_xticks(places, names, fontsize=size, **turned)
        axes.set_yticks(places, names, fontsize=size)
    if few:
        for row in places:
            for column in places:
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = str(counts[row, column])
                    axes.text(column, row, text, ha="center", va="center", color=colour)
    _save(figure, path)
