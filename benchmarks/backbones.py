"""Training steps of the networks: clips a second, achieved TFLOP/s, peak memory; ways to run one.

    python -m benchmarks.backbones                     every network at the paper's shapes
    python -m benchmarks.backbones --networks r21d --width 0.25 --frames 16 --crop 56 --batch 30

A step is forward, backward and SGD on fixed clips. `plain` is the network as torch runs it unasked:
contiguous fp32, nn.Conv3d everywhere, SGD one tensor at a time; but without TF32, which a GPU's
convolutions have unasked: that is `plain in TF32`, the only way that has it. The others have
pacecore's layout (`layout`), bf16 autocast (`bf16`), torch.compile (`compiled`), or compute stages
again in the backward pass (`checkpointing`). Of a GPU the kernels on which a step of `bf16` spends
its time are listed. All ways of a network take turns in rounds, so that a change in the machine's
load falls on all of them. On a CPU each has a process of its own, because the allocator's setting
that pacecore makes belongs to a process.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pacecore.backbones import BACKBONES, build_backbone
from pacecore.backbones.bf16 import check_bf16_conv3d
from pacecore.backbones.layers import Conv3d
from pacecore.backbones.tuning import memory_format, prepare

from .common import peak_extra_bytes, run_main, time_function, write_record
from .options import parsed, parser_of, positive, positive_number


@dataclass(frozen=True)
class Way:
    """How a network is trained."""

    layout: bool = True
    tf32: bool = False
    bf16: bool = False
    compiled: bool = False
    checkpointing: bool = False
    search: bool = True  # for the fastest convolutions, where cuDNN has not looked before


WAYS = {
    "plain": Way(layout=False),
    "plain in TF32": Way(layout=False, tf32=True),
    "layout": Way(),
    "bf16": Way(bf16=True),
    "compiled": Way(compiled=True),
    "bf16 compiled": Way(bf16=True, compiled=True),
    "checkpointing": Way(checkpointing=True),
    "bf16 checkpointing": Way(bf16=True, checkpointing=True),
}
ON_CPU = ("plain", "layout", "checkpointing")
# Without true fp32 in pacecore's layout, for which cuDNN searches for more than a minute.
QUICK_ON_GPU = ("plain", "plain in TF32", "bf16")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--width", type=positive_number, default=1.0)
    parser.add_argument("--batch", type=positive, help="default 60 on a GPU, 2 on a CPU")
    parser.add_argument("--frames", type=positive, help="default 16, s3dg 64")
    parser.add_argument("--crop", type=positive, help="default 112, s3dg 224")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--runs", type=positive, default=2, help="at least, of a way in a round")
    on_cpu = torch.device(parser.parse_args().device).type == "cpu"
    if on_cpu:  # clips of preset `small`
        quick = {"networks": ["r21d", "s3dg"], "width": 0.25, "batch": 8, "frames": 16, "crop": 56}
    else:  # the paper's shape, without what torch.compile takes a minute for
        quick = {"networks": ["r21d"], "ways": list(QUICK_ON_GPU), "rounds": 1}
    arguments = parsed(parser, **quick)
    arguments.ways = arguments.ways or list(ON_CPU if on_cpu else WAYS)
    arguments.batch = arguments.batch or (2 if on_cpu else 60)

    cases = [{"bf16_check": check_bf16_conv3d(arguments.device).report()}]
    for network in arguments.networks:
        found: list[dict] = []
        for found in network_cases(network, arguments):
            # Again after each, so that a run which is cut off leaves what it has.
            write_record(arguments.out, "backbones", arguments.device, cases + found)
        print(*found, sep="\n", flush=True)
        cases += found
    if not on_cpu:  # last, since a profiler may be refused
        for network in arguments.networks:
            clips = torch.rand(clip_shape(network, arguments), device=arguments.device)
            step = training_step(network, arguments.width, clips, WAYS["bf16"])
            about = {"network": network, "width": arguments.width, "way": "bf16"}
            cases.append({**about, "kernels": kernels_of(step, clips.device)})
    print(write_record(arguments.out, "backbones", arguments.device, cases))


def network_cases(network: str, arguments: argparse.Namespace) -> Iterator[list[dict]]:
    """After each measurement the cases of the network as they are by then."""
    shape = clip_shape(network, arguments)
    clips = torch.rand(shape, device=arguments.device)
    flops = 3 * 2 * multiply_adds(network, arguments.width, clips)  # backward is two forwards
    on_cpu = clips.device.type == "cpu"
    measured = {
        way: (Apart if on_cpu else Measured)(network, arguments.width, clips, WAYS[way])
        for way in arguments.ways
    }
    seconds: dict[str, list[float]] = {way: [] for way in measured}
    cases: dict[str, dict] = {}
    for _ in range(arguments.rounds):
        for way, runs in measured.items():
            case = cases.setdefault(
                way,
                {
                    **{"network": network, "width": arguments.width, "way": way},
                    **dict(zip(("batch", "frames", "crop"), (shape[0], *shape[2:4]), strict=True)),
                },
            )
            if "failed" in case:
                continue
            try:
                step_seconds, case["peak_bytes"] = runs(arguments.runs)
            except torch.OutOfMemoryError as error:
                case["failed"] = str(error).splitlines()[0]
                torch.cuda.empty_cache()
                yield list(cases.values())
                continue
            seconds[way].append(step_seconds)
            median = statistics.median(seconds[way])
            case["step_seconds"] = seconds[way]
            case["clips_per_second"] = round(arguments.batch / median, 3)
            case["tflop_per_second"] = round(flops / median / 1e12, 4)
            if seconds.get("plain"):
                ratios = [p / s for p, s in zip(seconds["plain"], seconds[way], strict=False)]
                case["times_plain"] = round(statistics.median(ratios), 3)
            yield list(cases.values())


class Measured:
    """A way in this process: a call runs it for a while."""

    def __init__(self, network: str, width: float, clips: Tensor, way: Way):
        self.step = training_step(network, width, clips, way)
        self.way, self.device = way, clips.device
        self.peak_bytes: int | None = None

    def __call__(self, least_runs: int) -> tuple[float, int]:
        """Seconds of a step, a fifth of the runs being faster; bytes that it adds at most."""
        with conv3d_as_torch_has_it(not self.way.layout):
            if self.peak_bytes is None:
                self.peak_bytes = peak_extra_bytes(self.step, self.device)
            timing = time_function(self.step, self.device, min_seconds=0.5, min_runs=least_runs)
        return timing.p20, self.peak_bytes


class Apart:
    """The same in a process of its own, with as many threads as this one; made, it is idle."""

    def __init__(self, network: str, width: float, clips: Tensor, way: Way):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, torch.get_num_threads(), network, width, clips.shape, way)
        context.Process(target=_serve, args=arguments, daemon=True).start()
        theirs.close()
        self.pipe.recv()  # else its start falls on the way that is measured first

    def __call__(self, least_runs: int) -> tuple[float, int]:
        self.pipe.send(least_runs)
        return self.pipe.recv()


def _serve(pipe: Connection, threads: int, network: str, width: float, shape: tuple, way: Way):
    torch.set_num_threads(threads)
    measured = Measured(network, width, torch.rand(shape), way)
    pipe.send("ready")
    try:
        while True:
            pipe.send(measured(pipe.recv()))
    except EOFError:  # nobody asks any more
        return


def clip_shape(network: str, arguments: argparse.Namespace) -> torch.Size:
    """Of a batch, (B, 3, T, H, W): the paper's, unless asked for otherwise."""
    frames, crop = (64, 224) if network == "s3dg" else (16, 112)
    crop = arguments.crop or crop
    return torch.Size((arguments.batch, 3, arguments.frames or frames, crop, crop))


