"""From a decoder's picture to the planes that travel: which bytes, which matrix, which range."""

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pacecore.frames import FRAME_COLUMNS, FrameFormat, Frames, Matrix

__all__ = ["FrameSink", "UnsupportedFrameError"]

# Pictures are av.VideoFrame objects, whose attributes are used without importing av.
Picture = Any

_DIRECT = {"yuv420p", "yuvj420p", "yuva420p"}  # alpha is the fourth plane and left out
# Luma samples to one of chroma (across, down): the 8-bit planar format that keeps the sampling. Its
# chroma is then brought to 4:2:0 here, because libswscale's choice of siting differs between
# versions.
_SAMPLINGS = {(1, 1): "yuv444p", (2, 1): "yuv422p", (1, 2): "yuv440p", (4, 1): "yuv411p"}
# Codecs that centre chroma between luma columns.
_CENTRED = {"mjpeg", "mpeg1video", "h261", "h263", "theora", "vp3"}
_FULL_GREY = {
    "mjpeg", "png", "ffv1", "rawvideo", "utvideo", "qtrle", "gif", "tiff", "jpeg2000", "ffvhuff",
    "jpegls",
}  # fmt: skip
_MPEG, _JPEG = 1, 2  # AVColorRange
# AVColorSpace to ours; what is not named is read as BT.601, what decoders do with files that say
# nothing.
_MATRICES = {1: Matrix.BT709, 7: Matrix.BT709, 9: Matrix.BT2020, 10: Matrix.BT2020}
_FOREIGN = {8: "YCgCo", 11: "SMPTE 2085", 14: "ICtCp", 15: "IPT-C2"}
# libswscale: bilinear, full chroma input, accurate rounding, no shortcuts that differ between
# processors.
_FLAGS = 2 | 0x4000 | 0x40000 | 0x80000
# PyAV before 17 has no such keyword, and one thread.
_ONE_THREAD = {"threads": 1} if int(version("av").partition(".")[0]) >= 17 else {}


class UnsupportedFrameError(ValueError):
    """A picture that has no exact form in planar 4:2:0 or RGB."""


