"""What training costs beside the network: a step, the start, and memory over 2,000 steps.

    python -m benchmarks.train_step                      the demo set, preset small
    python -m benchmarks.train_step --data DATA --preset paper --device cuda

`overhead`: pacecore's loop on video files and on a frame store, beside a bare loop of the same
network, loss, optimiser, type and layout over one fixed batch of clips. The loops take turns in
rounds, so that a change in the machine's load falls on all of them; on a CPU the processor time of
the process is compared too, which other work on the machine leaves alone. What the loop waits for
data stands apart. `start`: from the start of the process to its first step. `memory`: resident size
of the process and its workers at steps 200 and 2,000 of a very thin network, on a GPU trained
repeatably, which spares cuDNN's search.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pacecore.backbones.tuning import memory_format, prepare
from pacecore.config import TrainOptions, from_mapping
from pacecore.demo import make_demo
from pacecore.device import clip_format, trusted
from pacecore.engine import fit
from pacecore.errors import PacecoreError
from pacecore.inputs import open_inputs
from pacecore.loader import ClipBatch, TrainingSchedule, load_batches
from pacecore.ops.info_nce import info_nce
from pacecore.presets import PRESETS
from pacecore.source import FrameSource
from pacecore.store import FrameStore
from pacecore.train import PaceTask, pace_model

from .common import PACECORE, run_main, write_record
from .options import parsed, parser_of, positive
from .processes import resident_bytes

THIN = {
    "backbone": "r3d", "width": 0.125, "clip_frames": 4, "resize": (32, 43), "crop": 16,
    "batch": 2, "views": 2, "epochs": 10_000, "log_every": 10, "held_out": "none",
}  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", help="folder, list or index of videos; default: a demo set")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch", type=positive, help="videos a step; default: the preset's")
    parser.add_argument("--steps", type=positive, help="timed in a round; default 100, on a CPU 6")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--memory-steps", type=positive, default=2000)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parsed(parser, rounds=1, memory_steps=200)
    on_cpu = arguments.device == "cpu"
    if not arguments.steps:
        arguments.steps = (2 if on_cpu else 20) if arguments.quick else (6 if on_cpu else 100)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        arguments.data = arguments.data or str(make_demo(Path(folder) / "demo", groups=4, clips=1))
        for name in (name for name in CASES if name in arguments.only):
            for case in CASES[name](arguments):
                cases.append({"case": name, **case})
                print(json.dumps(cases[-1]), flush=True)
                # Again after each case, so that a run which is cut off leaves what it has.
                path = write_record(arguments.out, "train_step", arguments.device, cases)
    print(f"written: {path}")


class Marked(PaceTask):
    """Notes what `read` gives when the loss of certain steps is computed."""

    def mark(self, steps: tuple[int, ...], read: Any) -> "Marked":
        self.steps, self.read, self.marks = steps, read, []
        return self

    def loss(self, outputs: tuple, batch: ClipBatch) -> tuple:
        if batch.number in self.steps:
            self.marks.append(self.read())
        return super().loss(outputs, batch)


def options_of(arguments: argparse.Namespace, **changes: Any) -> TrainOptions:
    values = {
        "data": arguments.data, "device": arguments.device, "held_out": "none", "log_every": 1,
        "max_bad": 0, **({"batch": arguments.batch} if arguments.batch else {}),
    }  # fmt: skip
    preset = changes.pop("preset", None)
    options = from_mapping(TrainOptions, {**values, **changes}, preset=preset)
    # So that all batches of an epoch are of one size.
    return replace(options, repeat=options.batch * changes.get("repeat", 1))


def run(options: TrainOptions, source: FrameSource, steps: tuple[int, ...], read: Any) -> list:
    """Trains to the end and gives what was read at `steps`."""
    device = torch.device(options.device)
    task = Marked(options, pace_model(options), None, device).mark(steps, read)
    counts = tuple(source.num_frames(video) for video in range(len(source)))
    schedule = TrainingSchedule(options.sampling(), counts, options.batch, options.repeat)
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        fit(task, source, schedule, options, device, data={})
    return task.marks


def overhead(arguments: argparse.Namespace) -> list[dict]:
    warm_steps = 2 if arguments.device == "cpu" else 20
    options = trusted(
        options_of(
            arguments,
            preset=arguments.preset,
            log_every=warm_steps,  # on a GPU reading the loss waits for it, so not at each step
            epochs=1000,
            repeat=1000,  # an epoch's end saves, and none falls into what is timed
            max_steps=warm_steps + -(-arguments.steps // warm_steps) * warm_steps,
        ),
        torch.device(arguments.device),
    )
    ways = {"files": open_inputs(options).train}
    if not FrameStore.is_at(options.data):
        store = arguments.folder / "store"
        size = f"{options.resize[0]},{options.resize[1]}"
        pacecore("data", "pack", options.data, str(store), "--size", size)
        ways["store"] = open_inputs(replace(options, data=str(store))).train
    bare = BareLoop(options, ways["files"])
    found: dict[str, list[dict]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        alone = bare.run(warm_steps, options.max_steps)
        for name, source in ways.items():
            out = arguments.folder / f"{name}-{number}"
            found[name].append(compared(replace(options, out=str(out)), source, alone, warm_steps))
    shared = {
        "preset": arguments.preset, "batch_clips": options.batch * options.views,
        "steps": options.max_steps - warm_steps, "threads": torch.get_num_threads(),
    }  # fmt: skip
    results = []
    for name, rounds in found.items():
        medians = {
            key: round(statistics.median(each[key] for each in rounds), 4)
            for key in rounds[0]
            if key.endswith("_share")
        }
        kept = "held on the device" if name == "store" and arguments.device != "cpu" else ""
        results.append({"data": name, "frames": kept, **shared, **medians, "rounds": rounds})
    return results


class BareLoop:
    """The network on one fixed batch, as anyone would write it."""

    def __init__(self, options: TrainOptions, source: FrameSource):
        self.device, self.options = torch.device(options.device), options
        self.model = prepare(pace_model(options), self.device).train()
        torch.backends.cudnn.benchmark = True  # as training has it
        layout = memory_format(self.model, self.device)
        counts = tuple(source.num_frames(video) for video in range(len(source)))
        schedule = TrainingSchedule(options.sampling(), counts, options.batch, options.repeat)
        frames = {"clip_frames": options.clip_frames, "workers": 0}
        batch = next(load_batches(source, schedule, [0], **frames)).to(self.device)
        self.clips = batch.clips(clip_format(options, self.device, layout))
        self.labels, self.videos = batch.labels, batch.videos
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-4, momentum=options.momentum,
            weight_decay=options.weight_decay, nesterov=options.nesterov, fused=True,
        )  # fmt: skip

    def run(self, warm_steps: int, steps: int) -> dict:
        """Seconds and processor seconds of one step, of those after `warm_steps`."""
        options = self.options
        for number in range(steps):
            if number == warm_steps:
                before = clocks(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            bf16 = options.amp == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                logits, z = self.model(self.clips)
            loss = options.lambda_cls * F.cross_entropy(logits.float(), self.labels)
            if options.contrast != "none":
                groups = self.videos if options.contrast == "context" else self.labels
                contrast = info_nce(
                    z.float(), groups, temperature=options.temperature,
                    denominator=options.denominator, normalize=options.z_norm,
                )  # fmt: skip
                loss = loss + options.lambda_ctr * contrast.loss
            loss.backward()
            self.optimizer.step()
        seconds, processor = (b - a for a, b in zip(before, clocks(self.device), strict=True))
        count = steps - warm_steps
        return {"seconds": seconds / count, "processor_seconds": processor / count}


def clocks(device: torch.device) -> tuple[float, float]:
    """Time and processor time of this process, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def compared(options: TrainOptions, source: FrameSource, bare: dict, warm_steps: int) -> dict:
    """One run of pacecore's loop beside the bare loop's step of the same round."""
    device = torch.device(options.device)
    last = options.max_steps - 1
    marks = run(options, source, (warm_steps - 1, last), lambda: clocks(device))
    processor = (marks[1][1] - marks[0][1]) / (last - warm_steps + 1)
    lines = [json.loads(line) for line in (Path(options.out) / "metrics.jsonl").open()]
    ends = {line["step"]: line["clips"] / line["clips_per_second"] for line in lines}
    waited = {line["step"]: ends[line["step"]] * line["waiting_share"] for line in lines}
    count = options.max_steps - warm_steps
    seconds = (ends[options.max_steps] - ends[warm_steps]) / count
    waiting = (waited[options.max_steps] - waited[warm_steps]) / count
    # On a GPU this process waits beside the GPU's work, of which nothing is to be taken away.
    lost = 0.0 if device.type == "cuda" else waiting
    result = {
        "bare_step_seconds": bare["seconds"],
        "step_seconds": seconds,
        "waiting_seconds": waiting,
        "overhead_share": (seconds - lost) / bare["seconds"] - 1,
        "overhead_with_waiting_share": seconds / bare["seconds"] - 1,
    }
    if device.type == "cpu":
        share = processor / bare["processor_seconds"] - 1
        result |= {"processor_seconds": processor, "processor_overhead_share": share}
    return result


