"""The loss of pre-training: pace classification and contrast, over every clip of every rank."""

from torch import Tensor
from torch.nn import functional

from pacecore.config import CONTRASTS, TrainOptions
from pacecore.distributed import gather_rows, world_size
from pacecore.errors import PacecoreError
from pacecore.ops import info_nce

__all__ = ["pretraining_loss"]


def pretraining_loss(
    logits: Tensor, z: Tensor, labels: Tensor, videos: Tensor, options: TrainOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """lambda_cls * cross_entropy(pace) + lambda_ctr * contrastive: Eq. 1 to 3 of the paper.

    logits: (b, classes), z: (b, D), labels: (b,) int64 pace labels, videos: (b,) int64 video
    numbers, all of this rank's clips; the number of clips may differ between ranks. options: read
    are the weights lambda_*, contrast, denominator, z_norm and temperature.

    Both terms are means over the clips of all ranks, and every rank's clips are keys of every
    anchor. The returned loss is this rank's part times the number of ranks: its mean over the
    ranks is the loss of the whole batch, and averaging the gradients over the ranks, as
    DistributedDataParallel does, gives that loss's gradient. Beside it: figures for the log, each
    (), detached, scaled in the same way: "loss_cls", "accuracy", and with a contrast "loss_ctr",
    "positive_similarity", "negative_similarity", "nearest_is_positive", which are this rank's own.
    Raises PacecoreError for a contrast that is not one of CONTRASTS.
    """
    if options.contrast not in CONTRASTS:
        raise PacecoreError(
            f"contrast must be one of {', '.join(CONTRASTS)}, got {options.contrast!r}"
        )
    groups = videos if options.contrast == "context" else labels
    everyone = gather_rows(z, groups)
    share = len(z) * world_size() / max(len(everyone.rows), 1)
    # A sum over the clips divided by their number, so that a rank without clips gives 0, not NaN.
    count = max(len(z), 1)
    classification = functional.cross_entropy(logits, labels, reduction="sum") / count * share
    correct = (logits.detach().argmax(1) == labels).sum() / count * share
    metrics = {"loss_cls": classification.detach(), "accuracy": correct}
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
        metrics["positive_similarity"] = contrast.positive_similarity
        metrics["negative_similarity"] = contrast.negative_similarity
        metrics["nearest_is_positive"] = contrast.nearest_is_positive
    return loss, metrics
