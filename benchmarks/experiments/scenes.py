"""Whether features tell where a video was filmed, and what they retrieve without that."""

import json
import re
from collections.abc import Callable

import numpy as np

from pacecore.extract import Features, load_features
from pacecore.retrieve import nearest

from .cells import Cell

__all__ = ["group_of", "same_scene", "without_scenes"]

# (arm, share of each seed, chance)
Rows = list[tuple[str, list[float], float]]


def same_scene(cells: list[Cell], scene: str) -> Rows:
    """How many of the five nearest neighbours show the query's scene.

    scene: a regular expression whose first group, in a video's path, is the name of its scene.
    """

    def measure(cell: Cell) -> tuple[float, float]:
        gallery = _scenes(_features(cell, "train"), scene)
        text = (cell.pretrained / "neighbours-p5-video.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        same = [
            group_of(found["path"], scene) == group_of(line["query"], scene)
            for line in lines
            for found in line["neighbours"][:5]
        ]
        chance = [gallery == group_of(line["query"], scene) for line in lines]
        return float(np.mean(same)), float(np.mean(chance))

    return _by_arm(cells, "neighbours-p5-video.jsonl", measure)


def without_scenes(cells: list[Cell], scene: str) -> Rows:
    """Top-1 of retrieval where the mean of a scene's training videos is subtracted from the
    features of all its videos, which no label is needed for.

    Where telling scenes is what keeps a video from its class, this is above the retrieval by the
    features as they are.
    """

    def measure(cell: Cell) -> tuple[float, float]:
        train, test = (_features(cell, split) for split in ("train", "test"))
        gallery, queries = (each.rows.astype(np.float64) for each in (train, test))
        of_gallery, of_queries = _scenes(train, scene), _scenes(test, scene)
        for name in np.unique(of_gallery):
            mean = gallery[of_gallery == name].mean(axis=0)
            gallery[of_gallery == name] -= mean
            queries[of_queries == name] -= mean
        numbers, _ = nearest(queries.astype(np.float32), gallery.astype(np.float32), 1)
        right = train.labels[numbers[:, 0]] == test.labels
        return float(right.mean()), float(np.mean(train.labels == test.labels[:, None]))

    return _by_arm(cells, "features-p5-video-test.npy", measure)


def _by_arm(cells: list[Cell], file: str, measure: Callable[[Cell], tuple[float, float]]) -> Rows:
    """file: of the pre-training's folder, without which a cell is left out."""
    rows: dict[str, tuple[str, list[float], float]] = {}
    for cell in cells:
        if cell.leaves(cell.pretrained / file):
            share, chance = measure(cell)
            rows.setdefault(cell.arm.name, (cell.arm.words, [], chance))[1].append(share)
    return list(rows.values())


def _features(cell: Cell, split: str) -> Features:
    return load_features(cell.pretrained / f"features-p5-video-{split}.npy")


def _scenes(features: Features, scene: str) -> np.ndarray:
    return np.array([group_of(path, scene) for path in features.paths()])


def group_of(path: str, expression: str | None) -> str:
    """The first group of a regular expression in a video's path; the path where there is none."""
    found = re.search(expression, path) if expression else None
    return found[1] if found else path
