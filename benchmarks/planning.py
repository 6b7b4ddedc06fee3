"""A page that plans large runs from what was measured: cores, store, bus, ranks, days.

    python -m benchmarks.planning [--gpu-clips 1000] [--out FILE]

It calculates; it measures nothing. Each figure is an input that the page states, a figure of a
record that it names, or follows from such by the formula beside it.
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from pacecore.backbones import build_backbone
from pacecore.errors import PacecoreError
from pacecore.files import write_text
from pacecore.store import record_bytes

from .common import RESULTS, processor, read_record, run_main
from .options import positive_number
from .rows import short

__all__ = ["Inputs", "Plan", "main", "page"]


@dataclass(frozen=True)
class Inputs:
    """What the plans start from beside the record of one core, the same for every plan."""

    gpu_clips: float
    gpu_from: str
    bus_bytes_per_second: float
    gpu_bytes: float
    measured_on: str  # both of these
    batch: int = 60  # clips of a GPU's step
    views: int = 2
    clip_frames: int = 16
    size: tuple[int, int] = (128, 171)
    file_size: tuple[int, int] = (256, 340)


@dataclass(frozen=True)
class Plan:
    """A data set, and on how many GPUs it might be trained."""

    name: str
    videos: float
    frames: float  # of a video
    epochs: int
    ranks: tuple[int, ...]
    why: str


PLANS = (
    Plan(
        "Kinetics-400",
        240_000,
        250,
        18,
        (1, 8, 64),
        "about 240,000 training videos of 10 seconds at 25 frames a second, each visited once an"
        " epoch, for the paper's 18 epochs",
    ),
    Plan(
        "A billion videos",
        1e9,
        250,
        1,
        (64, 256, 1024),
        "videos like those of Kinetics, each visited once",
    ),
)


@dataclass(frozen=True)
class Measured:
    """Figures of one core from the record of benchmarks.data, and where they were taken."""

    files: float  # clips a second, two views of a video decoded once, pixels made
    store: float  # clips a second from the store, pixels made
    packed: float  # frames a second into the store
    file_bytes_per_frame: float
    where: str


def measured(record: dict) -> Measured:
    rates = {case["way"]: case["clips_per_core_second"] for case in record["cases"]}
    first = record["cases"][0]
    machine = record["machine"]
    return Measured(
        rates["files, two views decoded once"],
        rates["store, two views"],
        first["packed_frames_per_core_second"],
        first["file_bytes_per_frame"],
        f"{first['videos']}, one core of {processor(machine)}, {machine['date'][:10]}",
    )


def of_gpu(records: Path) -> Inputs:
    """What a GPU has shown. Raises PacecoreError where gpu_check's record lacks it."""
    path = records / "gpu_check-cuda.json"
    record = json.loads(path.read_text()) if path.is_file() else {"steps": []}
    values = {step["name"]: step["values"].get("cases", []) for step in record["steps"]}
    ways = [
        case
        for case in values.get("pretrain", [])
        if case["way"].startswith("pacecore") and "clips_per_second" in case
    ]
    limits = values.get("limits")
    if not ways or not limits:
        raise PacecoreError(f"{path}: needs the steps limits and pretrain of a GPU")
    best = max(ways, key=lambda case: case["clips_per_second"])
    words = (
        f"preset official, pace alone and one view, from end to end in batches of {best['batch']},"
        f" {best['way'].partition(', ')[2]}"
    )
    machine = record["machine"]
    where = f"measured on an {machine['gpu']}, {path.name}"
    return Inputs(
        best["clips_per_second"],
        f"{words}; {where}",
        limits[0]["bus_bytes_per_second"],
        machine["gpu_bytes"],
        where,
    )


def parameter_bytes() -> int:
    """Bytes of R(2+1)D's gradients in fp32."""
    return 4 * sum(each.numel() for each in build_backbone("r21d").parameters())