class FrameSink:
    """Collects pictures into one Frames: each plane is copied once, with the decoder's own row
    stride.

    capacity: how many pictures will come. codec: its name; of still pictures, each of which has its
    own, the attribute is that of the next. planar: RGB becomes YUV 4:2:0 too,
    BT.601, full range.
    """

    def __init__(self, capacity: int, codec: str, *, planar: bool = False) -> None:
        self._table = np.zeros((capacity, len(FRAME_COLUMNS)), dtype=np.int64)
        self._buffer = np.empty(0, dtype=np.uint8)
        self._planar = planar
        self.codec = codec
        self._kind: tuple | None = None
        self._direct: FrameFormat | None = None  # of pictures whose planes travel as they are
        self._used = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count == len(self._table)

    def add(self, picture: Picture) -> None:
        """Appends one picture. Raises UnsupportedFrameError."""
        kind = (
            picture.format.name,
            picture.height,
            picture.width,
            self.codec,
            picture.colorspace,
            picture.color_range,
        )
        if kind != self._kind:  # pictures of a video are hardly ever of two kinds
            self._kind = kind
            self._direct = _yuv_format(picture, self.codec) if kind[0] in _DIRECT else None
        form = self._direct
        if form is not None:
            planes, strides = _three(picture)
        else:
            planes, strides, form = _planes(picture, self.codec, self._planar)
        if min(strides) < 1:
            raise UnsupportedFrameError("its rows run upwards")
        need = sum(map(len, planes))
        if self._used + need > len(self._buffer):
            self._grow(need)
        offsets = []
        for plane in planes:
            self._buffer[self._used : self._used + len(plane)] = plane
            offsets.append(self._used)
            self._used += len(plane)
        planar = len(planes) == 3
        self._table[self._count] = (
            offsets[0],
            offsets[1] if planar else 0,
            offsets[2] if planar else 0,
            kind[1],
            kind[2],
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
        """Room for the rest at the size of this picture: pictures of a video hardly ever change
        their size.
        """
        buffer = np.empty(self._used + need * (len(self._table) - self._count), dtype=np.uint8)
        buffer[: self._used] = self._buffer[: self._used]
        self._buffer = buffer


def _planes(
    picture: Picture, codec: str, planar: bool
) -> tuple[list[np.ndarray], list[int], FrameFormat]:
    """The bytes of each plane, its row stride, and how they are meant, of what is not direct."""
    layout = picture.format
    if _is_rgb(layout):
        return _rgb(picture, planar)
    if _is_grey(layout):
        return _grey(picture, codec)
    form = _yuv_format(picture, codec)
    across, down = _sampling(picture)
    form = replace(form, centre_sited=form.centre_sited and across == 2)
    if (across, down) in _SAMPLINGS:
        planes, strides = _subsample(picture, across, down, form.full_range)
        return planes, strides, form
    return *_three(_convert(picture, "yuv420p", form.full_range)), form


def _yuv_format(picture: Picture, codec: str) -> FrameFormat:
    """What the file says of its YUV; of what it does not say, what decoders assume."""
    if picture.colorspace in _FOREIGN:
        raise UnsupportedFrameError(
            f"colour matrix {_FOREIGN[picture.colorspace]} is not supported"
        )
    return FrameFormat(
        matrix=_MATRICES.get(picture.colorspace, Matrix.BT601),
        full_range=picture.format.name.startswith("yuvj") or picture.color_range == _JPEG,
        centre_sited=codec in _CENTRED,
    )


def _sampling(picture: Picture) -> tuple[int, int]:
    """Luma samples to one of chroma, across and down."""
    chroma = picture.format.components[1]
    return round(picture.width / chroma.width), round(picture.height / chroma.height)


def _subsample(
    picture: Picture, across: int, down: int, full: bool
) -> tuple[list[np.ndarray], list[int]]:
    """4:2:0 from finer chroma: on even luma columns, between luma rows; weights 1 2 1 across, 1 1
    down.
    """
    kept = _SAMPLINGS[across, down]
    if picture.format.name not in (kept, kept.replace("yuv", "yuvj")):
        picture = _convert(picture, kept, full)
    planes = [_bytes(picture.planes[0], picture.height)]
    columns, rows = (picture.width + 1) // 2, (picture.height + 1) // 2
    for plane in picture.planes[1:3]:
        stride = plane.line_size
        chroma = _bytes(plane, plane.height).reshape(-1, stride)[:, : plane.width].astype(np.int32)
        chroma = _across(chroma, across, columns)  # times 4
        if down == 1:
            chroma = np.pad(chroma, ((0, 2 * rows - len(chroma)), (0, 0)), mode="edge")
            chroma = chroma[0::2] + chroma[1::2]
        else:
            chroma = 2 * chroma
        planes.append(((chroma + 4) >> 3).astype(np.uint8).ravel())
    return planes, [picture.planes[0].line_size, columns]


def _across(chroma: np.ndarray, across: int, columns: int) -> np.ndarray:
    """Four times the chroma at even luma columns; (rows, columns)."""
    if across == 2:
        return 4 * chroma
    padded = np.pad(chroma, ((0, 0), (1, 1)), mode="edge")
    if across == 1:
        return (padded[:, :-2] + 2 * chroma + padded[:, 2:])[:, 0::2]
    between = np.empty((len(chroma), 2 * chroma.shape[1]), dtype=np.int32)
    between[:, 0::2] = 4 * chroma
    between[:, 1::2] = 2 * (chroma + padded[:, 2:])
    return between[:, :columns]


def _rgb(picture: Picture, planar: bool) -> tuple[list[np.ndarray], list[int], FrameFormat]:
    """Packed RGB as it is, or as YUV."""
    if planar:
        # The J names the full range, which PyAV before 17 does not hand on otherwise.
        planes, strides = _subsample(_convert(picture, "yuvj444p", True), 1, 1, True)
        return planes, strides, FrameFormat(full_range=True)
    picture = _convert(picture, "rgb24", None)
    plane = picture.planes[0]
    return [_bytes(plane, picture.height)], [plane.line_size], FrameFormat(planar=False)


def _three(picture: Picture) -> tuple[list[np.ndarray], list[int]]:
    luma, blue, red = picture.planes[:3]
    rows = (picture.height + 1) // 2
    planes = [_bytes(luma, picture.height), _bytes(blue, rows), _bytes(red, rows)]
    return planes, [luma.line_size, blue.line_size]


def _bytes(plane: Any, rows: int) -> np.ndarray:
    return np.frombuffer(plane, dtype=np.uint8)[: plane.line_size * rows]


def _grey(picture: Picture, codec: str) -> tuple[list[np.ndarray], list[int], FrameFormat]:
    """Luma as it is, chroma at its middle."""
    # Where nothing is said, video codecs mean limited range (their standards' default), still and
    # lossless ones full.
    unsaid = picture.color_range not in (_MPEG, _JPEG)
    full = picture.color_range == _JPEG or (unsaid and codec in _FULL_GREY)
    if picture.format.name != "gray":
        picture = _convert(picture, "gray", None)  # libswscale keeps the range of grey
    luma = picture.planes[0]
    columns = (picture.width + 1) // 2
    chroma = np.full(columns * ((picture.height + 1) // 2), 128, dtype=np.uint8)
    # A grey JPEG among others is no change of format.
    form = FrameFormat(full_range=full, centre_sited=codec in _CENTRED)
    return [_bytes(luma, picture.height), chroma, chroma], [luma.line_size, columns], form


def _is_rgb(layout: Any) -> bool:
    return layout.is_rgb or layout.has_palette or layout.is_bayer or layout.name.startswith("xyz")


def _is_grey(layout: Any) -> bool:
    return layout.name.startswith(("gray", "ya8", "ya16", "yaf", "mono"))


def _convert(picture: Picture, name: str, full: bool | None) -> Picture:
    """libswscale to another pixel format; matrix and range stay (full None: as formats have it)."""
    span = 0 if full is None else _JPEG if full else _MPEG
    space = picture.colorspace if picture.colorspace in _MATRICES else 5  # 5: BT.601
    space = 9 if space == 10 else space  # of BT.2020 it knows the usual one, read alike here
    return picture.reformat(
        format=name,
        src_colorspace=space,
        dst_colorspace=space,
        src_color_range=span,
        dst_color_range=span,
        interpolation=_FLAGS,
        **_ONE_THREAD,
    )
