"""Embeddings and labels for the tests of info_nce, and how near float64 its results must be."""

import torch

from pacecore.ops import info_nce
from pacecore.reference.info_nce import info_nce as reference

__all__ = [
    "assert_close",
    "assert_half_close",
    "embeddings",
    "error",
    "labels",
    "outcome",
    "share_of_anchors",
]


def embeddings(n, features, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, features, generator=generator) * scale).to(dtype)


def labels(n, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "pairs":
        return torch.arange(n)[torch.randperm(n, generator=generator)] // 2 * -7
    if kind == "few":
        return torch.randint(4, (n,), generator=generator)
    if kind == "high":  # pairs that only the upper half of a label tells apart
        return torch.arange(n) // 2 * 2**32
    return {"alone": torch.arange(n) + 2**40, "equal": torch.zeros(n, dtype=torch.int64)}[kind]


def outcome(function, z, groups, dtype=None, loss_scale=1.0, **options):
    """(loss, grad of z, grad of temperature) in float64, with everything computed in `dtype`; the
    gradients are of the loss times `loss_scale`.
    """
    z, groups = z.detach().to(dtype or z.dtype).clone().requires_grad_(), groups.to(z.device)
    value = options.pop("temperature", 1.0)
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    temperature = torch.tensor(value, dtype=wide, device=z.device, requires_grad=True)
    loss = function(z, groups, temperature=temperature, **options)[0]
    (loss_scale * loss).backward()
    results = (loss.detach(), z.grad, temperature.grad)
    return tuple(result.double().cpu() for result in results)


def error(value, exact):
    return ((value - exact).abs().max() / exact.abs().max().clamp_min(1e-300)).item()


def assert_close(z, groups, loss_bound=1e-6, grad_bound=1e-5, **options):
    """Loss within 1e-6 and gradients within 1e-5 of float64, as far as float32 logits carry: the
    loss within twice the error of plain torch of the same type and device, where that is more.
    """
    got = outcome(info_nce, z, groups, **options)
    exact = outcome(reference, z.cpu(), groups, torch.float64, **options)
    plain = outcome(reference, z, groups, **options)
    loss_bound = max(loss_bound, 2 * error(plain[0], exact[0]))
    if len(z) <= 1 or exact[1].abs().max() < 1e-12:
        assert got[1].abs().max() < 1e-6
        return
    assert error(got[0], exact[0]) <= loss_bound
    assert error(got[1], exact[1]) <= grad_bound
    assert (got[2] - exact[2]).abs() <= grad_bound * exact[2].abs() + loss_bound


def assert_half_close(z, groups, **options):
    """No worse than twice plain torch of the same type; the loss a hundred times better."""
    exact = outcome(reference, z.cpu(), groups, torch.float64, **options)
    plain = outcome(reference, z, groups, **options)
    got = outcome(info_nce, z, groups, **options)
    assert error(got[0], exact[0]) <= 1e-4
    assert error(got[1], exact[1]) <= 2 * error(plain[1], exact[1])


def share_of_anchors(z, start, count, denominator):
    options = {"anchor_start": start, "anchor_count": count, "denominator": denominator}
    if count == 0:
        loss, grad, _ = outcome(info_nce, z, labels(len(z), "few"), **options)
        assert loss == 0
        assert not grad.any()
    else:
        assert_close(z, labels(len(z), "few"), **options)