def page(record: dict, inputs: Inputs) -> str:
    """The plan as a Markdown page. record: of benchmarks.data."""
    found = measured(record)
    lines = [
        "# Planning large runs",
        "",
        "Written by `python -m benchmarks.planning`, which measures nothing: it multiplies what is"
        " stated here with what records hold.",
        "",
        *_inputs(inputs),
        *_measured(found),
        *_one_gpu(inputs, found),
    ]
    for plan in PLANS:
        lines += _plan(plan, inputs, found)
    lines += _unknown()
    return "\n".join(lines) + "\n"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _inputs(inputs: Inputs) -> list[str]:
    bus = inputs.bus_bytes_per_second
    return [
        "## What the plans start from",
        "",
        *_table(
            ("input", "value", "what it is"),
            [
                ("clips a second of a GPU", f"{inputs.gpu_clips:,.0f}", inputs.gpu_from),
                ("clips of a GPU's step", f"{inputs.batch}", "the paper's 30 videos, two views"),
                ("views of a video", f"{inputs.views}", "the paper's; decoded once for both"),
                ("frames of a clip", f"{inputs.clip_frames}", "the paper's"),
                ("bus to a GPU", f"{bus / 1e9:.0f} GB/s", inputs.measured_on),
                ("memory of a GPU", f"{inputs.gpu_bytes / 1e9:.0f} GB", inputs.measured_on),
                *((plan.name, f"{plan.videos:,.0f} videos", plan.why) for plan in PLANS),
            ],
        ),
    ]


def _measured(found: Measured) -> list[str]:
    rows = [
        ("from files, two views decoded once", f"{short(found.files)} clips/s"),
        ("from the store, two views", f"{short(found.store)} clips/s"),
        ("packing the store", f"{found.packed:,.0f} frames/s"),
        ("the files themselves", f"{short(found.file_bytes_per_frame)} bytes a frame"),
    ]
    return [
        "## Measured",
        "",
        f"`data-cpu.json`: {found.where}. Each rate is of one core and includes making the clips'"
        " pixels, which a GPU would do itself: so for videos like these fewer cores would do.",
        "",
        *_table(("what", "a core"), rows),
    ]


