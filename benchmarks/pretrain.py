"""Clips a second of pre-training from end to end, beside the authors' way of training.

    python -m benchmarks.pretrain [--device cuda] [--data FOLDER] [--official FOLDER] [--quick]

Each way does the same work on the same videos: R(2+1)D, clips at paces 1 to 4 with jitter of every
frame, pace classification, SGD. Ours is `pacecore train --preset official`, read from the metrics
that it writes. The authors' way is their loader over extracted JPEGs, their network in fp32 and
their step: from a copy of their repository where --official names one, and rebuilt in our words
(in a quick run only without a copy). On a GPU of today torch computes their fp32 convolutions in
TF32 unless told otherwise, so there their way is measured both so and in true fp32.
The limit of each is our network's step on one batch that never changes, in that arithmetic.

What is timed begins after as many steps as the workers prefetch. A slow first step lets them run
ahead, which in a quick run flatters a loader that is slower than its network by up to a quarter. On
a CPU the clips are small.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pacecore.backbones.tuning import memory_format, prepare
from pacecore.config import TrainOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.index import VideoIndex
from pacecore.inputs import worker_count
from pacecore.store import pack
from pacecore.train import pace_model, pretrain

from .common import run_main, time_function, write_record
from .data import add_official_argument, add_video_arguments, open_videos
from .official import Official, Rebuilt, Shape, extract, training_step
from .options import parsed, parser_of

__all__ = ["main"]


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    device: torch.device
    shape: Shape
    batch: int
    workers: int
    timed_steps: int  # a multiple of warm_steps, at which the trainer logs

    @property
    def warm_steps(self) -> int:
        """Steps before the clock starts: all that is prefetched comes at once."""
        return 1 + 2 * self.workers

    @property
    def steps(self) -> int:
        return self.warm_steps + self.timed_steps


def setting(device: torch.device, quick: bool) -> Setting:
    workers = min(worker_count(-1, device), 8)  # as many as the authors' script has
    on_gpu = device.type == "cuda"
    timed = (3 if not quick else 2 if on_gpu else 1) * (1 + 2 * workers)
    if on_gpu:
        return Setting(device, Shape(), 30, workers, timed)  # the authors' batch
    small = {"resize": (64, 86), "crop": 56}
    return Setting(device, Shape(**small), 8, workers, timed)


def options_of(setting: Setting, data: Path, out: Path, changes: dict) -> TrainOptions:
    shape = setting.shape
    values = {
        **{"data": str(data), "held_out": "none", "out": str(out), "device": str(setting.device)},
        **{"workers": setting.workers, "clip_frames": shape.clip_frames, "resize": shape.resize},
        **{"crop": shape.crop, "batch": setting.batch, "max_steps": setting.steps},
        # One epoch, however few the videos: a checkpoint is written at the end of each.
        **{"repeat": 100_000, "save_minutes": 1e6, "log_every": setting.warm_steps},
    }
    return from_mapping(TrainOptions, values | changes, preset="official")


def ours(setting: Setting, data: Path, out: Path, changes: dict) -> dict:
    """The trainer itself; its rate between the first line of its metrics and the last."""
    summary = pretrain(options_of(setting, data, out, changes))
    if (amp := summary["options"]["amp"]) != changes.get("amp", "none"):
        raise PacecoreError(f"trained with amp {amp}, as bf16 is wrong or slower here")
    text = (out / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if "clips_per_second" in line]
    first, last = lines[0], lines[-1]
    seconds = [seconds_at(line, setting.batch) for line in (first, last)]
    waited = [s * line["waiting_share"] for s, line in zip(seconds, (first, last), strict=True)]
    return {
        "clips_per_second": rate_between(first, last, setting.batch),
        "steps": last["step"] - first["step"],
        "waiting_share": (waited[1] - waited[0]) / (seconds[1] - seconds[0]),
    }


def seconds_at(line: dict, batch: int) -> float:
    """Seconds since the start at a line of the metrics, whose rate is over all since then."""
    return line["step"] * batch / line["clips_per_second"]


def rate_between(first: dict, last: dict, batch: int) -> float:
    """Clips a second between two lines."""
    seconds = seconds_at(last, batch) - seconds_at(first, batch)
    return (last["step"] - first["step"]) * batch / seconds


def authors(setting: Setting, way: Official | Rebuilt, dataset: Dataset, tf32: bool) -> dict:
    """The authors' loop over their loader, as far as it is timed."""
    device = setting.device
    loader = DataLoader(
        dataset,
        batch_size=setting.batch,
        # Their epoch is far longer than a few videos give: the workers must not start anew.
        sampler=RandomSampler(dataset, True, num_samples=setting.batch * setting.steps),
        num_workers=setting.workers,
        pin_memory=device.type == "cuda",
        # What spawned processes could import is not where they look.
        multiprocessing_context="fork" if setting.workers else None,
    )
    step = training_step(way.network(), device)
    start, end, count = 0.0, 0.0, 0
    # `benchmark` as their script has it.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        for number, (clips, labels) in enumerate(loader, 1):
            step(clips, labels)
            if number == setting.warm_steps:
                start = time.perf_counter()
            elif number > setting.warm_steps:
                count += len(labels)
                end = time.perf_counter()  # not after the loop, which the workers' end belongs to
    return {
        "clips_per_second": count / (end - start),
        "steps": setting.steps - setting.warm_steps,
    }


