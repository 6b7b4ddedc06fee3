"""Clips a second of one core, from every way to feed, beside the way of the authors' code.

    python -m benchmarks.data [--data FOLDER] [--official FOLDER] [--quick]

All ways make the same clips of the same videos: 16 frames at paces 1 to 4, 128 x 171, crop 112,
flip, jitter of every frame. The authors' way reads frames extracted to JPEG beforehand with cv2 and
jitters them with PIL; --official names a copy of their repository, whose own loader then runs
beside ours. Rounds of the ways take turns, and CPU time is what is compared, so that other work on
the machine counts little. The process keeps the memory it frees, as pacecore's training does.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pacecore.backbones.tuning import keep_freed_memory
from pacecore.datasets import find_videos, probe_all
from pacecore.demo import make_demo
from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.ops.pace_clip import pace_clip
from pacecore.sampling import ClipPlan, Sampling, plan_views
from pacecore.source import VideoFiles
from pacecore.store import FrameStore, pack, record_bytes

from .common import run_main, write_record
from .official import ExtractedFrames, Official, Rebuilt, Shape, extract
from .options import parsed, parser_of, positive

__all__ = ["add_official_argument", "add_video_arguments", "main", "open_videos"]

SHAPE = Shape()


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Which videos."""
    parser.add_argument("--data", help="videos; default PACECORE_DATA/ucf101, else the demo set")
    parser.add_argument("--videos", type=positive, default=36)


def add_official_argument(parser: argparse.ArgumentParser) -> None:
    """The copy of the authors' repository."""
    parser.add_argument("--official", type=_copy, help="a copy of laura-wang/video-pace")


