"""The 10-clip test against the network's own rate: what decoding and clip making cost beside it.

    python -m benchmarks.evaluate [DATA] [--quick] [--device cuda]

Without DATA: the demo set. Network and clips are preset small's, or with --device cuda the paper's.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pacecore.backbones import build_backbone
from pacecore.config import FinetuneOptions, from_mapping
from pacecore.datasets import find_videos, probe_all
from pacecore.demo import make_demo
from pacecore.finetune import ActionModel
from pacecore.inputs import worker_count
from pacecore.protocol import ClipRunner, class_names, ready
from pacecore.recognition import measure_actions
from pacecore.source import VideoFiles

from .common import add_arguments, time_function, write_record

CLIPS_AT_ONCE = 40


def case(source: VideoFiles, preset: str, device: torch.device, workers: int) -> dict:
    """Clips a second of the whole test, of the network alone, and of all but the network."""
    options = from_mapping(FinetuneOptions, {}, preset=preset)
    classes = class_names(source)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    model = ready(ActionModel(backbone, len(classes)), device)
    amp = options.amp == "bf16"
    runner = ClipRunner(model, options, device, batch_clips=CLIPS_AT_ONCE, workers=workers, amp=amp)
    together = 8 if device.type == "cpu" else CLIPS_AT_ONCE  # as the test itself runs it
    shape = (together, 3, options.clip_frames, options.crop, options.crop)
    clips = torch.rand(shape, device=device).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        alone = time_function(lambda: model(clips), device, min_seconds=5, max_runs=50)
    start = time.perf_counter()
    result = measure_actions(runner, source, classes)
    seconds = time.perf_counter() - start
    nothing = torch.zeros(1, len(classes), device=device)
    rest = ClipRunner(
        lambda made: (nothing.expand(len(made), -1),), options, device,
        batch_clips=CLIPS_AT_ONCE, workers=workers, amp=amp,
    )  # fmt: skip
    start = time.perf_counter()
    measure_actions(rest, source, classes)
    rest_seconds = time.perf_counter() - start
    count = int(np.prod(result.clip_scores.shape[:2]))
    rates = {
        "test": count / seconds,
        "network_alone": together / alone.p50,
        "without_network": count / rest_seconds,
    }
    print(
        f"{preset}: test {rates['test']:.1f} clips/s, network alone {rates['network_alone']:.1f},"
        f" share {rates['test'] / rates['network_alone']:.2f}; decoding and clips alone"
        f" {rates['without_network']:.1f} clips/s"
    )
    return {
        "preset": preset,
        "backbone": options.backbone,
        "width": options.width,
        "clip": list(shape[1:]),
        "videos": result.videos,
        "clips": count,
        "workers": workers,
        "clips_per_second": rates,
        "share_of_network_rate": rates["test"] / rates["network_alone"],
        "network_batch_seconds": alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("data", nargs="?", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = make_demo(Path(folder) / "demo", groups=2, clips=1 if arguments.quick else 3)
        index, _ = probe_all(find_videos(data).select("train"))
        preset = "paper" if device.type == "cuda" else "small"
        cases = [case(VideoFiles(index), preset, device, worker_count(-1, device))]
    path = write_record(arguments.out, "evaluate", arguments.device, cases)
    print(f"record: {path}")


if __name__ == "__main__":
    main()
