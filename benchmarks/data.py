"""Clips a second of one core, from every way to feed, beside the way of the authors' code.

    PACECORE_DATA=FOLDER python -m benchmarks.data

All ways make the same clips of the same UCF101 videos: 16 frames at paces 1 to 4, 128 x 171, crop
112, flip, jitter of every frame. The authors' way reads frames extracted to JPEG beforehand with
cv2 and jitters them with PIL. Rounds of the ways take turns, and CPU time is what is compared, so
that other work on the machine counts little.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import add_arguments, write_record
from benchmarks.hostile import data_folder
from pacecore.datasets import VideoIndex, find_videos, probe_all
from pacecore.frames import Frames
from pacecore.ops.pace_clip import pace_clip
from pacecore.sampling import ClipPlan, Sampling, plan_views
from pacecore.source import VideoFiles
from pacecore.store import pack
from pacecore.video import decode_all

CLIP = 112
RESIZE = (128, 171)  # height, width


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--videos", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    videos, rounds = (6, 2) if options.quick else (options.videos, options.rounds)
    _one_core()
    index = find_videos(data_folder() / "ucf101", split="train")
    step = max(1, len(index) // videos)
    index, bad = probe_all(replace(index, entries=index.entries[::step][:videos]), 1)
    assert not bad
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(index, Path(folder))
        seconds = {name: [] for name in ways}
        for data_pass in range(rounds + 1):  # the first warms up caches and is left out
            for name, (way, _) in ways.items():
                start = time.process_time()
                for video in range(len(index)):
                    way(video, data_pass)
                if data_pass:
                    seconds[name].append(time.process_time() - start)
    _report(options, ways, seconds, len(index))


def _one_core() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _ways(index: VideoIndex, folder: Path) -> dict[str, tuple[Callable[[int, int], None], int]]:
    """Name -> (function of a video and a pass over the data, clips that it makes)."""
    one, two = Sampling(views=1), Sampling(views=2)
    files = VideoFiles(index)
    store, _ = pack(index, folder / "store", RESIZE, workers=1)
    pictures = _extract(index, folder / "frames")

    def fed(source: Callable[[int, np.ndarray], Frames], sampling: Sampling) -> Callable:
        def way(video: int, data_pass: int) -> None:
            plans = plan_views(sampling, files.num_frames(video), data_pass, video)
            wanted = np.unique(np.concatenate([plan.frame_numbers for plan in plans]))
            _clips(source(video, wanted), wanted, plans)

        return way

    def official(video: int, data_pass: int) -> None:
        (plan,) = plan_views(one, files.num_frames(video), data_pass, video)
        _official_clip(pictures[video], plan)

    def decoding_only(video: int, data_pass: int) -> None:
        (plan,) = plan_views(one, files.num_frames(video), data_pass, video)
        files.decode(video, np.unique(plan.frame_numbers))

    return {
        "authors' way: extracted JPEG, cv2, PIL": (official, 1),
        "files": (fed(files.decode, one), 1),
        "files, decoding alone": (decoding_only, 1),
        "files, two views decoded once": (fed(files.decode, two), 2),
        "store, copied to a batch": (fed(store.decode, one), 1),
        "store, where it lies": (fed(store.frames, one), 1),
        "store, two views": (fed(store.frames, two), 2),
    }


def _clips(frames: Frames, wanted: np.ndarray, plans: list[ClipPlan]) -> torch.Tensor:
    rows = np.stack([np.searchsorted(wanted, plan.frame_numbers) for plan in plans])
    return pace_clip(
        frames,
        torch.from_numpy(rows.astype(np.int32)),
        torch.from_numpy(np.stack([plan.crop for plan in plans])),
        torch.from_numpy(np.stack([plan.jitter for plan in plans])),
        torch.from_numpy(np.stack([plan.jitter_order for plan in plans])),
        resize=RESIZE,
        crop_size=(CLIP, CLIP),
    )


def _extract(index: VideoIndex, folder: Path) -> list[list[str]]:
    """Every frame as a JPEG of the video's own size, cv2's quality, as one does for that code."""
    import cv2

    result = []
    for video, entry in enumerate(index.entries):
        (folder / str(video)).mkdir(parents=True)
        names = []
        for part in decode_all(entry.path):
            for row in part.table.tolist():
                y, u, v, height, width, stride, chroma_stride, _ = row
                half = (height + 1) // 2, (width + 1) // 2
                planes = [
                    part.data.as_strided(shape, (step, 1), offset).numpy().ravel()
                    for shape, step, offset in (
                        ((height, width), stride, y),
                        (half, chroma_stride, u),
                        (half, chroma_stride, v),
                    )
                ]
                picture = np.concatenate(planes).reshape(height * 3 // 2, width)
                names.append(str(folder / str(video) / f"{len(names) + 1}.jpg"))
                cv2.imwrite(names[-1], cv2.cvtColor(picture, cv2.COLOR_YUV2BGR_I420))
        result.append(names)
    return result


def _official_clip(names: list[str], plan: ClipPlan) -> torch.Tensor:
    """cv2.imread and resize, then crop, flip and jitter on PIL pictures, then a float tensor."""
    import cv2
    from PIL import Image

    top, left, flip = plan.crop.tolist()
    clip = np.empty((len(plan.frame_numbers), CLIP, CLIP, 3), dtype=np.float32)
    for place, number in enumerate(plan.frame_numbers):
        picture = cv2.resize(cv2.imread(names[number]), RESIZE[::-1])
        picture = Image.fromarray(picture).crop((left, top, left + CLIP, top + CLIP))
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        order = int(plan.jitter_order[place])
        if order >= 0:
            picture = _jittered(picture, plan.jitter[place], order)
        clip[place] = np.asarray(picture)
    return torch.from_numpy(clip).permute(3, 0, 1, 2)


def _jittered(picture: object, factors: np.ndarray, order: int) -> object:
    """ColorJitter as torchvision does it on PIL pictures."""
    from PIL import Image, ImageEnhance

    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for step in range(4):
        kind = order >> 2 * step & 3
        if kind < 3:
            picture = steps[kind](picture).enhance(float(factors[kind]))
            continue
        hue, saturation, value = picture.convert("HSV").split()
        turned = np.array(hue, dtype=np.uint8)
        turned += np.uint8(int(factors[3] * 255) % 256)
        planes = (Image.fromarray(turned, "L"), saturation, value)
        picture = Image.merge("HSV", planes).convert("RGB")
    return picture


def _report(
    options: argparse.Namespace, ways: dict, seconds: dict[str, list[float]], videos: int
) -> None:
    rates = {
        name: videos * ways[name][1] / np.array(times) for name, times in seconds.items()
    }  # clips a CPU second, of each round
    base = rates[next(iter(ways))]
    cases = []
    for name, rate in rates.items():
        # Rounds side by side: what slowed one down slowed the other too.
        ratio = float(np.median(rate / base))
        case = {"way": name, "clips_per_core_second": float(np.median(rate)), "ratio": ratio}
        cases.append(case | {"least": float(rate.min()), "most": float(rate.max())})
        print(f"{name:42} {np.median(rate):8.1f} clips a second of a core, {ratio:6.2f} times")
    path = write_record(options.out, "data", "cpu", cases)
    print(f"record: {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
