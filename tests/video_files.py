"""Video files made on the spot for tests, and what a plain decode from the start makes of them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pacecore.frames import Frames

__all__ = ["luma", "planes_of", "reference_luma", "textured", "write_pictures", "write_video"]


def textured(number: int, height: int, width: int, pixel_format: str = "yuv420p") -> av.VideoFrame:
    """Frame `number` of a moving pattern; every frame differs from every other."""
    frame = av.VideoFrame(width, height, pixel_format)
    depth = {"10": 10, "12": 12, "16": 16}.get(pixel_format.removesuffix("le")[-2:], 8)
    kind = np.uint8 if depth == 8 else np.uint16
    for index, plane in enumerate(frame.planes):
        item = np.dtype(kind).itemsize
        rows = plane.buffer_size // plane.line_size
        y, x = np.mgrid[:rows, : plane.line_size // item]
        step = 3 if index == 0 else 1
        value = 40 + (x * 2 + y * step + number * 5 + 40 * index) % 160
        plane.update((value << (depth - 8)).astype(kind).tobytes())
    return frame


def write_video(
    path: Path,
    codec: str = "mpeg4",
    *,
    frames: int = 30,
    size: tuple[int, int] = (48, 64),
    pixel_format: str = "yuv420p",
    stamps: list[int] | None = None,
    rate: int = 25,
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    properties: dict | None = None,
    pictures: list[av.VideoFrame] | None = None,
) -> Path:
    """Encodes a moving pattern. size: (height, width). stamps: of each frame, in 1/rate seconds."""
    height, width = size
    if pictures is None:
        pictures = [textured(n, height, width, pixel_format) for n in range(frames)]
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for name, value in (properties or {}).items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            picture.pts = stamps[number] if stamps else number
            picture.time_base = Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> Path:
    """A folder of JPEG frames, img_1.jpg and so on."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture = [textured(number, *size, "yuvj420p")]
        write_video(
            folder / f"img_{number + 1}.jpg",
            "mjpeg",
            size=size,
            pixel_format="yuvj420p",
            pictures=picture,
            mux={"update": "1"},
        )
    return folder


def reference_luma(path: Path) -> list[np.ndarray]:
    """Luma of every frame, decoded from the start by nothing but av."""
    with av.open(str(path), metadata_errors="replace") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [_luma(frame) for frame in container.decode(video=0)]


def _luma(frame: av.VideoFrame) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8)[: plane.line_size * frame.height]
    return rows.reshape(frame.height, plane.line_size)[:, : frame.width].copy()


def luma(frames: Frames, row: int) -> np.ndarray:
    """Luma of one row of Frames."""
    return planes_of(frames, row)[0]


def planes_of(frames: Frames, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, U and V of one row of planar Frames."""
    y, u, v, height, width, stride, chroma_stride, code = frames.table[row].tolist()
    assert code & 1
    half = (height + 1) // 2, (width + 1) // 2
    data = frames.data.numpy()
    return (
        _rows(data, y, height, width, stride),
        _rows(data, u, *half, chroma_stride),
        _rows(data, v, *half, chroma_stride),
    )


def _rows(data: np.ndarray, offset: int, height: int, width: int, stride: int) -> np.ndarray:
    assert stride >= width
    assert offset + stride * (height - 1) + width <= len(data)
    return np.lib.stride_tricks.as_strided(data[offset:], (height, width), (stride, 1))
