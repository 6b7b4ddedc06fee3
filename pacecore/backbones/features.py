"""The features that retrieval compares, by the names that VCOP gave them."""

import torch.nn.functional as F
from torch import Tensor

from pacecore.backbones.base import Backbone
from pacecore.errors import PacecoreError

__all__ = ["stage_features"]

FEATURES = ("p4", "p5", "gap")


def stage_features(backbone: Backbone, clips: Tensor, stage: str, pool: str = "max") -> Tensor:
    """Features (B, D) of clips (B, 3, T, H, W).

    p4: the map before the last stage, at 16 x 112 x 112 flattened from 256 x 2 x 7 x 7 (r3d, r21d:
        conv4 max-pooled by 2 in all axes) or 512 x 2 x 7 x 7 (c3d: pool4); s3dg: 832 channels of
        mixed4f max-pooled by 2.
    p5: the last map, max-pooled by (1, 2, 2) and flattened: 512 x 2 x 3 x 3 = 9216.
    gap: the last map's global average, as `backbone(clips)`.

    pool="gap" takes the global average of the p4 or p5 map in place of pooling and flattening.
    """
    if stage not in FEATURES:
        raise PacecoreError(f"features must be one of {', '.join(FEATURES)}, got {stage!r}")
    if pool not in ("max", "gap"):
        raise PacecoreError(f"pool must be max or gap, got {pool!r}")
    if stage == "gap":
        return backbone(clips)
    if stage == "p4":
        name, kernel = backbone.p4_stage, backbone.p4_pool
    else:
        name, kernel = backbone.stage_names[-1], (1, 2, 2)
    features = backbone.maps(clips, [name])[name]
    if pool == "gap":
        return features.mean(dim=(2, 3, 4))
    if kernel is None:
        return features.flatten(1)
    if any(size < k for size, k in zip(features.shape[2:], kernel, strict=True)):
        raise PacecoreError(
            f"features {stage}: clips of {tuple(clips.shape[2:])} (T, H, W) leave a {name} map of "
            f"{tuple(features.shape[2:])}, smaller than its pooling {kernel}; use pool gap"
        )
    return F.max_pool3d(features, kernel).flatten(1)
