"""The loss of pre-training: pace classification and contrast, over every clip of every rank."""

import torch
from torch import Tensor
from torch.nn import functional

from pacecore.config import TrainOptions
from pacecore.distributed import Gathered, gather_rows, world_size
from pacecore.ops import InfoNCE, info_nce

__all__ = ["pretraining_loss"]


def pretraining_loss(
    logits: Tensor, z: Tensor, labels: Tensor, videos: Tensor, options: TrainOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """lambda_cls * cross_entropy(pace) + lambda_ctr * contrastive: Eq. 4 of the paper, of 1 to 3.

    logits: (b, classes), z: (b, D), labels: (b,) int64 pace labels, videos: (b,) int64 video
    numbers, all of this rank's clips; the number of clips may differ between ranks. options: read
    are the weights lambda_*, contrast, denominator, z_norm and temperature.

    Both terms are means over the clips of all ranks, and every rank's clips are keys of every
    anchor. The returned loss is this rank's part times the number of ranks: its mean over the
    ranks is the loss of the whole batch, and averaging the gradients over the ranks, as
    DistributedDataParallel does, gives that loss's gradient. Beside it: figures for the log, each
    (), detached, whose mean over the ranks is the whole batch's: "loss_cls", "accuracy",
    "z_spread", and with a contrast "loss_ctr", "positive_similarity", "negative_similarity",
    "nearest_is_positive".
    """
    groups = videos if options.contrast == "context" else labels
    everyone = gather_rows(z, groups)
    share = len(z) * world_size() / max(len(everyone.rows), 1)
    # A sum over the clips divided by their number, so that a rank without clips gives 0, not NaN.
    count = max(len(z), 1)
    classification = functional.cross_entropy(logits, labels, reduction="sum") / count * share
    correct = (logits.detach().argmax(1) == labels).sum() / count * share
    metrics = {
        "loss_cls": classification.detach(),
        "accuracy": correct,
        "z_spread": _spread(everyone.rows.detach()),
    }
    loss = options.lambda_cls * classification
    if options.contrast != "none":
        contrast = info_nce(
            everyone.rows,
            everyone.groups,
            temperature=options.temperature,
            denominator=options.denominator,
            normalize=options.z_norm,
            anchor_start=everyone.start,
            anchor_count=len(z),
        )
        loss = loss + options.lambda_ctr * share * contrast.loss
        metrics["loss_ctr"] = contrast.loss.detach() * share
        metrics |= _of_whole_batch(contrast, everyone, len(z))
    return loss, metrics


def _of_whole_batch(contrast: InfoNCE, everyone: Gathered, count: int) -> dict[str, Tensor]:
    """The similarities of this rank's `count` anchors, scaled so that their mean over the ranks is
    that of all anchors: by how many pairs, or anchors with a positive, each is a mean over.
    """
    figures = {
        "positive_similarity": contrast.positive_similarity,
        "negative_similarity": contrast.negative_similarity,
        "nearest_is_positive": contrast.nearest_is_positive,
    }
    if world_size() == 1:
        return figures
    groups = everyone.groups
    ordered = groups.sort().values
    last, first = (torch.searchsorted(ordered, groups, right=right) for right in (True, False))
    positives = last - first - 1  # (n,) of each row
    averaged_over = {
        "positive_similarity": positives,
        "negative_similarity": len(groups) - 1 - positives,
        "nearest_is_positive": positives > 0,
    }
    for name, counts in averaged_over.items():
        own = counts[everyone.start : everyone.start + count].sum()
        figure = figures[name].where(own > 0, 0.0)  # NaN where this rank has nothing for it
        figures[name] = figure * own * world_size() / counts.sum()
    return figures


def _spread(z: Tensor) -> Tensor:
    """How far embeddings (B, D) lie apart: rms distance to their mean over their rms length.

    1 for unrelated directions, 0 for a network that gives every clip the same embedding.
    """
    length = z.square().sum(dim=1).mean()
    return ((z - z.mean(dim=0)).square().sum(dim=1).mean() / length.clamp_min(1e-30)).sqrt()
