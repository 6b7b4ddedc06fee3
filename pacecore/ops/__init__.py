"""The fused ops, as functions of tensors."""

from pacecore.ops.pace_clip import check_plan, pace_clip

__all__ = ["check_plan", "pace_clip"]
