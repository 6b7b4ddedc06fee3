"""Clips a second from video files without a network: one core, all cores, and decoding workers."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import torch

from pacecore.config import TrainOptions, from_mapping
from pacecore.device import clip_format
from pacecore.index import VideoIndex
from pacecore.loader import TrainingSchedule, load_batches
from pacecore.source import VideoFiles

from .processes import held_bytes

__all__ = ["feeding"]


def feeding(
    workers: Iterable[int], device: torch.device, index: VideoIndex, videos: str, quick: bool
) -> Iterator[dict]:
    """Clips a second from files without a network: of one core that does all, of all cores each for
    itself, which is what they can do at most together, and with more and more workers; each process
    has one thread, since it is processes that share out the cores.
    """
    seconds, rounds = (1.0, 1) if quick else (3.0, 7)
    cores = sorted(os.sched_getaffinity(0))
    alone, apart = "one core alone", "all cores, each alone"
    ways: dict[str | int, Callable[[], tuple[float, int]]] = {
        alone: lambda: _on_cores(cores[-1:], index, device, seconds),
        apart: lambda: _on_cores(cores, index, device, seconds),
    }
    for number in filter(None, workers):
        ways[number] = partial(_feeding, index, device, number, seconds)
    found: dict[str | int, list[tuple[float, int]]] = {way: [] for way in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):  # in turns, so that a change in the machine's load falls on all
        for way, run in ways.items():
            found[way].append(run())
    torch.set_num_threads(threads)
    rates = {way: [rate for rate, _ in results] for way, results in found.items()}

    def beside(way: str | int, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[way], rates[other], strict=True)]

    for way in ways:
        yield {
            "grows": "workers",
            "value": way,
            "videos": videos,
            "clips_per_second": statistics.median(rates[way]),
            "times_first": statistics.median(beside(way, alone)),
            "share_of_cores": statistics.median(beside(way, apart)),
            "rounds": [list(each) for each in zip(rates[way], beside(way, apart), strict=True)],
            "peak_bytes": max(held for _, held in found[way]),
        }


def _on_cores(
    cores: list[int], index: VideoIndex, device: torch.device, seconds: float
) -> tuple[float, int]:
    """What _feeding gives, summed over processes that each have one of the cores."""
    # A fork cannot use a GPU that its parent has used.
    context = multiprocessing.get_context("fork" if device.type == "cpu" else "spawn")
    ready = context.Barrier(len(cores), timeout=60)
    work = partial(_on_core, index=index, device=device, seconds=seconds)
    # Of a process that dies the pool tells, and it ends the others.
    with ProcessPoolExecutor(len(cores), context, _begin_at, (ready,)) as pool:
        done = [pool.submit(work, core) for core in cores]
    errors = [error for each in done if (error := each.exception())]
    for error in errors:  # those that waited for it only know that it did not come
        if not isinstance(error, BrokenBarrierError) or error is errors[-1]:
            raise error
    rates, held = zip(*(each.result() for each in done), strict=True)
    return sum(rates), sum(held)


def _begin_at(ready: Barrier) -> None:
    global _ready
    _ready = ready


def _on_core(
    core: int, index: VideoIndex, device: torch.device, seconds: float
) -> tuple[float, int]:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    try:
        return _feeding(index, device, 0, seconds, _ready.wait)
    except BaseException:
        _ready.abort()
        raise


def _feeding(
    index: VideoIndex,
    device: torch.device,
    workers: int,
    least_seconds: float,
    begin: Callable[[], object] = int,
) -> tuple[float, int]:
    """Clips a second once it runs evenly, and bytes that all processes then hold."""
    source = VideoFiles(index)
    counts = tuple(source.num_frames(video) for video in range(len(source)))
    options = from_mapping(TrainOptions, {"views": 1, "lambda_ctr": 0.0})
    form = clip_format(options, device, torch.contiguous_format)
    batches = load_batches(
        source,
        TrainingSchedule(options.sampling(), counts, 8, 100_000),
        range(1_000_000),
        clip_frames=options.clip_frames,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    for _ in range(2 + 4 * workers):  # the start, and what was prefetched
        next(batches).to(device).clips(form)
    begin()
    clips, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < least_seconds:
        clips += len(next(batches).to(device).clips(form))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    held = held_bytes()
    batches.close()
    return clips / seconds, held
