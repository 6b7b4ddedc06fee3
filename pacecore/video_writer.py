"""Writes RGB frames to a video file, or one of them to a PNG."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from pacecore.errors import PacecoreError
from pacecore.files import aside

__all__ = ["has_codec", "video_encoder", "write_png", "write_video"]

_ENCODERS = {  # in order of preference, with the options that make files small and repeatable
    "libx264": {"preset": "veryfast", "crf": "20", "threads": "1"},
    "mpeg4": {"qscale": "3", "threads": "1"},
}


def has_codec(name: str, mode: str) -> bool:
    """Whether PyAV's FFmpeg has a codec to read ("r") or write ("w") with."""
    try:
        av.Codec(name, mode)
    except ValueError:  # UnknownCodecError, which is none of av.error
        return False
    return True


def video_encoder() -> str:
    """The encoder that `write_video` uses: "libx264" (H.264), or "mpeg4" where PyAV lacks it."""
    for name in _ENCODERS:
        if has_codec(name, "w"):
            return name
    raise PacecoreError(
        f"video encoding: FFmpeg of PyAV {av.__version__} has none of {', '.join(_ENCODERS)}; "
        "install PyAV's own wheel (pip install --force-reinstall av)"
    )


def _options(encoder: str) -> dict[str, str]:
    options = dict(_ENCODERS[encoder])
    if encoder == "libx264" and _has_avx512():
        # x264's AVX-512 code gives other bytes for the same frames from one call to the next.
        options["x264-params"] = "asm=avx2"
    return options


@lru_cache
def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def write_video(path: str | Path, frames: Iterable[np.ndarray], frames_per_second: int = 25) -> int:
    """Encodes `frames`, each (H, W, 3) uint8 RGB of one even size, to `path`; returns their number.

    The container follows from the suffix. The same frames give the same bytes with the same FFmpeg.
    Raises PacecoreError for an odd size, which 4:2:0 chroma cannot hold, where no frame comes, or
    naming the file where it cannot be written; then the old one stays.
    """
    encoder = video_encoder()
    count = 0
    with aside(Path(path)) as part, _opened(path, part) as container:
        for frame in frames:
            if count == 0:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise PacecoreError(
                        f"{path}: height and width must be even, got {height} x {width}"
                    )
                with _suffix_told(path):
                    stream = container.add_stream(encoder, rate=Fraction(frames_per_second))
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                stream.options = _options(encoder)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if count == 0:
            raise PacecoreError(f"{path}: a video needs at least one frame, got none")
        container.mux(stream.encode())
    return count


def _opened(path: str | Path, part: Path) -> av.container.OutputContainer:
    with _suffix_told(path):
        return av.open(str(part.absolute()), "w")  # FFmpeg takes 10:30.mp4 for a protocol


@contextmanager
def _suffix_told(path: str | Path) -> Iterator[None]:
    """PacecoreError for what FFmpeg says of a suffix without a container, or of one that does not
    take this encoder.
    """
    try:
        yield
    except ValueError as error:
        raise PacecoreError(f"{path}: cannot be written: {error}; take .mp4") from None


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes `picture`, (H, W, 3) uint8 RGB, as a PNG. Raises PacecoreError naming the file."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt = "rgb24"
    encoder.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    with aside(Path(path)) as part:
        part.write_bytes(b"".join(map(bytes, packets)))
