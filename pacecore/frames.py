"""Decoded frames as they travel: one byte buffer and a table of where each frame lies in it."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pacecore.errors import PacecoreError

__all__ = ["FRAME_COLUMNS", "FrameFormat", "Frames", "Matrix", "concatenate", "shifted"]

# Columns of Frames.table, in order; the enum Column in csrc/pace_clip_math.h mirrors them.
FRAME_COLUMNS = (
    # bytes from the start of data to the first luma sample; of packed RGB: to the first pixel
    "y_offset",
    "u_offset",  # bytes to the first Cb sample; 0 for packed RGB
    "v_offset",  # bytes to the first Cr sample; 0 for packed RGB
    "height",  # rows of the frame, any number from 1
    # columns of the frame, any number from 1; odd ones have (width + 1) // 2 chroma columns
    "width",
    "stride",  # bytes from one row of luma (or packed RGB) to the next
    "chroma_stride",  # bytes from one row of chroma to the next; 0 for packed RGB
    "format",  # a FrameFormat code
)


class Matrix(IntEnum):
    """The luma and chroma coefficients of a YUV frame."""

    BT601 = 0
    BT709 = 1
    BT2020 = 2  # non-constant luminance


@dataclass(frozen=True)
class FrameFormat:
    """How the bytes of a frame are meant; the defaults are those of UCF101's MPEG-4 files."""

    planar: bool = True  # planar YUV 4:2:0; False: packed RGB, 3 bytes a pixel
    matrix: Matrix = Matrix.BT601
    full_range: bool = False  # Y, U, V over 0..255 (JPEG); False: 16..235 and 16..240
    # Chroma centred between luma columns (JPEG, MPEG-1); False: on even ones.
    centre_sited: bool = False

    @property
    def code(self) -> int:
        """The table's `format` column: bit 0 planar, bits 1 to 2 matrix, bit 3 full range, bit 4
        centre-sited.
        """
        if not self.planar:
            return 0
        return 1 | int(self.matrix) << 1 | int(self.full_range) << 3 | int(self.centre_sited) << 4


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of any sizes and formats in one buffer.

    data: (N,) uint8, all planes of all frames. table: (F, 8) int64, one row a frame, columns
    FRAME_COLUMNS, on the same device. Rows may point anywhere in data, share bytes, and have
    strides wider than the frame.
    """

    data: Tensor  # (N,) uint8
    table: Tensor  # (F, 8) int64

    @classmethod
    def of_rgb(cls, pictures: Tensor) -> "Frames":
        """Frames of pictures (F, H, W, 3) uint8, packed RGB; of contiguous ones without a copy."""
        rule = "Frames.of_rgb: pictures must be a tensor (F, H, W, 3) uint8"
        if not isinstance(pictures, Tensor):
            raise PacecoreError(f"{rule}, got {type(pictures).__name__}")
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[3] != 3:
            raise PacecoreError(f"{rule}, got {pictures.dtype} {tuple(pictures.shape)}")
        count, height, width, _ = pictures.shape
        table = torch.zeros(count, len(FRAME_COLUMNS), dtype=torch.int64)
        table[:, 0] = torch.arange(count) * (height * width * 3)
        table[:, 3:6] = torch.tensor([height, width, width * 3])
        table[:, 7] = FrameFormat(planar=False).code
        return cls(pictures.reshape(-1), table.to(pictures.device))

    @classmethod
    def of_yuv420p(
        cls, data: Tensor, size: tuple[int, int], kind: FrameFormat | None = None
    ) -> "Frames":
        """Frames of `size` (height, width) one after another in `data` (N,) uint8, of each all of
        Y, of Cb and of Cr, as a decoder writes raw yuv420p. kind: by default FrameFormat().
        """
        rule = "Frames.of_yuv420p: data must be a tensor (N,) uint8 of whole frames"
        if not isinstance(data, Tensor):
            raise PacecoreError(f"{rule}, got {type(data).__name__}")
        height, width = size
        luma, columns = height * width, (width + 1) // 2
        chroma = (height + 1) // 2 * columns
        each = luma + 2 * chroma
        if data.dtype != torch.uint8 or data.dim() != 1 or min(size) < 1 or len(data) % each:
            got = f"{data.dtype} {tuple(data.shape)} for {height} x {width}"
            raise PacecoreError(f"{rule}, got {got}")
        kind = kind or FrameFormat()
        if not kind.planar:
            raise PacecoreError(f"Frames.of_yuv420p: kind must be planar, got {kind}")
        row = torch.tensor([0, luma, luma + chroma, height, width, width, columns, kind.code])
        table = row.repeat(len(data) // each, 1)
        table[:, :3] += each * torch.arange(len(table))[:, None]
        return cls(data, table.to(data.device))

    def __len__(self) -> int:
        return self.table.shape[0]

    def to(self, device: torch.device | str) -> "Frames":
        """The same frames on another device."""
        return Frames(self.data.to(device), self.table.to(device))


def shifted(table: Tensor, start: int) -> Tensor:
    """A copy of Frames.table, (F, 8) int64, for data that begin `start` bytes later."""
    table = table.clone()
    planar = table[:, 7] & 1
    table[:, 0] += start
    table[:, 1] += start * planar
    table[:, 2] += start * planar
    return table


def concatenate(parts: list[Frames]) -> Frames:
    """One Frames of all frames of `parts`, in order: row numbers shift by the lengths of the parts
    before.
    """
    tables, start = [], 0
    for part in parts:
        tables.append(shifted(part.table, start))
        start += part.data.numel()
    return Frames(torch.cat([part.data for part in parts]), torch.cat(tables))
