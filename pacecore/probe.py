"""The head of a linear probe, and how it is read as a linear layer like any other."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Probe", "folded", "is_probe"]

_NAMES = {
    "head.norm.running_mean",
    "head.norm.running_var",
    "head.linear.weight",
    "head.linear.bias",
}
# Of the variance, as in MAE. Features with a deviation of some 2e-3 have been seen.
_EPSILON = 1e-6


class Probe(nn.Module):
    """A linear classifier of standardised features, (B, D) -> (B, classes), for a frozen backbone:
    what it reaches does not go with the scale of the features, down to deviations of some 2e-3. He
    et al. do so too, in MAE.
    """

    def __init__(self, features: int, classes: int, *, dropout: float = 0.0):
        super().__init__()
        self.norm = _Standardised(features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        # A bf16 feature less its mean would keep few digits in bf16.
        return self.linear(self.dropout(self.norm(features.float())))


class _Standardised(nn.BatchNorm1d):
    """Features (B, D) less their mean, over their deviation: in training the batch's, of two clips
    or more, else the averages over all batches so far, which count alike.

    The backbone stands still, so that the first batch says as much as the last. Running averages
    of momentum 0.1 begin at variance 1, of which 100 steps leave 3e-5, more than a small feature's
    own. torch's `momentum=None` averages so too, but asks the tensor that counts batches for its
    value, which no CUDA graph can record and torch.compile breaks at.
    """

    def __init__(self, features: int):
        super().__init__(features, eps=_EPSILON, momentum=None, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        result = F.batch_norm(features, None, None, training=True, eps=self.eps)
        with torch.no_grad():
            variance, mean = torch.var_mean(features, dim=0)
            self.num_batches_tracked += 1
            share = 1.0 / self.num_batches_tracked
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        return result


def is_probe(state: Mapping[str, Tensor]) -> bool:
    """Whether weights are of a network with a `Probe` for a head."""
    return state.keys() >= _NAMES


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a probe's standardising worked into its linear layer, `head.weight` and
    `head.bias` as of any other head; others as they are.

        W (x - mean) / deviation + b  =  (W / deviation) x + (b - (W / deviation) mean)
    """
    if not is_probe(state):
        return dict(state)
    kept = {name: value for name, value in state.items() if not name.startswith("head.")}
    weight, bias = state["head.linear.weight"], state["head.linear.bias"]
    mean, variance = state["head.norm.running_mean"], state["head.norm.running_var"]
    scaled = weight.double() / (variance.double() + _EPSILON).sqrt()
    moved = bias.double() - scaled @ mean.double()
    return {**kept, "head.weight": scaled.to(weight.dtype), "head.bias": moved.to(bias.dtype)}