def training_step(network: str, width: float, clips: Tensor, way: Way) -> Callable[[], None]:
    torch.manual_seed(0)
    backbone = build_backbone(network, width=width)
    backbone.checkpointing = way.checkpointing
    model = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 4))
    if way.layout:
        model = prepare(model, clips.device)
        clips = clips.contiguous(memory_format=memory_format(model, clips.device))
    else:
        model = model.to(clips.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=1e-3,
        momentum=0.9,
        weight_decay=5e-3,
        fused=way.layout,
        foreach=False,
    )
    labels = torch.arange(len(clips), device=clips.device) % 4
    run = torch.compile(model) if way.compiled else model
    search = way.layout and way.search

    def step() -> None:
        optimizer.zero_grad()
        with torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=way.tf32):
            with torch.autocast(clips.device.type, torch.bfloat16, enabled=way.bf16):
                loss = F.cross_entropy(run(clips), labels)
            loss.backward()
        optimizer.step()

    return step


def kernels_of(step: Callable[[], None], device: torch.device, most: int = 30) -> list[dict]:
    """Where a step's time goes: its kernels (on a CPU torch's functions), the longest first."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    for _ in range(2):  # cuDNN's search
        step()
    with profile(activities=[activity]) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    found = [
        {
            "kernel": event.key[:160],
            "calls": event.count,
            "microseconds": event.self_device_time_total
            if device.type == "cuda"
            else event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda kernel: -kernel["microseconds"])[:most]


@contextmanager
def conv3d_as_torch_has_it(wanted: bool) -> Iterator[None]:
    """Turns off what `pacecore.backbones.convolution` does."""
    ours = Conv3d.forward
    try:
        if wanted:
            Conv3d.forward = lambda self, x, fills=False: nn.Conv3d.forward(self, x)
        yield
    finally:
        Conv3d.forward = ours


def multiply_adds(network: str, width: float, clips: Tensor) -> int:
    """Of one forward pass over the whole batch: convolutions and linear layers."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_backbone(network, width=width)(torch.empty(clips.shape))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    run_main(main)
