"""Video files to decoded frames: the only file that imports av (FFmpeg).

Frames leave as the decoder gives them, planar YUV 4:2:0 wherever the source allows, with what the
file says of matrix and range; only the frames asked for are kept. Decoding begins at the key frame
before the first of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.media import picture_files
from pacecore.planes import FrameSink, UnsupportedFrameError
from pacecore.timeline import (
    Follower,
    PacketRecord,
    Timeline,
    count_vops,
    from_key_frames,
    from_timestamps,
    from_vops,
)

__all__ = [
    "MAX_PIXELS",
    "VideoError",
    "VideoInfo",
    "decode",
    "decode_all",
    "probe",
]

MAX_PIXELS = 2**26  # of one frame: twice 8K; a damaged header may claim gigabytes
# Containers whose packets carry the presentation stamp that the encoder wrote.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_STAMPED = {_MP4, "matroska,webm"}
# Codecs that show each packet in the order it comes, so that AVI's made-up stamps are right too.
# fmt: off
_IN_ORDER = {
    "mjpeg", "ffv1", "rawvideo", "huffyv", "ffvhuff", "utvideo", "png", "dvvideo", "qtrle", "vp8",
    "prores",
}
# fmt: on
# Decoders that leave out unneeded pictures on request, and nothing but them.
_CAN_SKIP = {"mpeg4", "h264", "hevc"}
# Frames between two wanted ones that cost about as much to decode as a seek and its flush.
_SEEK_GAP = 1

av.logging.set_level(None)  # FFmpeg's own messages on damaged files; the reason is in VideoError


class VideoError(PacecoreError):
    """A video cannot be read; the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return VideoError, (self.path, self.reason)


class _OutOfStep(Exception):
    """Frames did not come out where the timeline has them."""


@dataclass(frozen=True)
class VideoInfo:
    """What is in a video file. Frame numbers are 0-based, in display order."""

    num_frames: int
    height: int
    width: int
    rate: Fraction | None  # average frames a second; None where the file does not say
    duration_seconds: float | None
    codec: str
    container: str
    pixel_format: str | None
    claimed_frames: int  # what the container's header says; 0: nothing
    variable_rate: bool
    timeline: Timeline


def probe(path: str | Path) -> VideoInfo:
    """Counts the frames of a video and finds where decoding can begin, without decoding wherever
    that is exact.

    Stamps are trusted in MP4, MOV, Matroska and WebM, and in AVI for codecs that do not reorder;
    MPEG-4 part 2 is counted by its picture types. Anything else is decoded once. Raises VideoError:
    no such file, no video, truncated, damaged.
    """
    if Path(path).is_dir():
        return _probe_pictures(path)
    with _opened(path) as (container, stream):
        packets = list(_records(container, stream))
        if not packets:
            raise VideoError(path, "its video stream is empty")
        _require_whole(path, container, stream, packets)
        timeline = _timeline(container, stream, packets)
        size = stream.codec_context.height, stream.codec_context.width
        pixel_format = stream.codec_context.pix_fmt
    if timeline is None:
        with _opened(path) as (container, stream):
            keys = []
            for frame in _decoded(path, stream, container):
                size, pixel_format = (frame.height, frame.width), frame.format.name
                keys.append(frame.key_frame)
            if not keys:
                raise VideoError(path, "no frame of it decodes")
            timeline = from_key_frames(packets, keys)
    return _info(container, stream, packets, timeline, size, pixel_format)


def decode(path: str | Path, wanted: np.ndarray, info: VideoInfo | None = None) -> Frames:
    """The frames `wanted` of a video: row i of the result is frame wanted[i].

    wanted: (N,) int64, frame numbers, 0-based, ascending, each once. info: what probe(path) gave,
    to save the scan. Equals a decode from the start, frame for frame. Raises VideoError, also for a
    frame beyond the end.
    """
    wanted = np.asarray(wanted, dtype=np.int64)
    if wanted.ndim != 1 or not len(wanted) or (np.diff(wanted) <= 0).any() or wanted[0] < 0:
        raise VideoError(path, f"wanted frames must be ascending and each once, got {wanted}")
    info = info or probe(path)
    if wanted[-1] >= info.num_frames:
        raise VideoError(path, f"has {info.num_frames} frames, frame {wanted[-1]} was asked for")
    if Path(path).is_dir():
        return _decode_pictures(path, wanted)
    try:
        return _decode_seeking(path, wanted, info)
    except _OutOfStep:
        return _decode_from_start(path, wanted, info.timeline)


