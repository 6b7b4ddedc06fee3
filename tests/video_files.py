"""Video files made on the spot for tests, and what a plain decode from the start makes of them."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from pacecore.video.container import READ_AS_IT_IS

if TYPE_CHECKING:  # what only writes videos starts without torch
    from pacecore.frames import Frames

__all__ = [
    "luma",
    "planes_of",
    "reference_luma",
    "rgb_of",
    "stacked",
    "textured",
    "three_kinds",
    "write_fields",
    "write_pictures",
    "write_video",
]


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


def three_kinds(root: Path) -> Path:
    """Three classes of one video: MPEG-4, FFV1 of an odd size, full-range JPEG."""
    for name in ("a", "b", "c"):
        (root / name).mkdir()
    write_video(root / "a" / "one.avi", frames=20, size=(48, 64))
    write_video(root / "b" / "two.mkv", "ffv1", frames=12, size=(37, 51))
    write_video(root / "c" / "three.avi", "mjpeg", frames=9, pixel_format="yuvj420p")
    return root


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


def write_fields(path: Path, frames: int = 20, gop: int = 5) -> Path:
    """H.264 with a packet for each field: 32 x 32, samples as they are (I_PCM)."""

    def ue(*values: int) -> str:
        return "".join(f"{v + 1:0{2 * (v + 1).bit_length() - 1}b}" for v in values)

    def unit(header: int, bits: str) -> bytes:
        bits += "1" + "0" * (-(len(bits) + 1) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        for low in range(4):
            payload = payload.replace(bytes((0, 0, low)), bytes((0, 0, 3, low)))
        return bytes((0, 0, 1, header)) + payload

    def field(number: int, bottom: int) -> bytes:
        idr = number % gop == 0 and not bottom
        bits = ue(0, 7, 0) + f"{number % gop:04b}1{bottom}"  # one slice, of I
        bits += ue(number // gop % 2) + "00" if idr else "0"
        bits += ue(0, 1)
        for block in range(2):
            bits += ue(25)
            bits += "0" * (-len(bits) % 8)
            shades = 20 + (np.arange(384) * 3 + 7 * number + 20 * bottom + 31 * block) % 200
            bits += "".join(f"{shade:08b}" for shade in shades)
        return unit(0x65 if idr else 0x61, bits)

    sps = unit(0x67, f"{77:08b}{0:08b}{30:08b}" + ue(0, 0, 2, 1) + "0" + ue(1, 0) + "001000")
    pps = unit(0x68, ue(0, 0) + "00" + ue(0, 0, 0) + "000" + ue(0, 0, 0) + "100")
    raw = path.with_suffix(".h264")
    raw.write_bytes(
        b"".join(
            (sps + pps if number % gop == 0 else b"") + field(number, 0) + field(number, 1)
            for number in range(frames)
        )
    )
    with av.open(str(raw)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 50), stream
            target.mux(packet)
    return path


def reference_luma(path: Path) -> list[np.ndarray]:
    """Luma of every frame, decoded from the start by nothing but av."""
    with av.open(str(path), **READ_AS_IT_IS) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [_luma(frame) for frame in container.decode(video=0)]


def rgb_of(path: Path) -> list[np.ndarray]:
    """Every frame of a video or picture file, (H, W, 3) uint8, decoded by nothing but av."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _luma(frame: av.VideoFrame) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8)[: plane.line_size * frame.height]
    return rows.reshape(frame.height, plane.line_size)[:, : frame.width].copy()


def luma(frames: "Frames", row: int) -> np.ndarray:
    """Luma of one row of Frames."""
    return planes_of(frames, row)[0]


def planes_of(frames: "Frames", row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def stacked(frames: "Frames") -> list[np.ndarray]:
    """Of each frame the samples of its planes, one plane after the other."""
    return [np.concatenate([p.ravel() for p in planes_of(frames, r)]) for r in range(len(frames))]


def _rows(data: np.ndarray, offset: int, height: int, width: int, stride: int) -> np.ndarray:
    assert stride >= width
    assert offset + stride * (height - 1) + width <= len(data)
    return np.lib.stride_tricks.as_strided(data[offset:], (height, width), (stride, 1))
