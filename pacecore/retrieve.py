"""Nearest-neighbour retrieval: held-out videos ask, training videos answer (Table 5 of the paper).

Features of a video are the mean over its clips; neighbours are nearest by cosine; a query is a hit
at k if any of its k nearest neighbours has its label.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pacecore.config import RetrieveOptions, taken
from pacecore.device import pick_device, true_fp32, trusted
from pacecore.distributed import all_reduce_sum, is_main, join, rank, world_size
from pacecore.errors import PacecoreError
from pacecore.extract import Features, extract_split, features_name, load_features
from pacecore.files import made_folder, write_json, write_json_lines
from pacecore.inputs import Inputs, identity_of, learned_from
from pacecore.pictures import framed_rows
from pacecore.protocol import PATIENCE, labels_of, open_measured, out_folder, ready
from pacecore.runlog import Progress
from pacecore.runs import replaced_by
from pacecore.stills import still_frames
from pacecore.trained import Trained, require_trained
from pacecore.video_writer import write_png

__all__ = ["hit_rates", "nearest", "retrieve_features", "retrieve_files", "run_retrieve"]

_BLOCK_BYTES = 256 * 2**20  # of queries, of gallery rows, and of similarities held at once
_TOGETHER = 1024  # queries multiplied at once: their products stay in a processor's last cache
# Rows whose k largest are selected at once, in the cache that is a core's own: 1,024 x 4,096 values
# took 13 ms of a core by 128 rows or fewer, 20 all together.
_SELECTED = 128
_SPARE = 16  # candidates beyond k, so that rounding cannot push a true neighbour out
_CLOSE = 2e-6  # cosines nearer than this are compared again in float64
_LOOKED_AT = 256  # rows of a gallery that say whether all point one way
_TINY = 1e-30  # in place of the length of a row of zeros, whose products are 0


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    device: torch.device | str = "cpu",
    boundaries: tuple[int, ...] | None = None,
    block_bytes: int = _BLOCK_BYTES,
    on_progress: Callable[[int], None] = lambda _: None,
    names: tuple[str, str] = ("queries", "gallery"),
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `gallery` (N, D) by cosine of each row of `queries` (Q, D).

    Returns numbers int64 (Q, min(k, N)), nearest first, and cosines float32 of that shape. Rows of
    zeros have cosine 0. Blocks of both are loaded, so memory-mapped arrays larger than memory are
    fine; no Q x N matrix is held. The k nearest are exact, if no more than 16 beyond k are as
    near as the k-th but for fp32's rounding: where the k-th and the next cosine of some k in
    `boundaries` (default: every k) are too close for it, they are computed in float64; of exact
    equals the lower number is nearer.
    on_progress(done) is called with the number of queries that are done.

    Raises PacecoreError for shapes that do not fit, and for rows that are not finite or of a length
    beyond fp32, by whichever of `names` they are in.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise PacecoreError(
            f"retrieve: queries {queries.shape} and gallery {gallery.shape} must be (rows, D) of"
            " one D"
        )
    if k < 1 or len(gallery) == 0:
        raise PacecoreError(f"retrieve: needs k from 1 and a gallery, got {k} and {len(gallery)}")
    device, k = torch.device(device), min(k, len(gallery))
    edges = [edge for edge in boundaries or range(1, k + 1) if edge < len(gallery) and edge <= k]
    wanted = min(k + _SPARE, len(gallery))
    # Products of 1,024 x 4,096 x 9,216 ran at 160 GFLOP/s on two cores, of 1,024 x 7,281 at 107.
    rows = max(1, min(4096, block_bytes // (4 * queries.shape[1])))  # of either in a block
    numbers = np.empty((len(queries), k), dtype=np.int64)
    cosines = np.empty((len(queries), k), dtype=np.float32)
    for first in range(0, len(queries), rows):
        block = queries[first : first + rows]
        with true_fp32():
            found, near = _candidates(block, gallery, wanted, rows, device, names)
        _settle(block, gallery, found, near, edges, block_bytes)
        numbers[first : first + len(block)] = found[:, :k]
        cosines[first : first + len(block)] = near[:, :k]
        on_progress(first + len(block))
    return numbers, cosines


def _candidates(
    queries: np.ndarray,
    gallery: np.ndarray,
    wanted: int,
    rows: int,
    device: torch.device,
    names: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """The `wanted` nearest of each query by fp32 cosine, nearest first."""
    asked, asked_scale = _rows(queries, device, names[0])
    best: dict[int, tuple[Tensor, Tensor]] = {}  # by the part of the queries: cosines, numbers
    products = torch.empty(_TOGETHER * rows, dtype=torch.float32, device=device)  # asked for once
    for first in range(0, len(gallery), rows):
        answers, scale = _rows(gallery[first : first + rows], device, names[1])
        by_rows = answers.shape[1] < len(asked)  # fewer numbers to scale than products
        if by_rows:
            answers = answers * scale[:, None]
        for part in range(0, len(asked), _TOGETHER):
            some = slice(part, part + _TOGETHER)
            shape = len(asked[some]), len(answers)
            cosines = products[: shape[0] * shape[1]].view(shape)
            torch.mm(asked[some], answers.T, out=cosines)
            if not by_rows:
                cosines.mul_(scale)
            found, place = _largest(cosines, min(wanted, len(answers)))
            if first:
                found = torch.cat([best[part][0], found], 1)
                place = torch.cat([best[part][1], place + first], 1)
                found, order = _largest(found, min(wanted, found.shape[1]))
                place = place.gather(1, order)
            best[part] = found, place
    near, numbers = (torch.cat(each).cpu().numpy() for each in zip(*best.values(), strict=True))
    return numbers, near * asked_scale.cpu().numpy()[:, None]


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k, dim=1)`: the k largest of each row of (Q, N), largest first, their places."""
    if values.device.type != "cpu" or k == values.shape[1]:
        return values.topk(k, dim=1)
    # NumPy selects with vector instructions: 66 of 4,000 in 12 ms for 1,024 rows on one core, for
    # which topk took 56 on two.
    array = values.numpy()
    parts = [array[first : first + _SELECTED] for first in range(0, len(array), _SELECTED)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        chosen = zip(*threads.map(partial(_selected, k=k), parts), strict=True)
        found, places = (torch.from_numpy(np.concatenate(each)) for each in chosen)
    return found, places


def _selected(array: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    places = np.argpartition(array, -k, axis=1)[:, -k:]
    found = np.take_along_axis(array, places, axis=1)
    order = np.argsort(-found, axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)


def _rows(rows: np.ndarray, device: torch.device, name: str) -> tuple[Tensor, Tensor]:
    """Rows on the device, and 1 / their lengths. Raises PacecoreError where one is not finite: it
    would be nearest to all.
    """
    whole = rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    values = torch.from_numpy(rows if whole else np.array(rows, dtype=np.float32)).to(device)
    lengths = values.norm(dim=1)
    if not lengths.isfinite().all():
        raise PacecoreError(f"{name}: holds rows that are not finite, or of a length beyond fp32")
    return values, 1 / lengths.clamp_min(_TINY)


def _settle(
    queries: np.ndarray,
    gallery: np.ndarray,
    found: np.ndarray,
    near: np.ndarray,
    edges: list[int],
    block_bytes: int,
) -> None:
    """Orders anew, by float64 cosines, the candidates between which fp32 leaves an edge open."""
    edges = [edge for edge in edges if edge < found.shape[1]]
    if not edges:
        return
    apart = near[:, :-1] - near[:, 1:] >= _CLOSE
    run = np.zeros(found.shape, dtype=np.int64)  # candidates of a run are close, each to the next
    np.cumsum(apart, axis=1, out=run[:, 1:])
    open_run = np.zeros(found.shape, dtype=bool)
    for edge in edges:
        open_run |= (run == run[:, edge : edge + 1]) & ~apart[:, edge - 1 : edge]
    rows, places = np.nonzero(open_run)
    exact = near.astype(np.float64)
    count = max(1, block_bytes // (16 * queries.shape[1]))
    for first in range(0, len(rows), count):
        row, place = rows[first : first + count], places[first : first + count]
        asked, answers = (
            torch.from_numpy(np.array(part, dtype=np.float64))
            for part in (queries[row], gallery[found[row, place]])
        )
        lengths = asked.norm(dim=1).mul(answers.norm(dim=1)).clamp_min(_TINY)
        exact[row, place] = ((asked * answers).sum(dim=1) / lengths).numpy()
    touched = np.unique(rows)
    order = np.lexsort((found[touched], -exact[touched], run[touched]))
    found[touched] = np.take_along_axis(found[touched], order, axis=1)
    near[touched] = np.take_along_axis(exact[touched], order, axis=1)


def hit_rates(
    neighbours: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray, ks: tuple[int, ...]
) -> dict[int, float]:
    """Share of queries, 0..1, with their label among their k nearest neighbours, for each k.

    neighbours: (Q, K) numbers into gallery_labels, nearest first, K at least max(ks) or all.
    """
    same = gallery_labels[neighbours] == labels[:, None]
    return {k: float(same[:, :k].any(axis=1).mean()) for k in ks}


def run_retrieve(trained: Trained, options: RetrieveOptions) -> dict[str, Any]:
    """Retrieval with a checkpoint's features, which are kept for the next time.

    Writes retrieve-STAGE-UNIT.json, neighbours-STAGE-UNIT.jsonl, the features, and with
    options.gallery gallery-STAGE-UNIT.png into options.out; `replaced`, only returned, says what
    of other videos stood there. Raises PacecoreError for input that cannot be used.
    """
    options = taken("retrieve", options, RetrieveOptions)
    require_trained("retrieve", trained)
    device = pick_device(options.device)
    with join(device, patience=PATIENCE):
        data = open_measured(trained, options)
        _require_labels(data, options.data or "the data")
        options = trusted(options, device, measures=trained.options)
        model = ready(trained.backbone, device)
        gallery, queries = (
            extract_split(model, trained, data, split, options, device)
            for split in ("train", "test")
        )
        folder = out_folder(trained, options)
        result, neighbours = retrieve_features(gallery, queries, options, device)
        result |= {
            "checkpoint": str(trained.path),
            "step": trained.step,
            "kind": trained.kind,
            "data": options.data or trained.options.data or "demo set",
            "data_words": data.words,
            "unreadable": {**dict(data.unreadable), **result["unreadable"]},
            "videos_learned_from": learned_from(trained.trainings(), data.held_out),
            "trained_with": asdict(trained.options),
            "pretrained": trained.pretrained,
        }
        if is_main():
            name = _write(folder, result, neighbours, gallery, queries)
            if options.gallery:
                picture = _gallery_picture(data, gallery, queries, neighbours[0], options.gallery)
                write_png(folder / f"gallery-{name}.png", picture)
        return result


def _require_labels(data: Inputs, what: str) -> None:
    """What would otherwise be told only after all features have been made."""
    if data.held_out is None:
        raise PacecoreError(f"{what}: no held-out video to ask by; --held-out names others")
    labels_of(data.train, f"{what}: training videos")
    labels_of(data.held_out, f"{what}: held-out videos")


def retrieve_files(paths: tuple[str, str], options: RetrieveOptions) -> dict[str, Any]:
    """Retrieval with two files of `extract`: (gallery, queries).

    Writes retrieve-STAGE-UNIT.json and neighbours-STAGE-UNIT.jsonl into options.out, or beside the
    queries.
    """
    options = taken("retrieve", options, RetrieveOptions)
    device = pick_device(options.device)
    with join(device, patience=PATIENCE):
        gallery, queries = map(load_features, paths)
        if is_main():
            folder = made_folder(options.out or queries.path.parent)
        result, neighbours = retrieve_features(gallery, queries, options, device)
        result["data"] = f"{gallery.path}, {queries.path}"
        if is_main():
            _write(folder, result, neighbours, gallery, queries)
        return result


def retrieve_features(
    gallery: Features, queries: Features, options: RetrieveOptions, device: torch.device
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """Figures and neighbours of features that are there already; ranks share the queries.

    Raises PacecoreError for features of another network, stage, unit or number of clips, without
    labels, or that are not finite.
    """
    _require_same(gallery, queries)
    made = {name: gallery.order[name] for name in ("stage", "pool", "unit", "clips")}
    options = replace(options, **made)  # of files, what they hold
    labels, names = _common_labels(gallery, queries)
    ks, asked = options.ks, queries.rows
    mine = np.arange(rank(), len(asked), world_size())
    progress = Progress("comparing", len(mine), shows=is_main())
    progress.update(0, "queries")
    own = nearest(
        asked[mine],
        gallery.rows,
        max(ks),
        device=device,
        boundaries=ks,
        on_progress=lambda done: progress.update(done, "queries"),
        names=(str(queries.path), str(gallery.path)),
    )
    progress.close()
    numbers = torch.zeros(len(asked), own[0].shape[1], dtype=torch.int64)
    cosines = torch.zeros(len(asked), own[0].shape[1])
    numbers[mine], cosines[mine] = map(torch.from_numpy, own)
    numbers, cosines = (all_reduce_sum(each, device).numpy() for each in (numbers, cosines))
    gallery_labels = gallery.labels
    shared = set.intersection(*(set(map(os.path.realpath, f.paths())) for f in (gallery, queries)))
    lacking = sorted(set(labels.tolist()) - set(gallery_labels.tolist()))
    result = {
        "top": {
            str(k): share for k, share in hit_rates(numbers, labels, gallery_labels, ks).items()
        },
        "queries": len(asked),
        "gallery": len(gallery.rows),
        "query_videos": len(queries.values),
        "gallery_videos": len(gallery.values),
        "videos_in_both": len(shared),
        "gallery_collapsed": _collapsed(gallery.rows),
        "dimensions": asked.shape[1],
        "videos_identity": identity_of(*map(_counted, (gallery, queries))),
        "classes_without_gallery": [names.get(label, str(label)) for label in lacking],
        "unreadable": {**gallery.order["unreadable"], **queries.order["unreadable"]},
        **made,
        **{name: gallery.order[name] for name in ("network", "backbone", "width")},
        "identity": gallery.order["identity"],
        "device": str(device),
        "measured_with": asdict(options),
    }
    return result, (numbers, cosines)


def _collapsed(rows: np.ndarray) -> bool:
    """Whether rows (N, D) point one way but for fp32's rounding, by some drawn evenly: a network
    has collapsed, and which of them are nearest says nothing.
    """
    some = np.array(rows[:: -(-len(rows) // _LOOKED_AT)], dtype=np.float64)
    some /= np.linalg.norm(some, axis=1, keepdims=True).clip(min=_TINY)
    return len(some) > 1 and bool(((some - some[0]) ** 2).sum(axis=1).max() < 2 * _CLOSE)


def _counted(features: Features) -> list[tuple[str, int | None]]:
    return [(video["path"], video.get("frames")) for video in features.order["videos"]]


def _require_same(gallery: Features, queries: Features) -> None:
    for name in ("network", "stage", "pool", "unit", "clips", "input"):
        one, other = gallery.order.get(name), queries.order.get(name)
        if one != other:
            what = "number of clips" if name == "clips" else name
            raise PacecoreError(
                f"{queries.path}: features of another {what} than {gallery.path}:"
                f" {other} against {one}"
            )


def _common_labels(gallery: Features, queries: Features) -> tuple[np.ndarray, dict[int, str]]:
    """The queries' labels as the gallery numbers its classes, and the names of all numbers;
    classes that the gallery does not know come after its own. Raises PacecoreError where one side
    has names and the other numbers alone.
    """
    theirs, ours = queries.order["classes"], gallery.order["classes"]
    if bool(theirs) != bool(ours):
        bare, named = (queries, gallery) if ours else (gallery, queries)
        raise PacecoreError(
            f"{bare.path}: its labels are numbers without names of classes, and those of"
            f" {named.path} have names"
        )
    number = {name: place for place, name in enumerate(ours)}
    for name in theirs:
        number.setdefault(name, len(number))
    names = {place: name for name, place in number.items()}
    if theirs == ours:
        return queries.labels, names
    return np.array([number[name] for name in theirs], dtype=np.int64)[queries.labels], names


def _write(
    folder: Path,
    result: dict[str, Any],
    neighbours: tuple[np.ndarray, np.ndarray],
    gallery: Features,
    queries: Features,
) -> str:
    """Writes figures and neighbours, and says in `result` then what it replaced; returns what their
    names end in.
    """
    name = features_name(result["stage"], result["pool"], result["unit"])
    path = folder / f"retrieve-{name}.json"
    replaced = replaced_by(result, path) or gallery.replaced or queries.replaced
    answers, asked = gallery.paths(), queries.paths()
    lines = (
        {
            "query": asked[row // queries.clips],
            "clip": row % queries.clips,
            "neighbours": [
                {
                    "path": answers[number // gallery.clips],
                    "clip": int(number % gallery.clips),
                    "cosine": round(float(cosine), 6),
                }
                for number, cosine in zip(numbers[:10], cosines[:10], strict=True)
            ],
        }
        for row, (numbers, cosines) in enumerate(zip(*neighbours, strict=True))
    )
    write_json_lines(folder / f"neighbours-{name}.jsonl", lines)
    write_json(path, result)  # last: with it all is there
    result["replaced"] = replaced
    return name


def _gallery_picture(
    data: Inputs, gallery: Features, queries: Features, numbers: np.ndarray, count: int
) -> np.ndarray:
    """`count` queries, evenly spaced over the held-out videos, each before its 5 nearest
    neighbours: middle frames, framed blue (the query), green (its label) or red (another).
    """
    chosen = np.linspace(0, len(queries.values) - 1, min(count, len(queries.values))).astype(int)
    rows, colours = [], []
    for video in chosen:
        row = video * queries.clips
        near = (numbers[row][:5] // gallery.clips).tolist()
        asked = queries.order["videos"][video]
        answers = [gallery.order["videos"][number] for number in near]
        pictures = [
            *still_frames(data.held_out, [asked["number"]]),
            *still_frames(data.train, [answer["number"] for answer in answers]),
        ]
        rows.append(np.stack(pictures))
        colours.append(
            ["query", *("right" if a["class"] == asked["class"] else "wrong" for a in answers)]
        )
    return framed_rows(np.stack(rows), colours)
