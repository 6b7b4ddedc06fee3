"""What every backbone is: named stages run one after another, and the average of the last map."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pacecore.errors import PacecoreError

__all__ = ["Backbone", "multiple_of_8", "scale_channels"]


class Backbone(nn.Module):
    """A 3D network whose children named in `stage_names` run in that order.

    forward: clips (B, 3, T, H, W) -> features (B, feature_dim), the last map's mean over T, H, W.

    `p4_stage` and `p4_pool` say how the features called p4 in retrieval are made: the stage, and
    the max-pooling kernel over (T, H, W) that follows it (None: the stage's map as it is).

    With `checkpointing` set, training keeps only the maps between stages and computes the rest
    again in the backward pass: less memory, more time, the same gradients and running averages.
    Within torch.compile such stages are run uncompiled.

    Weights start as torch's layers do (uniform, Kaiming with a = sqrt(5)), which is how the
    published networks start. Every convolution is followed by a batch norm, so the scale of its
    weights leaves the outputs alone, but it sets how far a step of a given learning rate turns
    them: the paper's learning rates go with this start.
    """

    stage_names: tuple[str, ...] = ()
    smallest_clip: tuple[int, int] = (1, 1)  # frames, pixels a side: its map outlasts the poolings
    p4_stage: str = ""
    p4_pool: tuple[int, int, int] | None = None

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.checkpointing = False

    def forward(self, clips: Tensor) -> Tensor:
        last = self.stage_names[-1]
        return self.maps(clips, [last])[last].mean(dim=(2, 3, 4))

    def maps(self, clips: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The maps (B, C, T', H', W') after the named stages, from one forward pass.

        Stages past the last one named do not run. Raises PacecoreError for a name that is no stage,
        and for clips of another shape or smaller than `smallest_clip`.
        """
        wanted = set(names)
        if unknown := sorted(wanted - set(self.stage_names)):
            raise PacecoreError(
                f"{type(self).__name__}: the stages are {', '.join(self.stage_names)}, "
                f"got {unknown[0]!r}"
            )
        if clips.dim() != 5 or clips.shape[1] != 3:
            raise PacecoreError(
                f"{type(self).__name__}: clips must be (B, 3, T, H, W), got {tuple(clips.shape)}"
            )
        frames, side = self.smallest_clip
        if clips.shape[2] < frames or min(clips.shape[3:]) < side:
            rule = f"clips must have {frames} frames of {side} x {side} or more"
            raise PacecoreError(
                f"{type(self).__name__}: {rule}, got {tuple(clips.shape[2:])} (T, H, W)"
            )
        found: dict[str, Tensor] = {}
        features = clips
        for name in self.stage_names:
            if len(found) == len(wanted):
                break
            features = self._run(getattr(self, name), features)
            if name in wanted:
                found[name] = features
        return found

    def _run(self, stage: nn.Module, features: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return stage(features)
        if torch.compiler.is_dynamo_compiling():  # which takes no context of one's own, and so
            # runs this uncompiled, or with fullgraph shows the error.
            raise PacecoreError(f"{type(self).__name__}: checkpointing is not compiled, got True")
        return checkpoint(
            stage,
            features,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _StatisticsKept(stage)),
        )


class _StatisticsKept:
    """Lets the second run of a batch through `stage` leave the running averages as they are; the
    third too, as a graph that is retained runs it again for each backward pass.
    """

    def __init__(self, stage: nn.Module) -> None:
        norms = [m for m in stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._norms = [norm for norm in norms if norm.num_batches_tracked is not None]

    def __enter__(self) -> None:
        self._before = [(n.momentum, n.num_batches_tracked.clone()) for n in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self._norms, self._before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def scale_channels(channels: int, width: float) -> int:
    """`channels` thinned by `width`: as they are at 1, else the nearest multiple of 8, at least 8.

    Vector units of CPUs and tensor cores both work on groups of 8; a ragged rest costs as much as a
    whole group.
    """
    return channels if width == 1 else multiple_of_8(channels * width)


def multiple_of_8(channels: float) -> int:
    return max(8, round(channels / 8) * 8)
