"""How cost grows: speed and memory against batch, clip, frame size, workers, ranks, embeddings.

    python -m benchmarks.scaling [--device cuda] [--quick] [--out FILE]
    python -m benchmarks.scaling --page RECORD          draws the page of a record again

One thing changes at a time. A step is forward, backward and SGD of R(2+1)D on clips that lie ready;
workers feed clips from files without a network, beside cores that do all themselves; ranks are
processes that train together, each with one thread on a CPU (gloo) or a GPU of its own (NCCL).
Memory is what a step adds at most, and for workers and ranks what all their processes hold, pages
that they share counted once. A quick run on a GPU leaves the workers out: benchmarks.data times
what a core decodes there.
The page lies beside the record, its name ending in .md.
"""

import json
import math
import os
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing

from pacecore.config import TrainOptions, from_mapping
from pacecore.files import write_text
from pacecore.index import VideoIndex
from pacecore.ops.info_nce import info_nce
from pacecore.reference.info_nce import info_nce as reference
from pacecore.store import pack
from pacecore.train import pretrain
from pacecore.workers import core_count

from .backbones import Way, training_step
from .common import peak_extra_bytes, processor, read_record, run_main, time_function, write_record
from .data import add_video_arguments, open_videos
from .feeding import feeding
from .options import parser_of
from .pretrain import rate_between
from .processes import held_bytes, watched
from .rows import short

__all__ = ["growth", "main", "page"]


@dataclass(frozen=True)
class Grid:
    """The values that each thing takes; the middle of the first three is the others' setting."""

    width: float
    batch: tuple[int, ...]
    clip_frames: tuple[int, ...]
    side_px: tuple[int, ...]
    workers: tuple[int, ...]  # () leaves feeding out
    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    eager_rows: int  # beyond, the (n, n) matrices of plain torch take too long or too much


def grid(device: torch.device, quick: bool) -> Grid:
    cores = core_count()
    workers = tuple(n for n in (0, 1, 2, 4, 8, 16) if n <= cores)
    if device.type == "cuda":
        ranks = tuple(n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count())
        rows = (4096, 16384, 65536) if quick else (1024, 4096, 16384, 65536, 131072, 262144)
        batch, frames = ((15, 60), (16, 32)) if quick else ((15, 30, 60, 120, 240), (8, 16, 32, 64))
        sides = (112, 224) if quick else (56, 112, 168, 224)
        return Grid(1.0, batch, frames, sides, () if quick else workers, ranks, rows, 32768)
    ranks = (1, 2) if cores > 1 else (1,)
    if quick:
        return Grid(0.125, (2, 4, 8), (8, 16), (32, 56), workers[:3], ranks, (256, 512, 1024), 512)
    rows = (512, 1024, 2048, 4096, 8192)
    return Grid(0.25, (2, 4, 8, 16, 32), (8, 16, 32), (28, 56, 112), workers, ranks, rows, 4096)


@dataclass(frozen=True)
class Point:
    """A training step's size."""

    batch: int
    clip_frames: int
    side_px: int


