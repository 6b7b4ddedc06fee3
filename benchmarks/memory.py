"""Peak memory of a training step, in bytes of tensors, on any machine and for any size.

    python -m benchmarks.memory                        the paper's shapes and batch, every network
    python -m benchmarks.memory --networks s3dg --clips 60 --accumulate 1 2 6 30

The step is the trainer's: forward, loss, backward over one part of the batch after another, SGD
with momentum; the whole batch of clips stays in memory. It runs on tensors without values, and the
bytes of all storages alive are counted at each operation. That leaves out what kernels take for
themselves (cuDNN's workspaces), the allocator's gaps, the CUDA context and the decoded frames of
the batch, for which RESERVE stands. Where there is a GPU it is run there too, and its peak is
torch.cuda.max_memory_allocated, with the count beside it.

Elsewhere the first case holds the count against this process's resident memory in a real, smaller
step.
"""

import argparse
import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pacecore.backbones import BACKBONES, build_backbone
from pacecore.backbones.layers import Conv3d
from pacecore.backbones.tuning import MEMORY_FORMAT

from .common import peak_extra_bytes, run_main, write_record
from .options import parsed, parser_of, positive

CARD = 24 * 2**30
RESERVE = 3 * 2**30
"""Of a card, for what is not counted: see above."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--clips", type=positive, default=60, help="of a step: 30 videos, two each")
    parser.add_argument("--accumulate", type=positive, nargs="+", default=[1, 2, 3, 5, 10, 15, 30])
    arguments = parsed(parser, networks=["s3dg"], accumulate=[30])
    types = (True,) if arguments.quick else (False, True)

    cases = [] if _on_gpu(arguments.device) else [against_resident_memory()]
    for network in arguments.networks:
        for bf16 in types:
            for checkpointing in (False, True):
                for parts in arguments.accumulate:
                    cases.append(case(network, arguments, bf16, checkpointing, parts))
                    print(cases[-1], flush=True)
                    # Again after each case, so that a run which is cut off leaves what it has.
                    path = write_record(arguments.out, "memory", arguments.device, cases)
    print(path)


def case(
    network: str, arguments: argparse.Namespace, bf16: bool, checkpointing: bool, parts: int
) -> dict:
    frames, crop = (64, 224) if network == "s3dg" else (16, 112)
    shape = (arguments.clips, 3, frames, crop, crop)
    found = without_values(network, shape, bf16, checkpointing, parts)
    if _on_gpu(arguments.device):
        counted = found["peak_bytes"]
        found = on_gpu(network, shape, bf16, checkpointing, parts) | {"counted_bytes": counted}
    return {
        **{"network": network, "clips": shape, "type": "bf16" if bf16 else "fp32"},
        **{"checkpointing": checkpointing, "accumulate": parts},
        **found,
        "fits_24_gib": found["peak_bytes"] is not None and found["peak_bytes"] <= CARD - RESERVE,
    }


def _on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def without_values(network: str, shape: tuple, bf16: bool, checkpointing: bool, parts: int) -> dict:
    with as_on_a_gpu(), FakeTensorMode(), LiveBytes() as live:
        step = training_step(network, shape, bf16, checkpointing, parts)
        held = live.peak = live.now
        step()
        return {"held_bytes": held, "peak_bytes": live.peak}


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Convolutions as torch has them, and pooling in the type of its input.

    CPU autocast pools in fp32, a GPU's does not.
    """
    convolve, pool = Conv3d.forward, F.max_pool3d

    def pool_as_given(*args: object, **how: object) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return pool(*args, **how)

    Conv3d.forward, F.max_pool3d = nn.Conv3d.forward, pool_as_given
    try:
        yield
    finally:
        Conv3d.forward, F.max_pool3d = convolve, pool


def on_gpu(network: str, shape: tuple, bf16: bool, checkpointing: bool, parts: int) -> dict:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step = training_step(network, shape, bf16, checkpointing, parts, device="cuda")
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return {"held_bytes": None, "peak_bytes": None}
    return {"held_bytes": held, "peak_bytes": torch.cuda.max_memory_allocated()}


def training_step(
    network: str,
    shape: tuple,
    bf16: bool = False,
    checkpointing: bool = False,
    parts: int = 1,
    *,
    width: float = 1.0,
    device: str = "cpu",
) -> Callable[[], None]:
    """One step over clips of `shape`; without values only the first two of `parts` are run.

    The others are like the second: they start with gradients there, and end so.
    """
    backbone = build_backbone(network, width=width)
    backbone.checkpointing = checkpointing
    model = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 4))
    if device != "cpu":  # values or not, the maps take the clips' layout
        model = model.to(device, memory_format=MEMORY_FORMAT)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    # The trainer has pace_clip write bf16 clips under bf16 on a GPU.
    clips = torch.empty(shape, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    clips = clips.to(memory_format=MEMORY_FORMAT)
    for weight in model.parameters():  # gives the optimizer its momentum; 0 moves nothing
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
    shares = list(zip(clips.tensor_split(parts), labels.tensor_split(parts), strict=True))
    if device == "cpu":
        shares = shares[:2]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for part, targets in shares:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                logits = model(part)
            F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return step


def against_resident_memory() -> dict:
    """Counted and resident bytes of real steps of a small R(2+1)D on the CPU.

    The C library is told to give every block its own pages and take them back when it is freed;
    else it keeps freed blocks, and resident memory is more than what is alive.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries
        ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD of malloc.h
    shape, width = (16, 3, 16, 56, 56), 0.25
    rows = {}
    for checkpointing in (False, True):
        with FakeTensorMode(), LiveBytes() as live:
            step = training_step("r21d", shape, False, checkpointing, width=width)
            before = live.peak = live.now
            step()
        step = training_step("r21d", shape, False, checkpointing, width=width)
        step()
        rows["checkpointing" if checkpointing else "plain"] = {
            "counted": live.peak - before,
            "resident": peak_extra_bytes(step, "cpu"),
        }
    return {"check": "r21d, quarter width", "clips": shape, "bytes_beyond_those_held": rows}


if __name__ == "__main__":
    run_main(main)