def _copy(folder: str) -> Official:
    try:
        return Official(folder)
    except PacecoreError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def open_videos(options: argparse.Namespace, folder: Path) -> tuple[VideoIndex, str]:
    """At most `videos` training videos, evenly drawn, counted; and what they are, in words."""
    data, words = options.data, "the videos named by --data"
    if data is None and os.environ.get("PACECORE_DATA"):
        data, words = str(Path(os.environ["PACECORE_DATA"]) / "ucf101"), "UCF101, {} classes"
    if data is None:
        data, words = str(make_demo(folder / "demo", groups=2, clips=2)), "the demo set"
    index = find_videos(data).select("train")
    words = words.format(len({entry.label for entry in index.entries}))
    count = min(options.videos, len(index))
    chosen = [index.entries[place * len(index) // count] for place in range(count)]
    index, bad = probe_all(replace(index, entries=tuple(chosen)), 1)
    if bad:
        raise PacecoreError(f"{bad[0].path}: {bad[0].reason}")
    return index, words


def main() -> None:
    """Measures and writes the record."""
    parser = parser_of(__doc__)
    add_video_arguments(parser)
    add_official_argument(parser)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parsed(parser, videos=6, rounds=4)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        index, words = open_videos(options, Path(folder))
        start = time.process_time()
        store, _ = pack(index, Path(folder) / "store", SHAPE.resize, workers=1)
        facts = {"videos": words, **_facts(index)}
        facts["packed_frames_per_core_second"] = facts["frames"] / (time.process_time() - start)
        ways = _ways(index, Path(folder), store, options.official)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        # A search of all that was imported, 36 ms, would fall to one way, as 5 more clips of it.
        gc.collect()
        gc.freeze()
        for data_pass in range(options.rounds + 1):  # the first warms up caches and is left out
            for name, (way, _) in ways.items():
                start = time.process_time()
                for video in range(len(index)):
                    way(video, data_pass)
                if data_pass:
                    seconds[name].append(time.process_time() - start)
    _report(options, ways, seconds, len(index), facts)


def _facts(index: VideoIndex) -> dict[str, float]:
    """What the videos are like, as whoever plans a larger set has to know."""
    frames = sum(entry.num_frames for entry in index.entries)
    return {
        "frames": frames,
        "file_bytes_per_frame": sum(os.path.getsize(e.path) for e in index.entries) / frames,
        "store_bytes_per_frame": record_bytes(SHAPE.resize),
    }


def _ways(
    index: VideoIndex, folder: Path, store: FrameStore, official: Official | None
) -> dict[str, tuple[Callable[[int, int], None], int]]:
    """Name -> (function of a video and a pass over the data, clips that it makes)."""
    one, two = Sampling(views=1), Sampling(views=2)
    files = VideoFiles(index)

    def fed(source: Callable[[int, np.ndarray], Frames], sampling: Sampling) -> Callable:
        def way(video: int, data_pass: int) -> None:
            plans = plan_views(sampling, files.num_frames(video), data_pass, video)
            wanted = np.unique(np.concatenate([plan.frame_numbers for plan in plans]))
            _clips(source(video, wanted), wanted, plans)

        return way

    def decoding_only(video: int, data_pass: int) -> None:
        (plan,) = plan_views(one, files.num_frames(video), data_pass, video)
        files.decode(video, np.unique(plan.frame_numbers))

    return {
        **_authors_ways(index, folder, official),
        "files": (fed(files.decode, one), 1),
        "files, decoding alone": (decoding_only, 1),
        "files, two views decoded once": (fed(files.decode, two), 2),
        "store": (fed(store.decode, one), 1),
        "store, two views": (fed(store.decode, two), 2),
    }


def _authors_ways(index: VideoIndex, folder: Path, official: Official | None) -> dict:
    """Their way as far as what it needs is installed: cv2 and PIL; a copy needs torchvision too."""
    result = {}
    try:
        pictures = extract(index, folder / "frames")
    except ImportError as missing:
        print(f"left out: {missing}")
        return {}
    for way in (Rebuilt(), official):
        if way is None:
            continue
        try:
            clips = way.dataset(pictures, SHAPE)
        except ImportError as missing:
            print(f"{way.name} left out: {missing}")
            continue
        result[way.name] = (_reader(clips, pictures), 1)
    return result


def _reader(clips: torch.utils.data.Dataset, pictures: ExtractedFrames) -> Callable:
    """An item of their data set as the float tensor that their step makes of it."""
    videos = len(pictures.counts)

    def way(video: int, data_pass: int) -> None:
        torch.from_numpy(clips[(data_pass * videos + video) % len(clips)][0]).float()

    return way


def _clips(frames: Frames, wanted: np.ndarray, plans: list[ClipPlan]) -> torch.Tensor:
    rows = np.stack([np.searchsorted(wanted, plan.frame_numbers) for plan in plans])
    return pace_clip(
        frames,
        torch.from_numpy(rows.astype(np.int32)),
        torch.from_numpy(np.stack([plan.crop for plan in plans])),
        torch.from_numpy(np.stack([plan.jitter for plan in plans])),
        torch.from_numpy(np.stack([plan.jitter_order for plan in plans])),
        resize=SHAPE.resize,
        crop_size=(SHAPE.crop, SHAPE.crop),
    )


def _report(
    options: argparse.Namespace, ways: dict, seconds: dict, videos: int, facts: dict
) -> None:
    rates = {
        name: videos * ways[name][1] / np.array(times) for name, times in seconds.items()
    }  # clips a CPU second, of each round
    authors = [name for name in (Official.name, Rebuilt.name) if name in rates]
    cases = []
    for name, rate in rates.items():
        case = {"way": name, "clips_per_core_second": float(np.median(rate))}
        case |= {"least": float(rate.min()), "most": float(rate.max()), **facts}
        for other in authors:
            # Rounds side by side: what slowed one down slowed the other too.
            case[f"times {other}"] = float(np.median(rate / rates[other]))
        cases.append(case)
        times = ", ".join(f"{case[f'times {each}']:6.2f} times {each}" for each in authors)
        print(f"{name:42} {np.median(rate):8.1f} clips a second of a core, {times}")
    path = write_record(options.out, "data", "cpu", cases)
    print(f"record: {path}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
