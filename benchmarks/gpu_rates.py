"""What this GPU reaches at most: copy bandwidth and the rate of a bf16 matrix product.

Every kernel's time is judged against these, measured on the same card in the same run.

    python -m benchmarks.gpu_rates
"""

import json

import torch

from benchmarks.common import time_function

__all__ = ["measure"]

_COPY_BYTES = 2**31  # far beyond any cache
_SIDE = 8192


def measure(device: str, copy_bytes: int = _COPY_BYTES, side: int = _SIDE) -> dict[str, float]:
    """Bytes read and written a second by a copy, and bf16 operations a second of a product."""
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = time_function(lambda: target.copy_(source), device).p50
    # Random data: zeros draw less power and so run faster than any real product.
    a, b = (torch.randn((side, side), device=device).to(torch.bfloat16) for _ in range(2))
    product = time_function(lambda: a @ b, device).p50
    return {
        "copy_gigabytes_per_second": 2 * copy_bytes / seconds / 1e9,
        "bf16_teraflops": 2 * side**3 / product / 1e12,
    }


if __name__ == "__main__":
    print(json.dumps(measure("cuda")))
