"""Time of `pace_clip` against what else a user would pick.

    python -m benchmarks.pace_clip [--device cuda] [--quick] [--out FILE]

Contenders, those that are installed: ours; the reference in plain torch; torch.compile of it;
torchvision's v2 functions on float images; kornia's; and the chain of the paper's own code on CPU:
cv2.resize, crop, flip, PIL jitter on 8-bit images. The last three start from RGB frames, so they
are spared the conversion from YUV that the first three do. Each frame has its own jitter. On a CPU
the process keeps the memory it frees, as pacecore's training does, else S3D-G's clips would come
in fresh pages and time the kernel's faults, for every contender.

Contenders are timed in turn, and so is channels-last output beside contiguous output: a slow spell
of the machine falls on all.
"""

import argparse
import time
from dataclasses import replace

import torch

from pacecore.backbones.tuning import keep_freed_memory

from .common import run_main, time_function, time_in_turn, write_record
from .options import parser_of, positive_number
from .pace_clip_contenders import CONTENDERS, Case, inputs_of, ours

__all__ = ["main"]


def cases(device: torch.device, quick: bool) -> list[Case]:
    cuda = device.type == "cuda"
    clips = (60 if quick else 240) if cuda else (2 if quick else 4)
    paper = {"resize": (128, 171), "crop": (112, 112), "clip_frames": 16, "clips": clips}
    s3dg = {
        "resize": (256, 256),
        "crop": (224, 224),
        "clip_frames": 64,
        "clips": max(1, clips // 8),
    }
    video, small = (240, 320), (128, 171)
    low = torch.float16 if not cuda else torch.bfloat16
    first = [
        Case("paper, 320 x 240", video, **paper),
        Case("paper, 320 x 240, no jitter", video, **paper, jitter=False),
    ]
    if quick:
        return first
    return [
        *first,
        Case("paper, 171 x 128", small, **paper),
        Case("paper, 171 x 128, no jitter", small, **paper, jitter=False),
        Case(f"paper, 320 x 240, {low}", video, **paper, dtype=low),
        Case(f"paper, 171 x 128, {low}, no jitter", small, **paper, jitter=False, dtype=low),
        Case("S3D-G, 340 x 256", (256, 340), **s3dg),
        Case("S3D-G, 340 x 256, no jitter", (256, 340), **s3dg, jitter=False),
    ]


def layouts(case: Case, device: torch.device, quick: bool) -> dict:
    """Time of channels-last output over that of contiguous output, by rounds in turn."""
    data = inputs_of(case, device)
    formats = torch.contiguous_format, torch.channels_last_3d
    functions = [ours(replace(case, memory_format=one), data) for one in formats]
    ratios, least = [], 0.02 if quick else 0.05
    for turn in range(5 if quick else 20):
        order = (0, 1) if turn % 2 else (1, 0)
        took = {
            each: time_function(functions[each], device, min_seconds=least, min_runs=2).p50
            for each in order
        }
        ratios.append(took[1] / took[0])
    shares = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, p50, p80 = torch.tensor(ratios, dtype=torch.float64).quantile(shares).tolist()
    name = f"{case.name}, channels last over contiguous"
    print(f"{name:74s} {p50:.3f} times ({p20:.3f} to {p80:.3f})", flush=True)
    return {
        "case": name,
        "threads": torch.get_num_threads(),
        "ratio": {"p20": p20, "p50": p50, "p80": p80},
    }


def copy_bandwidth(device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy within the device's memory, those read and those written."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    timing = time_function(lambda: target.copy_(source), device, min_seconds=0.5)
    found = {"bytes_a_second": 2 * source.numel() / timing.p50}
    if device.type == "cpu":
        spent = time_function(
            lambda: target.copy_(source), min_seconds=0.3, clock=time.process_time
        )
        found["processor_bytes_a_second"] = 2 * source.numel() / spent.p50
    return found


def run_case(case: Case, threads: int, bandwidth: float, args: argparse.Namespace) -> list[dict]:
    device = torch.device(args.device)
    data = inputs_of(case, device)
    functions = {}
    for name, make in CONTENDERS.items():
        if args.only and not any(word in name for word in args.only):
            continue
        if name.startswith("torch.compile") and args.quick:
            continue
        try:
            functions[name] = make(case, data)
        except ImportError as missing:
            print(f"{case.name:42s} {name:32s} left out: {missing}")
    # Others take a second a batch on a GPU, whose rate is steady.
    runs = 2 if args.quick and device.type == "cuda" else 5
    timings = time_in_turn(functions, device, min_seconds=args.seconds, min_runs=runs)
    spent = {}
    if device.type == "cpu":
        spent = time_in_turn(functions, min_seconds=0.3, clock=time.process_time)
    rows = []
    for name, timing in timings.items():
        a_clip = timing.p50 / case.clips
        rate = case.bytes_a_clip() / a_clip
        row = {"case": case.name, "contender": name, "threads": threads}
        if name in spent:
            row["processor_ms_a_clip"] = 1000 * spent[name].p50 / case.clips
        row |= {
            "clips": case.clips,
            "seconds": timing,
            "ms_a_clip": 1000 * a_clip,
            "clips_a_second": 1 / a_clip,
            "bytes_a_second": rate,
            "share_of_copy": rate / bandwidth,
        }
        rows.append(row)
        times = row["ms_a_clip"] / rows[0]["ms_a_clip"]
        print(
            f"{case.name:42s} {name:32s} {threads} threads {row['ms_a_clip']:9.3f} ms a clip "
            f"({times:6.1f} times the first), {100 * row['share_of_copy']:5.1f} % of a copy",
            flush=True,
        )
    torch._dynamo.reset()  # what was compiled for one case would count against the next
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--seconds", type=positive_number, default=1.0, help="least time for each figure"
    )
    parser.add_argument("--only", nargs="*", help="words of the contenders to run; default all")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    every = torch.get_num_threads()
    rows = []
    for threads in [1] if device.type == "cuda" else sorted({1, every}):
        torch.set_num_threads(threads)
        copy = copy_bandwidth(device)
        rows.append({"case": "copy", "threads": threads, **copy})
        for case in cases(device, args.quick):
            if threads > 1 and case.name != "paper, 320 x 240":
                continue
            rows += run_case(case, threads, copy["bytes_a_second"], args)
            if threads == 1:
                rows.append(layouts(case, device, args.quick))
            # Again after each case, so that a run which is cut off leaves what it has.
            path = write_record(args.out, "pace_clip", args.device, rows)
    print(f"record: {path}")


if __name__ == "__main__":
    run_main(main)
