"""info_nce on CUDA for more rows or features than one launch takes.

In few cases, because the tile kernels are slow to emulate. The emulated caches are so small that
the sums of 650 rows come in several bands, and the weights of 515 in several squares; on a GPU the
weights of 4,700 do.
"""

import pytest
import torch

from tests.info_nce_cases import (
    assert_close,
    assert_half_close,
    embeddings,
    labels,
    share_of_anchors,
)


def in_tiles(names, *cases):
    """Marks a test of device and `names`."""
    cases = [pytest.param(*c, marks=pytest.mark.cuda if c[0] == "cuda" else ()) for c in cases]
    return pytest.mark.parametrize(("device", *names), cases, indirect=["device"])


@in_tiles(
    ("n", "features", "kind", "normalize", "denominator"),
    ("emulated", 515, 12, "few", False, "anchor"),
    ("emulated_sm86", 650, 12, "pairs", True, "batch"),
    ("emulated", 3, 3068, "few", True, "anchor"),
    ("cuda", 4700, 12, "few", False, "anchor"),
)
def test_float32_in_tiles(device, n, features, kind, normalize, denominator):
    z = embeddings(n, features, scale=features**-0.25).to(device)
    assert_close(z, labels(n, kind), normalize=normalize, denominator=denominator)


@in_tiles(
    ("n", "features", "dtype", "normalize"),
    ("emulated", 515, 40, torch.float16, True),
    ("emulated_sm86", 650, 40, torch.bfloat16, False),
    ("emulated", 5, 3072, torch.bfloat16, False),
    ("cuda", 4700, 40, torch.bfloat16, True),
)
def test_half_precision_in_tiles(device, n, features, dtype, normalize):
    z = embeddings(n, features, dtype).to(device)
    assert_half_close(z, labels(n, "pairs"), normalize=normalize, temperature=0.3)


@in_tiles(("start", "count"), ("emulated_sm86", 130, 129), ("emulated", 100, 500))
def test_share_of_anchors_in_tiles(device, start, count):
    share_of_anchors(embeddings(650, 8).to(device), start, count, "anchor")
