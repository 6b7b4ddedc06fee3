"""Several processes training one network: who am I, what do we agree on, and who writes."""

import itertools
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

# DistributedDataParallel imports it. If there is a group by then, defaults of functions there hold
# it, and its threads stay: one that lets go of a tensor while Python ends aborts the process.
import torch.distributed.nn.functional
from torch import Tensor, nn

from pacecore.errors import PacecoreError
from pacecore.rules import named_by
from pacecore.workers import of_launcher

__all__ = [
    "Gathered",
    "all_reduce_sum",
    "any_rank",
    "barrier",
    "fewest",
    "gather_rows",
    "is_main",
    "join",
    "let_go",
    "local_rank",
    "local_world_size",
    "merge_over_ranks",
    "of_all_ranks",
    "patient_group",
    "rank",
    "require_same",
    "share_buffers",
    "share_of",
    "usual_defaults",
    "world_size",
    "wrap",
]

T = TypeVar("T")

# A rank that waits longer than this for the others ends with an error. One that died is noticed at
# once, by its closed connection; this is for one that hangs. It covers uneven evaluations.
_PATIENCE = timedelta(minutes=10)

# Where the processes meet, kept from group to group, and the number of the next group: each has
# names of its own there, else its members find the addresses that the group before has left.
_meeting: list[dist.Store] = []
_groups = itertools.count()


def world_size() -> int:
    """Number of processes; 1 outside torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0; known before the processes are joined."""
    return of_launcher("LOCAL_RANK", of_launcher("RANK", 0))


