"""What this machine reaches at most: copies of memory and products of matrices.

    python -m benchmarks.limits [--device cuda] [--quick] [--out FILE]

The time of a kernel or of a path is judged against these, measured on the same machine in the same
run. On a CPU with one thread and with all; on a GPU also over the bus, from pinned memory.
"""

import time
from collections.abc import Callable

import torch

from .common import run_main, time_function, write_record
from .options import parser_of

__all__ = ["main", "measure"]

# Far beyond any cache, and a product long enough that its start does not count.
_SIZES = {"cuda": (2**31, 8192), "cpu": (2**28, 2048), "quick cpu": (2**27, 1024)}


def measure(
    device: str, copy_bytes: int, side: int, types: tuple[torch.dtype, ...] = (torch.float32,)
) -> dict[str, float]:
    """Bytes read and written a second by a copy, and operations a second of a matrix product."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    found = {"copy_bytes_per_second": 2 * copy_bytes / seconds}
    for kind in types:
        # Random data: zeros draw less power and so run faster than any real product.
        a, b = (torch.randn((side, side), device=device).to(kind) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: a @ b, device)
        found[f"{str(kind).partition('.')[2]}_flops"] = 2 * side**3 / seconds
    return found


def _seconds(function: Callable[[], object], device: str) -> float:
    """Of one thread the processor's time, which other programs hardly change."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return time_function(function, device, min_seconds=0.3, clock=clock).p50


def bus_bytes_per_second(device: str, size: int = 2**28) -> float:
    """Bytes a second from pinned memory to the GPU."""
    source = torch.ones(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    timing = time_function(lambda: target.copy_(source, non_blocking=True), device, min_seconds=0.3)
    return size / timing.p50


def cases(device: str, quick: bool) -> list[dict]:
    """One for each number of threads."""
    on_gpu = torch.device(device).type == "cuda"
    copy_bytes, side = _SIZES["cuda" if on_gpu else "quick cpu" if quick else "cpu"]
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = False
        found = measure(device, copy_bytes, side, (torch.float32, torch.bfloat16))
        return [{"threads": 1, **found, "bus_bytes_per_second": bus_bytes_per_second(device)}]
    result = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        result.append({"threads": threads, **measure(device, copy_bytes, side)})
    return result


def main() -> None:
    parser = parser_of(__doc__)
    options = parser.parse_args()
    found = cases(options.device, options.quick)
    for case in found:
        print(", ".join(f"{name} {value:.4g}" for name, value in case.items()), flush=True)
    print(f"record: {write_record(options.out, 'limits', options.device, found)}")


if __name__ == "__main__":
    run_main(main)
