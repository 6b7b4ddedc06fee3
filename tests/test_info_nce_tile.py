"""info_nce on CUDA for more rows or features than one launch takes.

In few cases, because the tile kernels are slow to emulate. The emulated caches are so small that
the sums of 650 rows come in several bands on sm_86, and the weights of float32 in several squares,
of 515 rows in one on sm_90; on a GPU the weights of 4,700 come in several.
"""

import pytest
import torch

from pacecore.ops import info_nce
from tests.info_nce_cases import (
    assert_close,
    assert_half_close,
    embeddings,
    error,
    labels,
    outcome,
    share_of_anchors,
)


def in_tiles(names, *cases):
    """Marks a test of device and `names`."""
    cases = [pytest.param(*c, marks=pytest.mark.cuda if c[0] == "cuda" else ()) for c in cases]
    return pytest.mark.parametrize(("device", *names), cases, indirect=["device"])


@in_tiles(
    ("n", "features", "kind", "normalize", "denominator"),
    ("emulated", 515, 12, "few", False, "anchor"),
    ("emulated", 515, 12, "high", False, "batch"),
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


@in_tiles(
    ("n", "start", "count"),
    ("emulated_sm86", 650, 130, 129),
    ("emulated", 650, 100, 500),
    ("emulated", 530, 140, 100),
    ("emulated", 530, 9, 0),
    ("cuda", 650, 140, 100),
    ("cuda", 650, 9, 0),
)
def test_share_of_anchors_in_tiles(device, n, start, count):
    share_of_anchors(embeddings(n, 8).to(device), start, count, "anchor")


@in_tiles(
    ("n", "dtype"),
    ("emulated", 516, torch.float32),
    ("emulated", 60, torch.float32),
    ("cuda", 516, torch.float32),
    ("cuda", 516, torch.bfloat16),
    ("cuda", 60, torch.float32),
)
def test_large_logits_are_rounded_alike_in_both_passes(device, n, dtype):
    """Three equal clips a group and the others far off: the gradient is 0, as 1/2 - exp(0) / 2.

    A logit near 700 rounded otherwise than in the sums is off by 3e-5.
    """
    z = 7 * torch.nn.functional.normalize(embeddings(n // 3, 64), dim=1)
    z = z.repeat(3, 1).to(device, dtype)
    loss, grad, _ = outcome(info_nce, z, torch.arange(n // 3).repeat(3), temperature=0.07)
    assert loss.item() == pytest.approx(0.6931472, rel=1e-6)
    assert grad.abs().max() < 1e-9


@in_tiles(("denominator",), ("cuda", "anchor"), ("cuda", "batch"))
def test_float16_weights_of_one_anchor_are_finite(device, denominator):
    """The weight of the anchor's positive is near -1, which 70,000 times is beyond float16."""
    z, groups = embeddings(70_000, 8, torch.float16), labels(70_000, "pairs")
    options = {"temperature": 3.0, "anchor_count": 1, "denominator": denominator}
    got = outcome(info_nce, z.to(device), groups, **options)
    wide = outcome(info_nce, z.float().to(device), groups, **options)
    assert error(got[0], wide[0]) <= 1e-5
    assert error(got[1], wide[1]) <= 4e-3
