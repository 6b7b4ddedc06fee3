"""From a decoder's picture to the planes that travel: which bytes, which matrix, which range."""

from typing import Any

import numpy as np
import torch

from pacecore.frames import FRAME_COLUMNS, FrameFormat, Frames, Matrix

__all__ = ["FrameSink", "UnsupportedFrameError"]

# Pictures are av.VideoFrame objects, whose attributes are used without importing av.
Picture = Any

_DIRECT = {"yuv420p", "yuvj420p", "yuva420p"}  # alpha is the fourth plane and left out
_CENTRED = {"mjpeg", "mpeg1video"}  # codecs that centre chroma between luma columns
_MPEG, _JPEG = 1, 2  # AVColorRange
# AVColorSpace to ours; what is not named is read as BT.601, what decoders do with files that say nothing.
_MATRICES = {1: Matrix.BT709, 7: Matrix.BT709, 9: Matrix.BT2020, 10: Matrix.BT2020}
_FOREIGN = {8: "YCgCo", 11: "SMPTE 2085", 14: "ICtCp", 15: "IPT-C2"}
# libswscale: bilinear, full chroma input, accurate rounding, no shortcuts that differ between processors.
_FLAGS = 2 | 0x4000 | 0x40000 | 0x80000


class UnsupportedFrameError(ValueError):
    """A picture that has no exact form in planar 4:2:0 or RGB."""


class FrameSink:
    """Collects pictures into one Frames: each plane is copied once, with the decoder's own row stride.

    capacity: how many pictures will come. size: (height, width) that libswscale resizes to, bilinear, in 4:2:0.
    """

    def __init__(self, capacity: int, size: tuple[int, int] | None = None) -> None:
        self._table = np.zeros((capacity, len(FRAME_COLUMNS)), dtype=np.int64)
        self._buffer = np.empty(0, dtype=np.uint8)
        self._size = size
        self._used = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count == len(self._table)

    def add(self, picture: Picture, *, centred: bool = False) -> None:
        """Appends one picture. centred: its codec centres chroma. Raises UnsupportedFrameError."""
        planes, strides, form = _planes(picture, self._size, centred)
        need = sum(map(len, planes))
        if self._used + need > len(self._buffer):
            self._grow(need)
        offsets = []
        for plane in planes:
            self._buffer[self._used : self._used + len(plane)] = plane
            offsets.append(self._used)
            self._used += len(plane)
        height, width = self._size or (picture.height, picture.width)
        planar = len(planes) == 3
        self._table[self._count] = (
            offsets[0],
            offsets[1] if planar else 0,
            offsets[2] if planar else 0,
            height,
            width,
            strides[0],
            strides[1] if planar else 0,
            form.code,
        )
        self._count += 1

    def frames(self) -> Frames:
        """All that was added; the sink must not be used afterwards."""
        table = torch.from_numpy(self._table[: self._count])
        return Frames(torch.from_numpy(self._buffer[: self._used]), table)

    def _grow(self, need: int) -> None:
        """Room for the rest at the size of this picture: pictures of a video hardly ever change their size."""
        buffer = np.empty(self._used + need * (len(self._table) - self._count), dtype=np.uint8)
        buffer[: self._used] = self._buffer[: self._used]
        self._buffer = buffer


def _planes(
    picture: Picture, size: tuple[int, int] | None, centred: bool
) -> tuple[list[np.ndarray], list[int], FrameFormat]:
    """The bytes of each plane, its row stride, and how they are meant."""
    name, layout = picture.format.name, picture.format
    if size == (picture.height, picture.width):
        size = None
    if _is_rgb(layout):
        # The store keeps 4:2:0 only; pictures on their own stay RGB.
        if size is None:
            picture = _convert(picture, "rgb24", None, None)
            plane = picture.planes[0]
            return [_bytes(plane, picture.height)], [plane.line_size], FrameFormat(planar=False)
        picture = _convert(picture, "yuv420p", size, None, to_bt601=True)
        return *_three(picture), FrameFormat(centre_sited=True)
    full = _is_full_range(picture)
    if _is_grey(layout):
        return _grey(picture, size, full)
    if picture.colorspace in _FOREIGN:
        raise UnsupportedFrameError(f"colour matrix {_FOREIGN[picture.colorspace]} is not supported")
    matrix = _MATRICES.get(picture.colorspace, Matrix.BT601)
    if name not in _DIRECT or size is not None:
        # libswscale centres what it subsamples; the same subsampling keeps its place.
        centred = centred or layout.components[1].width == picture.width > 1
        picture = _convert(picture, "yuv420p", size, full)
    return *_three(picture), FrameFormat(True, matrix, full, centred)


def _three(picture: Picture) -> tuple[list[np.ndarray], list[int]]:
    luma, *chroma = picture.planes[:3]
    rows = (picture.height, (picture.height + 1) // 2, (picture.height + 1) // 2)
    planes = [luma, *chroma]
    return [_bytes(plane, count) for plane, count in zip(planes, rows, strict=True)], [
        luma.line_size,
        chroma[0].line_size,
    ]


def _bytes(plane: Any, rows: int) -> np.ndarray:
    return np.frombuffer(plane, dtype=np.uint8)[: plane.line_size * rows]


def _grey(
    picture: Picture, size: tuple[int, int] | None, full: bool
) -> tuple[list[np.ndarray], list[int], FrameFormat]:
    """Luma as it is, chroma at its middle."""
    if picture.format.name != "gray" or size is not None:
        picture = _convert(picture, "gray", size, None)  # libswscale keeps the range of grey
    luma = picture.planes[0]
    columns = (picture.width + 1) // 2
    chroma = np.full(columns * ((picture.height + 1) // 2), 128, dtype=np.uint8)
    form = FrameFormat(full_range=full)
    return [_bytes(luma, picture.height), chroma, chroma], [luma.line_size, columns], form


def _is_rgb(layout: Any) -> bool:
    return layout.is_rgb or layout.has_palette or layout.is_bayer or layout.name.startswith("xyz")


def _is_grey(layout: Any) -> bool:
    return layout.name.startswith(("gray", "ya8", "ya16", "yaf", "mono"))


def _is_full_range(picture: Picture) -> bool:
    if picture.format.name.startswith(("yuvj", "mono")):
        return True
    return picture.color_range == _JPEG


def _convert(
    picture: Picture,
    name: str,
    size: tuple[int, int] | None,
    full: bool | None,
    *,
    to_bt601: bool = False,
) -> Picture:
    """libswscale to another pixel format or size; matrix and range stay what they are (full None: as the format has it)."""
    height, width = size or (picture.height, picture.width)
    span = 0 if full is None else _JPEG if full else _MPEG
    space = picture.colorspace if picture.colorspace in _MATRICES else 5  # 5: BT.601
    return picture.reformat(
        width=width,
        height=height,
        format=name,
        src_colorspace=space,
        dst_colorspace=5 if to_bt601 else space,
        src_color_range=span,
        dst_color_range=_MPEG if to_bt601 else span,
        interpolation=_FLAGS,
        threads=1,
    )
