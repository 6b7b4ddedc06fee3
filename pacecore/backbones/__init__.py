"""The networks: clips (B, 3, T, H, W) in, features (B, D) out."""

from collections.abc import Sequence
from numbers import Integral, Real

from pacecore.backbones.base import Backbone
from pacecore.backbones.c3d import C3D
from pacecore.backbones.features import stage_features
from pacecore.backbones.residual import R3D, R2Plus1D
from pacecore.backbones.s3dg import S3DG
from pacecore.errors import PacecoreError

__all__ = ["BACKBONES", "DEPTHS", "Backbone", "build_backbone", "stage_features"]

BACKBONES: dict[str, type[Backbone]] = {"c3d": C3D, "r3d": R3D, "r21d": R2Plus1D, "s3dg": S3DG}

DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}
"""Blocks in the four residual stages, by the count of layers that gives a ResNet its number."""


def build_backbone(
    name: str, depth: int | Sequence[int] | None = None, width: float = 1.0
) -> Backbone:
    """The network `name`: c3d, r3d, r21d or s3dg, its fresh weights drawn from torch's generator.

    depth: of r3d and r21d: 10 (or None), one block a stage, which is what the paper calls R3D-18
        and R(2+1)D (14.4 million parameters); 18, two blocks a stage (33.2 million); or the four
        counts.
    width: factor on every channel count but the input's, rounded to multiples of 8; the paper's
        is 1.

    Returns a module: clips (B, 3, T, H, W) -> features (B, D) with D = `.feature_dim`; the maps of
    its `.stage_names` come from `.maps(clips, names)`. Raises PacecoreError for a network, depth or
    width that does not exist.
    """
    if name not in tuple(BACKBONES):
        raise PacecoreError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    if not isinstance(width, Real) or not 0 < width <= 4:
        raise PacecoreError(f"width of a backbone must be a number in (0, 4], got {width!r}")
    kind = BACKBONES[name]
    if name not in ("r3d", "r21d"):
        if depth is not None:
            raise PacecoreError(f"{name} has one depth only: leave depth out, got {depth}")
        return kind(width=width)
    return kind(_blocks(depth), width=width)


def _blocks(depth: int | Sequence[int] | None) -> tuple[int, ...]:
    if depth is None:
        return DEPTHS[10]
    if isinstance(depth, Integral):
        blocks = DEPTHS.get(depth, ())
    else:
        blocks = tuple(depth) if isinstance(depth, Sequence) else ()
    if len(blocks) != 4 or not all(isinstance(n, int) and n >= 1 for n in blocks):
        known = ", ".join(map(str, DEPTHS))
        raise PacecoreError(
            f"depth must be one of {known} or four block counts of at least 1, got {depth!r}"
        )
    return blocks