def decode_all(path: str | Path, *, chunk: int = 32, planar: bool = False) -> Iterator[Frames]:
    """Every frame of a video in order, at most `chunk` at a time; planar: RGB becomes YUV too.

    Raises VideoError where decoding fails.
    """
    if Path(path).is_dir():
        for first in range(0, len(files := picture_files(path)), chunk):
            wanted = np.arange(first, min(first + chunk, len(files)))
            yield _decode_pictures(path, wanted, planar=planar)
        return
    with _opened(path) as (container, stream):
        sink = FrameSink(chunk, stream.codec_context.name, planar=planar)
        for frame in _decoded(path, stream, container):
            _add(path, sink, frame)
            if sink.full:
                yield sink.frames()
                sink = FrameSink(chunk, stream.codec_context.name, planar=planar)
        if len(sink):
            yield sink.frames()


@contextmanager
def _opened(path: str | Path, kind: str | None = None) -> Iterator[tuple]:
    """The file's container and its first video stream, ready for one decoding thread; closed in
    every case.
    """
    try:
        container = av.open(str(path), format=kind, metadata_errors="replace")
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise VideoError(path, _reason(error)) from None
    except MemoryError:
        raise VideoError(path, "needs more memory than there is") from None
    try:
        streams = [s for s in container.streams.video if s.codec_context is not None]
        # An attached picture (cover art) is a stream of one still image, marked so.
        streams = [s for s in streams if not _is_cover(s)] or streams
        if not streams:
            raise VideoError(path, "no video stream in it")
        stream = streams[0]
        context = stream.codec_context
        if context.height * context.width > MAX_PIXELS:
            raise VideoError(path, f"claims frames of {context.height} x {context.width}")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size
        yield container, stream
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(path, _reason(error)) from None
    except MemoryError:
        raise VideoError(path, "needs more memory than there is") from None
    finally:
        container.close()


def _is_cover(stream: av.video.stream.VideoStream) -> bool:
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and "attached_pic" in str(disposition)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error)
    return f"cannot be read: {text}"


def _packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator:
    """The stream's packets; an empty one stands for no picture, and would tell the decoder that the
    stream ended.
    """
    return (packet for packet in container.demux(stream) if packet.size)


