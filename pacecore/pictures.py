"""Pictures of what a network is fed: its input turned back into colours, clips as a sheet."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["FRAME_COLOURS", "clip_sheet", "framed_rows", "heat", "to_rgb"]

FRAME_COLOURS = {"query": (40, 90, 220), "right": (30, 160, 60), "wrong": (210, 40, 40)}


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


def framed_rows(
    rows: list[np.ndarray], frames: list[list[str]], *, border: int = 4, gap: int = 4
) -> np.ndarray:
    """Rows of pictures, each (n, H, W, 3) uint8, of one size; frames: FRAME_COLOURS of each."""
    height, width = rows[0].shape[1:3]
    columns = max(map(len, rows))
    down, across = height + 2 * border + gap, width + 2 * border + gap
    sheet = np.full((len(rows) * down + gap, columns * across + gap, 3), 255, np.uint8)
    for row, (pictures, names) in enumerate(zip(rows, frames, strict=True)):
        for column, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            top, left = gap + row * down, gap + column * across
            cell = sheet[top : top + height + 2 * border, left : left + width + 2 * border]
            cell[:] = FRAME_COLOURS[name]
            cell[border : border + height, border : border + width] = picture
    return sheet


def heat(values: np.ndarray) -> np.ndarray:
    """Values 0..1 of any shape as colours (..., 3) uint8: blue, green, yellow, red."""
    steps = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    colours = np.array(
        [(0, 0, 140), (0, 120, 255), (60, 220, 120), (255, 220, 0), (220, 0, 0)], dtype=np.float64
    )
    parts = [np.interp(values, steps, colours[:, channel]) for channel in range(3)]
    return np.stack(parts, axis=-1).round().astype(np.uint8)
