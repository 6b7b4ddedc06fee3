"""Pictures of what a network is fed: its input turned back into colours, clips as a sheet."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["FRAME_COLOURS", "clip_sheet", "framed_rows", "heat", "inscription", "to_rgb"]

FRAME_COLOURS = {"query": (40, 90, 220), "right": (30, 160, 60), "wrong": (210, 40, 40)}
# All that a pace is written with, so that no font is needed: a digit is a row of three dots.
_GLYPHS = {"0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717"}
_GLYPHS |= {"6": "74757", "7": "71122", "8": "75757", "9": "75717", "/": "11244", "-": "00700"}
_DOT_PX = 3


def to_rgb(clips: Tensor, mean: tuple, std: tuple, channel_order: str) -> np.ndarray:
    """Network input (B, 3, T, H, W) back to pictures (B, T, H, W, 3) uint8 RGB.

    It takes the input at its word: a wrong channel order or scale shows as wrong colours.
    """
    order = [2, 1, 0] if channel_order == "bgr" else [0, 1, 2]
    values = clips.float().cpu()[:, order]
    scale = torch.tensor(std).view(1, 3, 1, 1, 1)
    values = values * scale + torch.tensor(mean).view(1, 3, 1, 1, 1)
    return values.clamp(0, 255).round().byte().permute(0, 2, 3, 4, 1).numpy()


def inscription(name: str) -> np.ndarray:
    """The name of a pace, such as "1/3" or "-2", black on white: (15, 12 * len(name), 3) uint8."""
    rows = np.array([[int(row) for row in _GLYPHS[character]] for character in name])
    dots = rows.T[:, :, None] >> np.array([2, 1, 0, 3]) & 1  # (5, n, 4), the last one blank
    pixels = np.kron(dots.reshape(5, -1), np.ones((_DOT_PX, _DOT_PX), int))
    return np.where(pixels, 0, 255).astype(np.uint8)[:, :, None].repeat(3, 2)


def clip_sheet(
    pictures: np.ndarray, *, names: Sequence[str] = (), gap: int = 4, columns: int = 16
) -> np.ndarray:
    """Clips (B, T, H, W, 3) as rows of frames, at most `columns` of them evenly spaced, each row
    after the name of its pace where `names` has them.
    """
    clips, frames, height, width, _ = pictures.shape
    chosen = np.linspace(0, frames - 1, min(columns, frames)).astype(int)
    margin = gap + max((inscription(name).shape[1] + gap for name in names), default=0)
    sheet = np.full(
        (clips * (height + gap) + gap, margin + len(chosen) * (width + gap), 3), 255, np.uint8
    )
    for row in range(clips):
        top = gap + row * (height + gap)
        for column, frame in enumerate(chosen):
            left = margin + column * (width + gap)
            sheet[top : top + height, left : left + width] = pictures[row, frame]
        if names:
            name = inscription(names[row])[:height]
            middle = top + (height - len(name)) // 2
            sheet[middle : middle + len(name), gap : gap + name.shape[1]] = name
    return sheet


def framed_rows(rows: np.ndarray, frames: list[list[str]]) -> np.ndarray:
    """Rows of pictures (rows, n, H, W, 3) uint8 as a sheet; frames: FRAME_COLOURS of each."""
    border = 4
    height, width = rows.shape[2:4]
    colours = np.array([[FRAME_COLOURS[name] for name in names] for names in frames], np.uint8)
    cells = np.tile(colours[:, :, None, None], (height + 2 * border, width + 2 * border, 1))
    cells[:, :, border:-border, border:-border] = rows
    return clip_sheet(cells, columns=cells.shape[1])


def heat(values: np.ndarray) -> np.ndarray:
    """Values 0..1 of any shape as colours (..., 3) uint8: blue, green, yellow, red."""
    steps = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    colours = np.array(
        [(0, 0, 140), (0, 120, 255), (60, 220, 120), (255, 220, 0), (220, 0, 0)], dtype=np.float64
    )
    parts = [np.interp(values, steps, colours[:, channel]) for channel in range(3)]
    return np.stack(parts, axis=-1).round().astype(np.uint8)
