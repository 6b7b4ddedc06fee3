"""Processes for the tests, and several that form one group over gloo and give their results."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from pacecore.distributed import let_go

__all__ = ["PROCESSES", "held_elsewhere", "run_ranks"]

# Forked from one server, which has imported torch and the trainer once for all of them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pacecore.train", "pacecore.finetune", "torch._dynamo"])


def run_ranks(function: Callable, ranks: int, *arguments: object) -> list:
    """function(rank, *arguments) in each of `ranks` processes; their results in rank order.

    `function` stands at the top level of its module, and returns tensors and plain values.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _main, (ranks, folder, function, arguments), nprocs=ranks, start_method="forkserver"
        )
        return [torch.load(Path(folder) / str(rank)) for rank in range(ranks)]


def _main(rank: int, ranks: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    try:
        torch.save(function(rank, *arguments), Path(folder) / str(rank))
    finally:
        let_go()
        dist.destroy_process_group()


_HOLDER = """
import sys
from pathlib import Path
from pacecore.files import for_one_process
with for_one_process(Path(sys.argv[1]), "holds it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[int]:
    """Has another process, killed at the end, hold the file `lock`; its number."""
    command = [sys.executable, "-c", _HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            yield other.pid
        finally:
            other.kill()
