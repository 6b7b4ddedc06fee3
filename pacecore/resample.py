"""Frames at another size, still planar YUV 4:2:0: what the store keeps.

Bilinear at half-pixel centres without antialiasing, as ops.pace_clip resizes, so that the luma of a
clip from the store is that of the clip from the file up to the rounding of its samples. Chroma is
kept at half the new size, which blurs what the file has finer. (libswscale's bilinear filter widens
when it shrinks, and would give other, smoother clips.)
"""

import numpy as np
import torch
from torch import Tensor

from pacecore.frames import Frames

__all__ = ["plane_shapes", "resample"]


def plane_shapes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of the Y, U and V plane of a frame of `size` (height, width)."""
    chroma = (size[0] + 1) // 2, (size[1] + 1) // 2
    return size, chroma, chroma


def resample(frames: Frames, size: tuple[int, int]) -> Tensor:
    """The planes of planar frames at `size`, packed tight: (F, h * w + 2 * ceil(h/2) * ceil(w/2)).

    Matrix, range and siting of the frames stay what they are.
    """
    width = sum(h * w for h, w in plane_shapes(size))
    packed = torch.empty(len(frames), width, dtype=torch.uint8, device="cpu")
    # Frames of a video are alike, but for streams that change their size.
    table = frames.table.numpy()
    layouts = table[:, 3:8]
    starts = np.flatnonzero(np.append(True, (layouts[1:] != layouts[:-1]).any(axis=1)))
    for first, stop in zip(starts, [*starts[1:], len(table)], strict=True):
        _resample_alike(frames.data, table[first:stop], size, packed[first:stop])
    return packed


def _resample_alike(data: Tensor, table: np.ndarray, size: tuple[int, int], out: Tensor) -> None:
    height, width, stride, chroma_stride, code = table[0, 3:8].tolist()
    column_kind = "between" if code & 16 else "even"
    data = data.contiguous()
    done, before = 0, data.storage_offset()  # as_strided counts from where the memory begins
    for plane, (shape, target) in enumerate(
        zip(plane_shapes((height, width)), plane_shapes(size), strict=True)
    ):
        strides = (chroma_stride if plane else stride, 1)
        source = torch.stack(
            [data.as_strided(shape, strides, before + int(offset)) for offset in table[:, plane]]
        )
        if (height, width) != size:
            kinds = ("between", column_kind) if plane else (None, None)
            source = _along_rows(source, *_taps(height, size[0], kinds[0]))
            source = _along_columns(source, *_taps(width, size[1], kinds[1]))
            source = source.round_().to(torch.uint8)
        count = target[0] * target[1]
        out[:, done : done + count] = source.reshape(len(table), count)
        done += count


def _taps(size_in: int, size_out: int, chroma: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: sample before, sample after, weight of the second, of every output sample.

    chroma: None for luma; "even": on even luma samples; "between": half a sample further.
    """
    if chroma is None:
        place = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
        last = size_in - 1
    else:
        shift = 1.0 if chroma == "between" else 0.5  # luma position + 1/2
        place = (2 * np.arange((size_out + 1) // 2) + shift) * size_in / size_out - shift
        place, last = place / 2, (size_in + 1) // 2 - 1
    place = place.clip(0, last)
    first = np.floor(place).astype(np.int64)
    weight = torch.from_numpy((place - first).astype(np.float32))
    return torch.from_numpy(first), torch.from_numpy(np.minimum(first + 1, last)), weight


def _along_rows(planes: Tensor, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    upper, lower = planes.index_select(1, first).float(), planes.index_select(1, second).float()
    return torch.lerp(upper, lower, weight[:, None])


def _along_columns(planes: Tensor, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(planes.index_select(2, first), planes.index_select(2, second), weight)
