"""The 10-clip test against the network's own rate: what decoding and clip making cost beside it.

    python -m benchmarks.evaluate [DATA] [--quick] [--device cuda]

Without DATA: the demo set. Preset small's network (a quarter of the width) from files and from a
packed store, preset paper's (the full width) from files.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pacecore.backbones import build_backbone
from pacecore.config import FinetuneOptions, from_mapping
from pacecore.datasets import find_videos, probe_all
from pacecore.demo import make_demo
from pacecore.finetune import ActionModel
from pacecore.index import VideoIndex
from pacecore.protocol import ClipRunner, decoder_count, ready
from pacecore.recognition import measure_actions
from pacecore.source import FrameSource, VideoFiles
from pacecore.store import pack

from .common import run_main, time_function, write_record
from .options import parser_of

CLIPS_AT_ONCE = 40


def seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def case(source: FrameSource, kind: str, preset: str, device: torch.device, rounds: int) -> dict:
    """Clips a second of the whole test, of the network alone and of all but the network.

    Test and network alone take turns, `rounds` times, and each test is set beside the two
    measurements around it, so that a slow spell of the machine falls on both. The bound is what a
    test would reach whose cores are never idle and do nothing but decode, make clips and run the
    network, each at the rate that it has alone.
    """
    options = from_mapping(FinetuneOptions, {}, preset=preset)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    model = ready(ActionModel(backbone, len(source.classes)), device)
    nothing = torch.zeros(1, len(source.classes), device=device)
    workers = decoder_count(-1, device)
    whole, rest = (
        ClipRunner(
            network, options, device,
            batch_clips=CLIPS_AT_ONCE, workers=workers, amp=options.amp == "bf16",
        )
        for network in (model, lambda made: (nothing.expand(len(made), -1),))
    )  # fmt: skip
    together = 8 if device.type == "cpu" else CLIPS_AT_ONCE  # as the test itself runs it
    shape = (together, 3, options.clip_frames, options.crop, options.crop)
    clips = torch.rand(shape, device=device).to(memory_format=whole.layout)
    count = len(source) * whole.clips

    def alone() -> float:
        with torch.inference_mode():
            least = 5 if device.type == "cpu" else 1
            timing = time_function(lambda: model(clips), device, min_seconds=least, max_runs=50)
        return together / timing.p50

    network, tests = [alone()], []
    for _ in range(rounds):
        tests.append(count / seconds_of(lambda: measure_actions(whole, source, source.classes)))
        network.append(alone())
    rest_rate = count / seconds_of(lambda: measure_actions(rest, source, source.classes))
    shares = [
        2 * rate / (before + after)
        for rate, (before, after) in zip(tests, itertools.pairwise(network), strict=True)
    ]
    rates = {
        "test": statistics.median(tests),
        "network_alone": statistics.median(network),
        "without_network": rest_rate,
    }
    bound = 1 / (1 / rates["network_alone"] + 1 / rest_rate)
    share = statistics.median(shares)
    print(
        f"{preset}, {kind}: test {rates['test']:.2f} clips/s, network alone"
        f" {rates['network_alone']:.2f}, share {share:.2f}"
        f" ({', '.join(f'{each:.2f}' for each in shares)}); without the network"
        f" {rest_rate:.1f} clips/s, so that {bound / rates['network_alone']:.2f} is the most",
        flush=True,
    )
    return {
        "preset": preset,
        "from": kind,
        "backbone": options.backbone,
        "width": options.width,
        "clip": list(shape[1:]),
        "videos": len(source),
        "frames": sum(source.num_frames(video) for video in range(len(source))),
        "clips": count,
        "workers": workers,
        "clips_per_second": rates,
        "rounds": {"test": tests, "network_alone": network, "shares": shares},
        "share_of_network_rate": share,
        "largest_share_possible": bound / rates["network_alone"],
    }


def spread(index: VideoIndex, count: int) -> VideoIndex:
    """`count` videos, evenly spaced over `index`."""
    chosen = np.linspace(0, len(index) - 1, min(count, len(index))).astype(int)
    return replace(index, entries=tuple(index.entries[place] for place in chosen))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    arguments = parser.parse_args()
    device, quick = torch.device(arguments.device), arguments.quick
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or make_demo(Path(folder) / "demo", groups=2, clips=1 if quick else 3)
        index, _ = probe_all(find_videos(data).select("train"))
        few = spread(index, 12 if quick else 80)
        # So few are done before the workers have begun, and on a GPU also these.
        times = 64 if device.type == "cuda" else 8 if quick else 1
        few = replace(few, entries=few.entries * times)
        size = from_mapping(FinetuneOptions, {}, preset="small").resize
        store, _ = pack(few, Path(folder) / "store", size)
        rounds = 1 if quick else 3
        slow = device.type == "cpu"  # the full width, whose clips take a second each there
        ways = [(VideoFiles(few), "files", "small"), (store, "packed store", "small")]
        if not (slow and quick):
            ways.append((VideoFiles(spread(few, 16) if slow else few), "files", "paper"))
        cases = []
        for way in ways:
            cases.append(case(*way, device, rounds))
            # Again after each case, so that a run which is cut off leaves what it has.
            path = write_record(arguments.out, "evaluate", arguments.device, cases)
    print(f"record: {path}")


if __name__ == "__main__":
    run_main(main)
