"""The meaning of ops.info_nce in plain torch: the whole similarity matrix, any float type.

Oracle of the tests in float64, and the eager baseline of the benchmark.
"""

import torch

__all__ = ["info_nce"]

SMALLEST_NORM = 1e-12


def info_nce(
    z: torch.Tensor,
    groups: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    denominator: str = "anchor",
    normalize: bool = False,
    anchor_start: int = 0,
    anchor_count: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, mean positive and negative similarity and share of nearest that are positive, each ().

    Arguments as for ops.info_nce; memory n x n. Differentiable in z and temperature.
    """
    n = len(z)
    count = n - anchor_start if anchor_count is None else anchor_count
    anchors = slice(anchor_start, anchor_start + count)
    if normalize:
        norm = z.norm(dim=1, keepdim=True)
        vanishes = norm < SMALLEST_NORM
        z = torch.where(vanishes, 0.0, z / torch.where(vanishes, 1.0, norm))
    similarity = z @ z.T
    others = ~torch.eye(n, dtype=torch.bool, device=z.device)
    positive = (groups[:, None] == groups[None, :]) & others
    logits = (similarity / temperature).masked_fill(~others, float("-inf"))
    positives = positive.sum(1)
    if denominator == "batch":
        log_denominator = logits.flatten().logsumexp(0).expand(n)
    else:
        log_denominator = logits.logsumexp(1)
    mean_positive = logits.masked_fill(~positive, 0).sum(1) / positives.clamp_min(1)
    pulled = positives[anchors] > 0
    losses = torch.where(pulled, (log_denominator - mean_positive)[anchors], 0.0)
    loss = losses.sum() / max(count, 1)
    similarity, positive, others = similarity[anchors], positive[anchors], others[anchors]
    negative = others & ~positive
    lowest = float("-inf")
    nearest = similarity.masked_fill(~positive, lowest).amax(1) > similarity.masked_fill(
        ~negative, lowest
    ).amax(1)
    return (
        loss,
        similarity[positive].mean(),
        similarity[negative].mean(),
        nearest[pulled].to(z.dtype).mean(),
    )