def _one_gpu(inputs: Inputs, found: Measured) -> list[str]:
    bus = inputs.bus_bytes_per_second
    record = record_bytes(inputs.size)
    height, width = inputs.file_size
    ways = {
        "files": (found.files, height * width * 3 // 2),
        "store": (found.store, record),
        "store in GPU memory": (None, 0),
    }
    rows = []
    for name, (rate, frame_bytes) in ways.items():
        need = inputs.gpu_clips * inputs.clip_frames * frame_bytes
        rows.append(
            (
                name,
                f"{math.ceil(inputs.gpu_clips / rate)}" if rate else "none for pixels",
                f"{need / 1e9:.2f} GB/s" if need else "nothing",
                f"{100 * need / bus:.1f} %" if need else "0 %",
            )
        )
    gradients = parameter_bytes()
    step_seconds = inputs.batch / inputs.gpu_clips
    return [
        f"## One GPU at {inputs.gpu_clips:,.0f} clips a second",
        "",
        *_table(("fed from", "cores", "over the bus", "share of the bus"), rows),
        "cores = clips a second of the GPU / clips a second of a core. Over the bus: clips a second"
        f" x {inputs.clip_frames} frames x bytes of a frame: {ways['files'][1]:,} of a file's, of"
        f" {height} x {width} in YUV 4:2:0, and {record:,} of a record of the store.",
        "",
        f"Several GPUs exchange R(2+1)D's gradients, {gradients / 1e6:.1f} MB in fp32, once a step"
        f" of {1000 * step_seconds:.0f} ms, {inputs.batch} clips at that rate. By a ring that is"
        " twice the gradients a step,"
        f" {2 * gradients / step_seconds / 1e9:.1f} GB/s in and as much out of each GPU.",
        "",
    ]


def _plan(plan: Plan, inputs: Inputs, found: Measured) -> list[str]:
    frames = plan.videos * plan.frames
    clips = plan.videos * plan.epochs * inputs.views
    store, files = frames * record_bytes(inputs.size), frames * found.file_bytes_per_frame
    epochs = "epoch" if plan.epochs == 1 else "epochs"
    fits = store < inputs.gpu_bytes / 2
    where = "can be held there" if fits else "stays on disks, and frames go over the bus"
    lines = [
        f"## {plan.name}",
        "",
        f"{plan.videos:,.0f} videos x {plan.epochs} {epochs} x {inputs.views} views ="
        f" {clips:,.0f} clips. {plan.videos:,.0f} x {plan.frames:,.0f} = {frames:,.0f} frames.",
        "",
        f"- Store: frames x {record_bytes(inputs.size):,} bytes = {_bytes(store)}. A rank that has"
        f" the store in its GPU's memory has all of it there, so it {where}.",
        f"- Files: {_bytes(files)} if compressed as the measured ones, so the store is"
        f" {store / files:.0f} times as large.",
        f"- Packing once: {short(frames / found.packed / 86400)} days of one core.",
    ]
    rows = []
    for ranks in plan.ranks:
        seconds = clips / inputs.gpu_clips / ranks
        rate = inputs.gpu_clips * ranks
        rows.append(
            (
                f"{ranks:,}",
                _time(seconds),
                _time(4 * seconds),
                f"{math.ceil(rate / found.files):,}",
                f"{math.ceil(rate / found.store):,}",
                f"{_bytes(rate * inputs.clip_frames * record_bytes(inputs.size))}/s",
                f"{ranks * inputs.batch:,}",
            )
        )
    heads = ("GPUs", "time", "time at a quarter of the rate", "cores, files", "cores, store")
    heads += ("read from the store", "embeddings")
    return [
        *lines,
        "",
        *_table(heads, rows),
        "time = clips / (GPUs x clips a second of one), as if ranks cost nothing. Read from the"
        " store: at most, as if no two views shared a frame. Embeddings: rows of the contrastive"
        " loss, GPUs x clips of a step; it stores no matrix of them.",
        "",
    ]


def _unknown() -> list[str]:
    return [
        "## What these plans do not know",
        "",
        "- The rate of another GPU, or of this one with another network: the plans scale with it,"
        " and `--gpu-clips` draws them for another rate. A step alone leaves out what feeding it"
        " costs.",
        "- What ranks cost each other over a network. `scaling-cpu.md` has two processes on one"
        " machine, which says nothing of many.",
        "- How fast videos of another codec and size decode. Those measured are 320 x 240 MPEG-4"
        " where UCF101 was; H.264 of 340 x 256 with rare key frames takes longer.",
        "- What the GPU's run left out: a second view, the contrastive loss, and frames that come"
        " over the bus, not from its own memory.",
        "- Disks: how fast the store is read from where it lies. And what a frame costs the first"
        " time that a process reads it, when its checksum is computed: the rate of the store is of"
        " later times, and a set of which each video is visited once has none.",
    ]


def _bytes(number: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{short(number / size)} {unit}"
    return f"{short(number / 1e6)} MB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= size:
            return f"{short(seconds / size)} {unit}"
    return f"{short(seconds / 60)} minutes"


def planned() -> str:
    """The page from the records of this tree."""
    return page(json.loads((RESULTS / "data-cpu.json").read_text()), of_gpu(RESULTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--gpu-clips", type=positive_number, help="clips a second of a GPU; default measured"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "planning.md")
    options = parser.parse_args()
    source = RESULTS / "data-cpu.json"
    if not source.is_file():
        parser.error(f"{source} is not here: python -m benchmarks.data writes it")
    inputs = of_gpu(RESULTS)
    if options.gpu_clips:
        inputs = replace(inputs, gpu_clips=options.gpu_clips, gpu_from="given with --gpu-clips")
    write_text(options.out, page(read_record(source), inputs))
    print(f"page: {options.out}")


if __name__ == "__main__":
    run_main(main)