def start(arguments: argparse.Namespace) -> list[dict]:
    """Seconds until the loop begins, and until it has read a batch and done a step."""
    count = 1 if arguments.quick else 3
    found = []
    for number in range(count):
        out = arguments.folder / f"start-{number}"
        begin = time.time()
        words = ["--preset", arguments.preset, "--device", arguments.device, "--held-out", "none"]
        words += ["--max-steps", "1", "--log-every", "1", "--out", str(out)]
        words += ["--batch", str(arguments.batch)] if arguments.batch else []
        pacecore("train", arguments.data, *words)
        log = out / "metrics.jsonl"
        line = json.loads(log.read_text().splitlines()[0])
        looped = line["clips"] / line["clips_per_second"]
        done = log.stat().st_mtime - begin
        found.append({"seconds_to_first_step": done - looped, "seconds_to_its_end": done})
    return [{"preset": arguments.preset, "runs": found}]


def pacecore(*words: str) -> None:
    done = subprocess.run([*PACECORE, *words], capture_output=True, text=True)
    if done.returncode:
        raise PacecoreError(f"pacecore {words[0]} failed\n{done.stderr.strip()}")


def memory(arguments: argparse.Namespace) -> list[dict]:
    last = arguments.memory_steps
    changes = THIN | {"max_steps": last + 1, "out": str(arguments.folder / "memory")}
    # cuDNN would search for convolutions for longer than the steps take, which are not timed.
    changes["deterministic"] = arguments.device != "cpu"
    options = options_of(arguments, **changes)
    source = open_inputs(options).train
    first = last // 10
    before, after = run(options, source, (first, last), resident_megabytes)
    return [
        {
            "steps": [first, last], "process_megabytes": [before[0], after[0]],
            "workers_megabytes": [before[1], after[1]],
            "grown_megabytes": round(sum(after) - sum(before), 2),
            "saved_times": last // (len(source) * options.repeat // options.batch),
        }
    ]  # fmt: skip


def resident_megabytes() -> tuple[float, float]:
    """Resident size of this process and of its children together, in MB."""
    children = [
        int(word)
        for listed in Path("/proc/self/task").glob("*/children")
        for word in listed.read_text().split()
    ]
    held = resident_bytes(), sum(map(resident_bytes, children))
    return tuple(round(count / 1e6, 2) for count in held)


# `memory` first: how cuBLAS is to be repeatable is settled by its first use in the process.
CASES = {"memory": memory, "start": start, "overhead": overhead}


if __name__ == "__main__":
    run_main(main)