def base(grid: Grid, device: torch.device) -> Point:
    on_gpu = device.type == "cuda"
    batch = grid.batch[-1] if on_gpu and len(grid.batch) < 3 else grid.batch[len(grid.batch) // 2]
    return Point(batch, 16, 112 if on_gpu else 56)


def steps(grid: Grid, device: torch.device, quick: bool = False) -> Iterator[dict]:
    """Speed and memory of training steps; quick: without cuDNN's search, which each size wants."""
    middle = base(grid, device)
    for name in ("batch", "clip_frames", "side_px"):
        for value in getattr(grid, name):
            at = replace(middle, **{name: value})
            shape = (at.batch, 3, at.clip_frames, at.side_px, at.side_px)
            way = Way(bf16=device.type == "cuda", search=not quick)
            step = training_step("r21d", grid.width, torch.rand(shape, device=device), way)
            case = {"grows": name, "value": value, **vars(at), "width": grid.width}
            try:
                case["peak_bytes"] = peak_extra_bytes(step, device)
                took = time_function(step, device, min_seconds=0.5, min_runs=2)
                case["clips_per_second"] = at.batch / took.p50
            except torch.OutOfMemoryError as error:
                case["failed"] = str(error).splitlines()[0][:200]
            yield case


def embeddings(grid: Grid, device: torch.device) -> Iterator[dict]:
    """Time and memory of the contrastive loss, forward and backward, fp32, 512 features."""
    torch.backends.cuda.matmul.allow_tf32 = False
    ways = {
        "info_nce": lambda z, groups: info_nce(z, groups).loss,
        "plain torch": lambda z, groups: reference(z, groups)[0],
    }
    for name, function in ways.items():
        for n in grid.rows:
            if name != "info_nce" and n > grid.eager_rows:
                continue
            z = (torch.randn(n, 512, device=device) * 512**-0.5).requires_grad_()
            groups = torch.arange(n, device=device) // 2

            def step(function=function, z=z, groups=groups) -> None:
                z.grad = None
                function(z, groups).backward()

            step()
            case = {"grows": "rows", "way": name, "value": n, "features": 512}
            # z and the gradient of the step before are held when it begins.
            case["peak_bytes"] = max(0, peak_extra_bytes(step, device))
            case["seconds"] = time_function(step, device, min_seconds=0.3, min_runs=2).p50
            yield case


def together(grid: Grid, device: torch.device, index: VideoIndex, folder: Path) -> Iterator[dict]:
    """Ranks that share one batch, and those that each have the batch of a single one."""
    size, side = ((128, 171), 112) if device.type == "cuda" else ((64, 86), 56)
    if grid.ranks == (1,) and device.type == "cuda":
        return  # one GPU has nothing to share, and its steps are above
    store, _ = pack(index, folder / "store", size)
    batch = base(grid, device).batch
    for ranks in grid.ranks:
        for whole in sorted({batch, batch * ranks}):
            out = folder / f"ranks{ranks}-{whole}"
            values = {
                **{"data": str(store.folder), "held_out": "none", "out": str(out)},
                **{"device": device.type, "workers": 0 if device.type == "cpu" else 4},
                **{"width": grid.width, "resize": size, "crop": side, "batch": whole},
                **{"views": 1, "lambda_ctr": 0.0, "repeat": 100_000, "log_every": 2},
                **{"max_steps": 8, "amp": "bf16" if device.type == "cuda" else "none"},
            }
            port = _free_port()
            with watched(held_bytes, 0.25) as held:
                multiprocessing.spawn(_rank, (ranks, port, values), nprocs=ranks)
            text = (out / "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines() if "clips_per_second" in line]
            yield {
                "grows": "ranks",
                "value": ranks,
                "batch": whole,
                "clips_per_second": rate_between(lines[0], lines[-1], whole),
                "peak_bytes": held.bytes,
            }


def _rank(rank: int, ranks: int, port: int, values: dict) -> None:
    """One of the processes that train together, set up as torchrun would."""
    torch.set_num_threads(1)
    if values["device"] == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    pretrain(from_mapping(TrainOptions, values))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def growth(points: list[tuple[float, float]]) -> float | None:
    """The power p of the least-squares line through log(cost) = p log(size) + c; None of one."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points if size > 0 and cost > 0]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else None


_TITLES = {
    "batch": "Clips of a batch",
    "clip_frames": "Frames of a clip",
    "side_px": "Side of a frame, pixels",
    "workers": "Decoding processes, without a network",
    "ranks": "Processes that train together",
    "rows": "Embeddings of the contrastive loss, forward and backward",
}


def page(record: dict) -> str:
    """The record as a Markdown page."""
    machine = record["machine"]
    what = machine.get("gpu") or f"{machine['processors']} cores of {processor(machine)}"
    lines = [
        "# How cost grows",
        "",
        f"{what}, torch {machine['torch']}, {machine['threads']} threads, {machine['date'][:10]},"
        f" load average {machine['load_average'][0]:.1f} at the end; `{record['command']}`.",
        "A power of 1 means that twice the size costs twice as much.",
        *_noise(record["cases"]),
    ]
    for name, title in _TITLES.items():
        cases = [case for case in record["cases"] if case["grows"] == name]
        for way in sorted({case.get("way", "") for case in cases}):
            chosen = [case for case in cases if case.get("way", "") == way]
            lines += ["", f"## {title}{f': {way}' if way else ''}", ""]
            if name == "ranks" and not machine.get("gpu"):
                lines += ["Each has one thread.", ""]
            lines += _table(name, chosen)
    return "\n".join(lines) + "\n"


def _noise(cases: list[dict]) -> list[str]:
    """What the step that several tables share took in each: they were measured at other times."""
    size = ("batch", "clip_frames", "side_px")
    took: dict[tuple, list[str]] = {}
    for case in cases:
        if case["grows"] in size and "clips_per_second" in case:
            ms = short(1000 * case["batch"] / case["clips_per_second"])
            took.setdefault(tuple(case[name] for name in size), []).append(ms)
    *first, last = max(took.values(), key=len, default=[""])
    if not first:
        return []
    return [
        f"The step that the tables of batch, frames and side share took {', '.join(first)} and"
        f" {last} ms in them: no time here is known better than that, nor is a power of it."
    ]


def _table(name: str, cases: list[dict]) -> list[str]:
    def memory(case: dict) -> str:
        return f"{case['peak_bytes'] / 1e6:,.0f} MB" if case.get("peak_bytes") else "below 1 MB"

    if name == "rows":
        lines = ["| embeddings | ms | memory beside z and its gradient |", "|---|---|---|"]
        for case in cases:
            lines.append(
                f"| {case['value']:,} | {short(1000 * case['seconds'])} | {memory(case)} |"
            )
        costs = {"time": "seconds", "memory": "peak_bytes"}
        powers = {
            what: growth([(case["value"], case[key]) for case in cases])
            for what, key in costs.items()
        }
        return [*lines, "", *_powers(powers)]
    if name in ("workers", "ranks"):
        between = "share of all cores" if name == "workers" else "batch"
        lines = [f"| {name} | {between} | clips/s | times the first | memory of all |"]
        lines += ["|---|---|---|---|---|"]
        for case in cases:
            times = case["clips_per_second"] / cases[0]["clips_per_second"]
            times = case.get("times_first", times)  # median of the rounds' own ratios
            middle = f"{case['share_of_cores']:.2f}" if name == "workers" else case["batch"]
            row = f"{case['value']} | {middle} | {short(case['clips_per_second'])} | {times:.2f}"
            lines.append(f"| {row} | {memory(case)} |")
        return lines
    done = [case for case in cases if "clips_per_second" in case]
    lines = [f"| {name.replace('_', ' ')} | clips/s | step, ms | memory of a step |"]
    lines += ["|---" * 4 + "|"]
    for case in cases:
        if "failed" in case:
            lines.append(f"| {case['value']} | {case['failed']} | | |")
            continue
        took = short(1000 * case["batch"] / case["clips_per_second"])
        rate = short(case["clips_per_second"])
        lines.append(f"| {case['value']} | {rate} | {took} | {memory(case)} |")
    powers = {
        "time": growth([(c["value"], c["batch"] / c["clips_per_second"]) for c in done]),
        "memory": growth([(c["value"], c["peak_bytes"]) for c in done]),
    }
    units = {"batch": "clips", "clip_frames": "frames", "side_px": "pixels"}
    held = [f"{cases[0][key]} {unit}" for key, unit in units.items() if key != name]
    words = f"A training step of R(2+1)D, width {cases[0]['width']:g}, {' and '.join(held)}."
    return [words, "", *lines, "", *_powers(powers)]


def _powers(powers: dict[str, float | None]) -> list[str]:
    words = [f"{what} grows as the power {power:.1f}" for what, power in powers.items() if power]
    return [f"Fitted: {', '.join(words)}."] if words else []


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--page", type=Path, help="only draw the page of this record")
    add_video_arguments(parser)
    options = parser.parse_args()
    if options.page:
        _write_page(options.page)
        return
    device = torch.device(options.device)
    found = grid(device, options.quick)
    cases: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        index, words = open_videos(options, Path(folder))
        parts: list[Callable[[], Iterator[dict]]] = [
            lambda: steps(found, device, options.quick),
            lambda: embeddings(found, device),
            lambda: together(found, device, index, Path(folder)),
        ]
        if found.workers:
            parts.insert(0, lambda: feeding(found.workers, device, index, words, options.quick))
        for part in parts:
            for case in part():
                cases.append(case)
                print(json.dumps(case), flush=True)
                path = write_record(options.out, "scaling", options.device, cases)
    print(f"record: {path}, page: {_write_page(path)}")


def _write_page(record: Path) -> Path:
    path = record.with_suffix(".md")
    write_text(path, page(read_record(record)))
    return path


if __name__ == "__main__":
    run_main(main)
