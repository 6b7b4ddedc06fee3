"""Several processes training one network: who am I, what do we agree on, and who writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pacecore.errors import PacecoreError

__all__ = [
    "all_reduce_any",
    "all_reduce_sum",
    "is_main",
    "join",
    "rank",
    "world_size",
    "wrap",
]

# A rank that waits longer than this for the others ends with an error: one of them is gone.
_PATIENCE = timedelta(seconds=60)


def world_size() -> int:
    """Number of processes; 1 outside torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


@contextmanager
def join(device: torch.device) -> Iterator[None]:
    """Within the block the processes that torchrun started form one group; alone, it does nothing.

    NCCL for CUDA devices, else gloo. Raises PacecoreError when the others do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world_size() > 1:
        yield
        return
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PacecoreError(
            f"the processes cannot be joined: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device, *, sync_bn: bool = False) -> nn.Module:
    """`model` with gradients averaged over all ranks; the model itself where there is one."""
    if world_size() == 1:
        return model
    if sync_bn:
        if device.type != "cuda":
            raise PacecoreError("sync_bn needs CUDA devices; torch has none of it for the CPU")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def all_reduce_any(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds on any rank; every rank must call it."""
    if world_size() == 1:
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def all_reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """Sum of `values` over all ranks, on the CPU; every rank must call it."""
    if world_size() == 1:
        return values
    moved = values.to(device)
    dist.all_reduce(moved)
    return moved.cpu()
