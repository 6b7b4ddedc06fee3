"""The fused ops, as functions of tensors."""

from pacecore.ops.info_nce import InfoNCE, info_nce
from pacecore.ops.pace_clip import check_plan, pace_clip

__all__ = ["InfoNCE", "check_plan", "info_nce", "pace_clip"]