def local_world_size() -> int:
    """Processes of the run on this machine; known before they are joined."""
    return of_launcher("LOCAL_WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


_changing = threading.Lock()
_found: list[torch.dtype] = []  # default types where threads went into usual_defaults, and are yet


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Within the block torch makes float32 on the CPU, computes in the types that it is given and
    records gradients, whatever its user has set, in a notebook for one.
    """
    with _changing:  # the type is that of all threads: the last one out puts the first's back
        _found.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as within:
            # A default device, even the CPU, has every call of torch pass through Python.
            if torch.get_default_device().type != "cpu":
                within.enter_context(torch.device("cpu"))
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                within.enter_context(torch.autocast(kind, enabled=False))
            within.enter_context(torch.inference_mode(False))
            within.enter_context(torch.enable_grad())
            yield
    finally:
        with _changing:
            first = _found[0]
            _found.pop()
            if not _found:
                torch.set_default_dtype(first)


@contextmanager
def join(device: torch.device, *, patience: timedelta = _PATIENCE) -> Iterator[None]:
    """Within the block `usual_defaults` hold, and the processes that torchrun started form one
    group.

    Gloo for what lies on the CPU, NCCL for what lies on CUDA devices. patience: how long a rank
    waits for the others, at most ten minutes where they first meet. Raises PacecoreError when the
    others do not come, two of them have one GPU, or one of them is lost on the way.
    """
    if of_launcher("WORLD_SIZE", 1) == 1 or world_size() > 1:
        with usual_defaults():
            yield
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not _meeting:
            _meeting.append(next(dist.rendezvous("env://", timeout=min(patience, _PATIENCE)))[0])
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"pacecore {next(_groups)}", _meeting[0]),
            rank=of_launcher("RANK", 0),
            world_size=of_launcher("WORLD_SIZE", 1),
            timeout=patience,
        )
    except (RuntimeError, ValueError) as error:
        raise PacecoreError(
            f"the processes cannot be joined: {str(error).splitlines()[0]}"
        ) from None
    try:
        if device.type == "cuda":
            _check_gpus(device)
        with usual_defaults():
            yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise PacecoreError(
            f"rank {rank()} lost another rank, whose own words tell why: {reason}"
        ) from None
    finally:
        let_go()
        dist.destroy_process_group()


def _check_gpus(device: torch.device) -> None:
    """Raises PacecoreError where ranks share a GPU: NCCL would refuse them in words of its own, and
    where videos are measured only at the end.
    """
    count = len(merge_over_ranks({str(torch.cuda.get_device_properties(device).uuid): ""}))
    if count < world_size():
        raise PacecoreError(
            f"each rank needs a GPU of its own, got {count} for {world_size()} ranks; start one for"
            " each GPU, with --device cuda"
        )


def let_go() -> None:
    """Waits, before a group is destroyed, until its threads are idle; to be called with no
    collective under way.

    They let go of what they sent last, for which they need Python's lock. Who destroys the group
    has that lock and waits for them: for ever, if they are not done.
    """
    end, before = time.monotonic() + 10.0, None
    time.sleep(0.2)
    while time.monotonic() < end and Path("/proc/self/task").is_dir():
        seen = _threads_of_gloo()
        # Who waits for the lock looks for it every 5 ms, and this sleep leaves it to them.
        if seen == before and all(state == "S" for state, _ in seen.values()):
            return
        before = seen
        time.sleep(0.02)


def _threads_of_gloo() -> dict[str, tuple[str, tuple[str, ...]]]:
    """{thread: (state, how often it gave up its processor)} of those that run collectives."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            lines = (task / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if status["Name"] == "pt_gloo_runloop":
                switches = tuple(v for name, v in status.items() if "ctxt_switches" in name)
                found[task.name] = (status["State"][0], switches)
    return found


def barrier() -> None:
    """Waits until every rank is here; no GPU is waited for."""
    any_rank(False)


def wrap(model: nn.Module, device: torch.device, *, sync_bn: bool = False) -> nn.Module:
    """`model` with gradients averaged over all ranks; the model itself where there is one."""
    if world_size() == 1:
        return model
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # True of axes of size 1 in channels-last weights, where a stride means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if device.type == "cuda":
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
    network = nn.parallel.DistributedDataParallel(model)
    if world_size() > 2:
        network.register_comm_hook(None, _average_each)
    return network


def _average_each(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Averages gradients over the ranks one by one, not packed together: they are packed anew after
    a run's first step, and over three ranks or more the order of a sum goes with the place in the
    pack. A resumed run would round otherwise than one that was never stopped.
    """
    sums = [
        dist.all_reduce(gradient.div_(world_size()), async_op=True).get_future()
        for gradient in bucket.gradients()
    ]
    return torch.futures.collect_all(sums).then(lambda _: bucket.buffer())


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Of each flag whether it holds on any rank; every rank must call it.

    The flags travel between the processes by gloo: no rank waits for its GPU to learn of them.
    """
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values.tolist())


def fewest(count: int) -> int:
    """The least `count` of all ranks; every rank must call it, no GPU is waited for."""
    return min(_gather_counts(count))


def share_of(count: int) -> float:
    """`count` over the mean of all ranks' counts; every rank must call it, no GPU is waited for.

    The mean over the ranks of a rank's mean times this is the mean over all clips.
    """
    counts = _gather_counts(count)
    return count * len(counts) / max(sum(counts), 1)


def share_buffers(model: nn.Module) -> None:
    """Gives every rank the first one's buffers, the averages of batch norm; every rank must call
    it. Each rank's own are of its share of the clips.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def all_reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """Sum of `values` over all ranks, on the CPU; every rank must call it."""
    if world_size() == 1:
        return values
    moved = values.to(device)
    dist.all_reduce(moved)
    return moved.cpu()


class Gathered(NamedTuple):
    """The rows of all ranks in rank order, and where this rank's begin among them."""

    rows: Tensor  # (n, D)
    groups: Tensor  # (n,)
    start: int


def gather_rows(rows: Tensor, groups: Tensor) -> Gathered:
    """Rows (b, D) and their group numbers (b,) of all ranks; b may differ, and may be 0.

    The gradient flows back: a rank's rows receive the sum of the gradients that all ranks' losses
    have for them. Every rank must call it, and each the backward. Alone, it gives back its input.
    """
    if world_size() == 1:
        return Gathered(rows, groups, 0)
    counts = _gather_counts(len(rows))
    gathered = _GatherRows.apply(rows, counts)
    with torch.no_grad():
        all_groups = _gather_uneven(groups, counts)
    return Gathered(gathered, all_groups, sum(counts[: rank()]))


def _gather_counts(count: int) -> list[int]:
    """Each rank's `count`. They travel by gloo: no rank waits for its GPU to learn of them."""
    if world_size() == 1:
        return [count]
    counts = torch.empty(world_size(), dtype=torch.int64)
    dist.all_gather(list(counts.split(1)), torch.tensor([count]))
    return counts.tolist()


def _gather_uneven(rows: Tensor, counts: list[int]) -> Tensor:
    """All ranks' rows; shorter shares travel padded, since collectives want equal sizes."""
    longest = max(counts)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather_uneven(rows, counts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        # Summed in float32: bfloat16 would round once a rank.
        total = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        if total is grad:
            total = grad.clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]].to(grad.dtype), None


def merge_over_ranks(found: dict[str, str]) -> dict[str, str]:
    """The entries that any rank found, on every rank; every rank must call it."""
    return {name: value for each in of_all_ranks(found) for name, value in each.items()}


def patient_group() -> dist.ProcessGroup | None:
    """All ranks, as a group whose members wait a day for each other where they do uneven work that
    has limits of its own; every rank must call it, soon after the others. None where one is alone.
    """
    if world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def of_all_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Each rank's `value`, in rank order, on every rank; every rank must call it.

    value: what pickle takes. group: of all ranks, where it is not the one of `join`.
    """
    if world_size() == 1:
        return [value]
    every: list[T] = [value] * world_size()
    dist.all_gather_object(every, value, group)
    return every


def require_same(options: Any, **said: Any) -> None:
    """Raises PacecoreError, on all ranks, where one has other `options`, a dataclass, than the
    first, but for those of its machine, or another value said beside them: started on each machine,
    they may not have been given the same. Every rank must call it.
    """
    first, *others = of_all_ranks({**asdict(options), **said})
    own = named_by(options, "place", "machine")
    for number, other in enumerate(others, 1):
        for name in first:
            if name not in own and other.get(name) != first[name]:
                raise PacecoreError(
                    f"{name} must be the same on every rank, got {first[name]!r} on rank 0 and"
                    f" {other.get(name)!r} on rank {number}"
                )