def network_alone(setting: Setting, amp: str, compiled: bool, tf32: bool) -> float:
    """Clips a second of our network's step on one batch that never changes."""
    device = setting.device
    options = options_of(setting, Path(), Path(), {"amp": amp})
    model = prepare(pace_model(options), device).train()
    shape = (setting.batch, 3, setting.shape.clip_frames, setting.shape.crop, setting.shape.crop)
    kind = torch.bfloat16 if amp == "bf16" and device.type == "cuda" else torch.float32
    clips = 255 * torch.rand(shape, device=device)
    clips = clips.to(kind, memory_format=memory_format(model, device))
    labels = torch.arange(setting.batch, device=device) % 4
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-3, fused=True
    )

    run = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            logits = run(clips)[0]
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        return setting.batch / time_function(step, device, min_seconds=1, min_runs=2).p50


@dataclass(frozen=True)
class Run:
    """A way, its arithmetic, and what measures it."""

    name: str
    measure: Callable[[], dict]
    amp: str = "none"
    compiled: bool = False
    tf32: bool = True

    @property
    def ours(self) -> bool:
        return self.name.startswith("pacecore")

    @property
    def arithmetic(self) -> tuple:
        return self.amp, self.compiled, self.tf32


def runs(setting: Setting, options: argparse.Namespace, folder: Path) -> Iterator[Run]:
    """Those that can run here. On a CPU ours come last: they set the allocator of the process."""
    index, words = open_videos(options, folder)
    print(f"{len(index)} videos: {words}", flush=True)
    store, _ = pack(index, folder / "store", setting.shape.resize)
    changes = {"pacecore, store": {}}
    if setting.device.type == "cuda":
        bf16 = {"data_on": "device", "amp": "bf16"}
        changes = {
            "pacecore, store in GPU memory, bf16": bf16,
            "pacecore, store, bf16": {"data_on": "host", "amp": "bf16"},
            "pacecore, store": {"data_on": "host"},
            "pacecore, store in GPU memory, bf16, compiled": {**bf16, "compile": True},
        }
        if options.quick:  # each searches for its convolutions for half a minute
            changes = dict([changes.popitem()])
    own = []
    for number, (name, change) in enumerate(changes.items()):
        measure = partial(ours, setting, store.folder, folder / f"run{number}", change)
        own.append(Run(name, measure, change.get("amp", "none"), change.get("compile", False)))
    theirs = _theirs(setting, options, index, folder)
    if setting.device.type == "cuda":
        yield from own
        yield from theirs
    else:
        yield from theirs
        yield from own


def _theirs(
    setting: Setting, options: argparse.Namespace, index: VideoIndex, folder: Path
) -> Iterator[Run]:
    copies = [options.official] if options.official else []
    rebuilt = [] if options.quick and copies else [Rebuilt()]
    try:
        frames = extract(index, folder / "frames")
        for way in [*copies, *rebuilt]:
            measure = partial(authors, setting, way, way.dataset(frames, setting.shape))
            if setting.device.type == "cuda":
                yield Run(f"{way.name}, without TF32", partial(measure, False), tf32=False)
            yield Run(way.name, partial(measure, True))
    except ImportError as missing:
        print(f"left out: {missing}")


def set_ratios(cases: list[dict]) -> None:
    """Beside each of our ways by how much it is faster than each of theirs."""
    done = [case for case in cases if "failed" not in case]
    for ours in done:
        for other in done:
            if ours["way"].startswith("pacecore") and not other["way"].startswith("pacecore"):
                rate = ours["clips_per_second"] / other["clips_per_second"]
                ours[f"times {other['way']}"] = rate


def main() -> None:
    parser = parser_of(__doc__)
    add_video_arguments(parser)
    add_official_argument(parser)
    options = parsed(parser, videos=18)
    device = torch.device(options.device)
    common = setting(device, options.quick)
    alone: dict[tuple, float | None] = {}
    cases: list[dict] = []
    arithmetics: list[tuple] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs(common, options, Path(folder)):
            case = {"way": run.name, "amp": run.amp, "batch": common.batch}
            case |= {"workers": common.workers}
            case |= {"clip": [common.shape.clip_frames, common.shape.crop, common.shape.crop]}
            cases.append(case)
            arithmetics.append(run.arithmetic)
            try:
                case |= run.measure()
                # Not between theirs on a CPU, whose allocator it changes.
                if run.arithmetic not in alone and (run.ours or device.type == "cuda"):
                    # To compile, or to search for convolutions, once more takes up to a minute.
                    slow = options.quick and (run.compiled or not run.ours)
                    alone[run.arithmetic] = None if slow else network_alone(common, *run.arithmetic)
            except Exception as error:  # the authors' code may raise anything; the other ways go on
                case["failed"] = f"{type(error).__name__}: {error}"[:200]
                traceback.print_exc()
            for each, arithmetic in zip(cases, arithmetics, strict=True):
                each["network_alone"] = alone.get(arithmetic)
            set_ratios(cases)
            print(json.dumps(case), flush=True)
            # Again after each way, so that a run which is cut off leaves what it has.
            path = write_record(options.out, "pretrain", options.device, cases)
    print(f"record: {path}")
    sys.exit(any("failed" in case for case in cases))


if __name__ == "__main__":
    run_main(main)
