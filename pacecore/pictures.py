"""Pictures of what a network is fed: its input turned back into colours, clips as a sheet."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["clip_sheet", "to_rgb"]


def to_rgb(clips: Tensor, mean: tuple, std: tuple, channel_order: str) -> np.ndarray:
    """Network input (B, 3, T, H, W) back to pictures (B, T, H, W, 3) uint8 RGB.

    It takes the input at its word: a wrong channel order or scale shows as wrong colours.
    """
    order = [2, 1, 0] if channel_order == "bgr" else [0, 1, 2]
    values = clips.float().cpu()[:, order]
    scale = torch.tensor(std).view(1, 3, 1, 1, 1)
    values = values * scale + torch.tensor(mean).view(1, 3, 1, 1, 1)
    return values.clamp(0, 255).round().byte().permute(0, 2, 3, 4, 1).numpy()


def clip_sheet(pictures: np.ndarray, *, gap: int = 4, columns: int = 16) -> np.ndarray:
    """Clips (B, T, H, W, 3) as rows of frames, at most `columns` of them evenly spaced."""
    clips, frames, height, width, _ = pictures.shape
    chosen = np.linspace(0, frames - 1, min(columns, frames)).astype(int)
    sheet = np.full(
        (clips * (height + gap) + gap, len(chosen) * (width + gap) + gap, 3), 255, np.uint8
    )
    for row in range(clips):
        for column, frame in enumerate(chosen):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            sheet[top : top + height, left : left + width] = pictures[row, frame]
    return sheet
