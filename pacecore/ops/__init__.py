"""The fused ops, as functions of tensors."""

from pacecore.ops.info_nce import InfoNCE, info_nce

__all__ = ["InfoNCE", "info_nce"]
