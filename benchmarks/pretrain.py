"""Clips a second of pre-training from end to end, beside the authors' way of training.

    python -m benchmarks.pretrain [--device cuda] [--data FOLDER] [--official FOLDER] [--quick]

Each way does the same work on the same videos: R(2+1)D, clips at paces 1 to 4 with jitter of every
frame, pace classification, SGD. Ours is `pacecore train --preset official`, read from the metrics
that it writes. The authors' way is their loader over extracted JPEGs, their network in fp32 and
their step: from a copy of their repository where --official names one, and rebuilt in our words.
The limit of each is our network's step on one batch that never changes.

What is timed begins after as many steps as the workers prefetch. On a CPU the clips are small.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pacecore.backbones.tuning import memory_format, prepare
from pacecore.config import TrainOptions, from_mapping
from pacecore.inputs import worker_count
from pacecore.store import pack
from pacecore.train import pace_model, pretrain

from .common import add_arguments, time_function, write_record
from .data import add_official_argument, add_video_arguments, open_videos
from .official import Rebuilt, Shape, Way, extract, training_step

__all__ = ["main"]


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    device: torch.device
    shape: Shape
    batch: int
    workers: int

    @property
    def warm_steps(self) -> int:
        """Steps before the clock starts: the first batches of all workers come at once."""
        return 1 + self.workers

    @property
    def steps(self) -> int:
        return 4 * self.warm_steps


def setting(device: torch.device) -> Setting:
    workers = worker_count(-1, device)
    if device.type == "cuda":
        return Setting(device, Shape(), 60, workers)
    small = {"resize": (64, 86), "crop": 56}
    return Setting(device, Shape(**small), 8, workers)


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
    text = (out / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if "clips_per_second" in line]
    return {
        "clips_per_second": rate_between(lines[0], lines[-1], setting.batch),
        "steps": lines[-1]["step"] - lines[0]["step"],
        "waiting_share": summary["waiting_share"],
    }


def rate_between(first: dict, last: dict, batch: int) -> float:
    """Clips a second between two lines, whose own rates are over all since the start."""
    clips = [line["step"] * batch for line in (first, last)]
    seconds = [
        count / line["clips_per_second"] for count, line in zip(clips, (first, last), strict=True)
    ]
    return (clips[1] - clips[0]) / (seconds[1] - seconds[0])


def authors(setting: Setting, way: Way, dataset: Dataset) -> dict:
    """The authors' loop over their loader, as far as it is timed."""
    device = setting.device
    loader = DataLoader(
        dataset,
        batch_size=setting.batch,
        # Their epoch is far longer than a few videos give: the workers must not start anew.
        sampler=RandomSampler(dataset, True, num_samples=setting.batch * setting.steps),
        num_workers=setting.workers,
        pin_memory=device.type == "cuda",
    )
    step = training_step(way.network(), device)
    start, count = 0.0, 0
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as their script has it
        for number, (clips, labels) in enumerate(loader, 1):
            step(clips, labels)
            if number == setting.warm_steps:
                start = time.perf_counter()
            elif number > setting.warm_steps:
                count += len(labels)
    return {
        "clips_per_second": count / (time.perf_counter() - start),
        "steps": setting.steps - setting.warm_steps,
    }


def network_alone(setting: Setting, amp: str) -> float:
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

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            logits = model(clips)[0]
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return setting.batch / time_function(step, device, min_seconds=2, min_runs=2).p50


def ways(
    setting: Setting, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, str, Callable[[], dict]]]:
    """(name, arithmetic, what measures it), those that can run here."""
    index, words = open_videos(options, folder)
    print(f"{len(index)} videos: {words}", flush=True)
    try:
        frames = extract(index, folder / "frames")
        for way in filter(None, (Rebuilt(), options.official)):
            dataset = way.dataset(frames, setting.shape)
            yield way.name, "none", lambda way=way, dataset=dataset: authors(setting, way, dataset)
    except ImportError as missing:
        print(f"left out: {missing}")
    store, _ = pack(index, folder / "store", setting.shape.resize)
    changes = {"pacecore, store": {}}
    if setting.device.type == "cuda":
        changes = {
            "pacecore, store": {"data_on": "host"},
            "pacecore, store, bf16": {"data_on": "host", "amp": "bf16"},
            "pacecore, store in GPU memory, bf16": {"data_on": "device", "amp": "bf16"},
        }
    for number, (name, change) in enumerate(changes.items()):
        out = folder / f"run{number}"
        yield (
            name,
            change.get("amp", "none"),
            lambda out=out, change=change: ours(setting, store.folder, out, change),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_arguments(parser)
    add_video_arguments(parser)
    add_official_argument(parser)
    options = parser.parse_args()
    if options.quick:
        options.videos = 6
    device = torch.device(options.device)
    common = setting(device)
    alone: dict[str, float] = {}
    cases: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, amp, measure in ways(common, options, Path(folder)):
            if amp not in alone:
                alone[amp] = network_alone(common, amp)
            case = {"way": name, "amp": amp, **measure(), "network_alone": alone[amp]}
            case |= {"batch": common.batch, "workers": common.workers}
            case |= {"clip": [common.shape.clip_frames, common.shape.crop, common.shape.crop]}
            for other in cases:
                if not other["way"].startswith("pacecore"):
                    rate = case["clips_per_second"] / other["clips_per_second"]
                    case[f"times {other['way']}"] = rate
            cases.append(case)
            print(json.dumps(case), flush=True)
            path = write_record(options.out, "pretrain", options.device, cases)
    print(f"record: {path}")


if __name__ == "__main__":
    main()