def _records(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[PacketRecord]:
    codec = stream.codec_context.name
    for packet in _packets(container, stream):
        if packet.is_corrupt and container.format.name in _STAMPED | {"avi"}:
            raise VideoError(container.name, "truncated: it ends within a frame")
        vops: tuple[int, ...] = ()
        if codec == "mpeg4":
            vops = count_vops(bytes(packet))
        elif codec == "vp8" and not memoryview(packet)[0] >> 4 & 1:
            continue  # a reference that is never shown (RFC 6386, 9.1)
        yield PacketRecord(
            packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, vops, packet.size
        )


def _require_whole(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: list[PacketRecord],
) -> None:
    """Raises VideoError where the header promises more frames than the file has."""
    claimed = stream.frames
    # MP4 lists its samples; AVI's count is a mere claim, and often wrong.
    if claimed > len(packets) and container.format.name == _MP4:
        raise VideoError(path, f"truncated: it has {len(packets)} of {claimed} frames")


def _timeline(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: list[PacketRecord],
) -> Timeline | None:
    """What the packets alone tell, or None where only decoding does."""
    codec = stream.codec_context.name
    if codec == "mpeg4":
        return from_vops(packets)
    if container.format.name in _STAMPED or (container.format.name == "avi" and codec in _IN_ORDER):
        return from_timestamps(packets)
    return None


def _info(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: list[PacketRecord],
    timeline: Timeline,
    size: tuple[int, int],
    pixel_format: str | None,
) -> VideoInfo:
    rate = stream.average_rate or None
    steps = np.diff(timeline.stamps) if timeline.stamps is not None else np.zeros(0, np.int64)
    # Stamps are rounded to the time base (Matroska: 1 ms), so a constant rate may jitter by one
    # unit.
    variable = len(steps) > 1 and int(steps.max() - steps.min()) > 1
    return VideoInfo(
        num_frames=timeline.num_frames,
        height=size[0],
        width=size[1],
        rate=rate,
        duration_seconds=float(timeline.num_frames / rate) if rate else None,
        codec=stream.codec_context.name,
        container=container.format.name,
        pixel_format=pixel_format,
        claimed_frames=stream.frames,
        variable_rate=variable,
        timeline=timeline,
    )


def _decoded(
    path: str | Path, stream: av.video.stream.VideoStream, container: av.container.InputContainer
) -> Iterator[av.VideoFrame]:
    """Frames in display order from where the container stands, to the end. Raises VideoError where
    decoding fails.
    """
    return _decode_packets(path, stream, _packets(container, stream))


def _decode_packets(
    path: str | Path,
    stream: av.video.stream.VideoStream,
    packets: Iterator,
    follower: Follower | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames of `packets`; what the follower lets go is not decoded if nothing depends on it."""
    context, shown, skipping = stream.codec_context, 0, False
    can_skip = follower is not None and follower.can_skip and context.name in _CAN_SKIP
    try:
        for packet in packets:
            if can_skip and follower.may_skip(packet) != skipping:
                skipping = not skipping
                context.skip_frame = "NONREF" if skipping else "DEFAULT"
            for frame in context.decode(packet):
                shown += 1
                yield frame
        yield from context.decode(None)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        raise VideoError(path, f"does not decode after {shown} frames: {_reason(error)}") from None
    finally:
        if skipping:
            context.skip_frame = "DEFAULT"


def _decode_from_start(path: str | Path, wanted: np.ndarray, timeline: Timeline) -> Frames:
    with _opened(path) as (container, stream):
        sink, taken = FrameSink(len(wanted), stream.codec_context.name), 0
        plain = Timeline(timeline.num_frames, timeline.stamps, timeline.key_frames[:1], None)
        follower = Follower(plain, 0, set())
        for frame in _decoded(path, stream, container):
            if follower.number(frame) == wanted[taken]:
                _add(path, sink, frame)
                taken += 1
                if taken == len(wanted):
                    return sink.frames()
    raise VideoError(path, f"frame {wanted[taken]} of {timeline.num_frames} does not decode")


def _decode_seeking(path: str | Path, wanted: np.ndarray, info: VideoInfo) -> Frames:
    timeline, kind = info.timeline, info.container.split(",")[0]  # spares guessing it
    with _opened(path, kind) as (container, stream):
        sink, first = FrameSink(len(wanted), stream.codec_context.name), 0
        while first < len(wanted):
            last = _run_length(wanted, first, timeline)
            _decode_run(path, container, stream, wanted[first:last], timeline, sink)
            first = last
    return sink.frames()


def _run_length(wanted: np.ndarray, first: int, timeline: Timeline) -> int:
    """End of the frames decoded in one go: a later key frame beyond a gap is worth a seek."""
    entries = timeline.key_frames[
        np.searchsorted(timeline.key_frames, wanted[first + 1 :], side="right") - 1
    ]
    breaks = np.flatnonzero(entries > wanted[first:-1] + _SEEK_GAP)
    return first + 1 + int(breaks[0]) if len(breaks) else len(wanted)


def _decode_run(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    wanted: np.ndarray,
    timeline: Timeline,
    sink: FrameSink,
) -> None:
    """Adds `wanted` to the sink, from the key frame before the first. Raises _OutOfStep where the
    frames do not match.
    """
    entry = timeline.entry(int(wanted[0]))
    if entry == 0:  # only the first run begins here, where the opened file stands already
        packets = _packets(container, stream)
    else:
        by_pts = timeline.stamps is not None
        packets = _packets_from(container, stream, int(timeline.key_stamps[entry]), by_pts)
    follower, taken = Follower(timeline, entry, set(wanted.tolist())), 0
    for frame in _decode_packets(path, stream, packets, follower):
        number = follower.number(frame)
        if number is None or number > wanted[taken]:
            raise _OutOfStep
        if number == wanted[taken]:
            _add(path, sink, frame)
            taken += 1
            if taken == len(wanted):
                return
    raise _OutOfStep


def _packets_from(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    key_stamp: int,
    by_pts: bool,
) -> Iterator:
    """The stream's packets from the key packet with this stamp on. Raises _OutOfStep if it is not
    there.
    """
    container.seek(key_stamp, stream=stream)
    packets = _packets(container, stream)
    for packet in packets:
        stamp = packet.pts if by_pts or packet.dts is None else packet.dts
        if packet.is_keyframe and stamp == key_stamp:
            yield packet
            yield from packets
            return
        if stamp is None or stamp > key_stamp:  # landed behind it
            break
    raise _OutOfStep


def _add(path: str | Path, sink: FrameSink, frame: av.VideoFrame) -> None:
    try:
        sink.add(frame)
    except UnsupportedFrameError as error:
        raise VideoError(path, str(error)) from None


# Folders of still pictures, one a frame


def _probe_pictures(path: str | Path) -> VideoInfo:
    files = picture_files(path)
    if not files:
        raise VideoError(path, "a folder without pictures")
    with _opened(files[0]) as (_, stream):
        height, width = stream.codec_context.height, stream.codec_context.width
        codec, pixel_format = stream.codec_context.name, stream.codec_context.pix_fmt
    start = np.zeros(1, dtype=np.int64)
    return VideoInfo(
        num_frames=len(files),
        height=height,
        width=width,
        rate=None,
        duration_seconds=None,
        codec=codec,
        container="pictures",
        pixel_format=pixel_format,
        claimed_frames=0,
        variable_rate=False,
        timeline=Timeline(len(files), None, start, start),
    )


def _decode_pictures(path: str | Path, wanted: np.ndarray, *, planar: bool = False) -> Frames:
    files = picture_files(path)
    sink = None
    for number in wanted:
        with _opened(files[number]) as (container, stream):
            sink = sink or FrameSink(len(wanted), stream.codec_context.name, planar=planar)
            picture = next(_decoded(files[number], stream, container), None)
            if picture is None:
                raise VideoError(files[number], "holds no picture")
            _add(files[number], sink, picture)
    return sink.frames()
