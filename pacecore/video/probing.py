"""What is in a video file: frames counted and found, without decoding wherever that is exact."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pacecore.media import picture_files
from pacecore.timeline import (
    PacketRecord,
    Timeline,
    count_vops,
    from_key_frames,
    from_timestamps,
    from_vops,
    may_have_fields,
)
from pacecore.video.container import VideoError, decoded, opened, packets_of

__all__ = ["VideoInfo", "by_presentation", "pictures_of", "probe"]

# Containers whose packets carry the presentation stamp that the encoder wrote.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
_STAMPED = {_MP4, _MATROSKA}
# Decoders that tell of a picture neither its type nor whether it is a key frame, so that nothing
# denies packets which are all marked as such.
_UNTOLD = {"cinepak", "msvideo1", "qtrle", "rpza"}
# Codecs that show each packet in the order it comes, so that AVI's made-up stamps are right too.
# fmt: off
_IN_ORDER = {
    "mjpeg", "ffv1", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "png", "dvvideo", "qtrle", "vp8",
    "prores",
}
# fmt: on


@dataclass(frozen=True, eq=False)
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
    MPEG-4 part 2 is counted by its picture types. Anything else is decoded once, and so is H.264
    that may code fields one by one, and interlaced MPEG-4 with B-pictures, of which the decoder
    drops some. Raises VideoError: no such file, no video, truncated, damaged.
    """
    if os.path.isdir(Path(path)):
        return _probe_pictures(path)
    with opened(path) as (container, stream):
        packets = list(_records(path, container, stream))
        if not packets:
            raise VideoError(path, "its video stream is empty")
        _require_whole(path, container, stream, packets)
        timeline = _timeline(path, container, stream, packets)
        codec, interlaced = stream.codec_context.name, False
        size = stream.codec_context.height, stream.codec_context.width
        pixel_format = stream.codec_context.pix_fmt
        if timeline is None:
            with opened(path) as (again, video):
                keys = []
                for frame in decoded(path, video, again):
                    size, pixel_format = (frame.height, frame.width), frame.format.name
                    keys.append(frame.key_frame)
                    interlaced |= frame.interlaced_frame
            if not keys:
                raise VideoError(path, "no frame of it decodes")
            timeline = from_key_frames(packets, keys)
        all_keys = len(timeline.key_frames) == timeline.num_frames > 1
        if (
            pixel_format == "pal8"  # whose palette comes once, with the first packet
            or (all_keys and codec in _UNTOLD)
            # After a seek B-pictures are dropped, and nothing tells which; stamps are others.
            or (codec == "mpeg4" and interlaced)
            or container.format.name == "mpeg"
        ):
            timeline = timeline.from_start()
        return _info(container, stream, timeline, size, pixel_format)


def by_presentation(container: str) -> bool:
    """Whether packets of a container are told apart by presentation stamps, as it has no others."""
    return container == _MATROSKA


def _records(
    path: str | Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[PacketRecord]:
    codec = stream.codec_context.name
    for packet in packets_of(container, stream):
        if packet.is_corrupt and container.format.name in _STAMPED | {"avi"}:
            raise VideoError(path, "truncated: it ends within a frame")
        vops: tuple[int, ...] = ()
        if codec == "mpeg4":
            vops = count_vops(bytes(packet))
        elif codec == "vp8" and not memoryview(packet)[0] >> 4 & 1:
            continue  # a reference that is never shown (RFC 6386, 9.1)
        dts = None if by_presentation(container.format.name) else packet.dts
        place = -1 if packet.pos is None else packet.pos
        yield PacketRecord(
            packet.pts, dts, packet.is_keyframe, packet.is_discard, vops, packet.size, place
        )


def _require_whole(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: list[PacketRecord],
) -> None:
    """Raises VideoError where the header promises more than the file has."""
    claimed, kind = stream.frames, container.format.name
    # By bytes: Matroska counts no frames, and AVI's count is a mere claim, often wrong.
    if kind == _MATROSKA or (kind == "avi" and claimed > len(packets)):
        with open(path, "rb") as file:
            promised = _promised_bytes(file.read(4096))
        if promised > container.size:
            raise VideoError(path, f"truncated: it has {container.size} of {promised} bytes")
    if claimed <= len(packets) or kind != _MP4:
        return
    # MP4 lists its samples, of which its edit list may cut some off, and a parser the empty ones,
    # which show nothing.
    with opened(path, ignore_editlist="1", fflags="+noparse+nofillin") as (whole, video):
        found = sum(packet.dts is not None for packet in whole.demux(video))  # not the end's
    if claimed > found:
        raise VideoError(path, f"truncated: it has {found} of {claimed} frames")


def _promised_bytes(head: bytes) -> int:
    """The least size of an AVI or Matroska file that begins so, by its own word; 0: it says
    nothing.
    """
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little")
    place = head.find(b"\x18\x53\x80\x67") + 4  # the Segment, around all but the EBML header
    length = 9 - head[place].bit_length() if 4 <= place < len(head) else 9
    size = int.from_bytes(head[place : place + length], "big") - (1 << 7 * length)
    unknown = length == 9 or size == (1 << 7 * length) - 1
    return 0 if unknown else place + length + size


def _timeline(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: list[PacketRecord],
) -> Timeline | None:
    """What the packets alone tell, or None where only decoding does."""
    codec = stream.codec_context.name
    if codec == "mpeg4":
        has_b = any(2 in packet.vops for packet in packets)
        return None if has_b and _begins_interlaced(path) else from_vops(packets)
    if codec == "h264" and may_have_fields(stream.codec_context.extradata):
        return None
    if container.format.name in _STAMPED or (container.format.name == "avi" and codec in _IN_ORDER):
        return from_timestamps(packets)
    return None


def _begins_interlaced(path: str | Path) -> bool:
    with opened(path) as (container, stream), suppress(VideoError):
        return next((each.interlaced_frame for each in decoded(path, stream, container)), False)
    return False


def _info(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    timeline: Timeline,
    size: tuple[int, int],
    pixel_format: str | None,
) -> VideoInfo:
    # From PyAV 19 on a number of its own.
    rate = Fraction(stream.average_rate) if stream.average_rate else None
    steps = np.diff(timeline.stamps) if timeline.stamps is not None else np.zeros(0, np.int64)
    # Stamps are rounded to the time base (Matroska: 1 ms), so a constant rate may jitter by one
    # unit.
    variable = len(steps) > 1 and int(steps.max() - steps.min()) > 1
    if variable and container.format.name == _MATROSKA:  # of which FFmpeg guesses it
        rate = Fraction(len(steps), int(steps.sum())) / stream.time_base
    return VideoInfo(
        num_frames=timeline.num_frames,
        height=size[0],
        width=size[1],
        rate=rate,
        duration_seconds=float(timeline.num_frames / rate) if rate else None,
        codec=stream.codec_context.codec.canonical_name,  # not the decoder's, as libdav1d
        container=container.format.name,
        pixel_format=pixel_format,
        claimed_frames=stream.frames,
        variable_rate=variable,
        timeline=timeline,
    )


def pictures_of(path: str | Path) -> list[Path]:
    """The frames of a folder of pictures. Raises VideoError for one without, or not to be read."""
    try:
        files = picture_files(path)
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from None
    if not files:
        raise VideoError(path, "a folder without pictures")
    return files


def _probe_pictures(path: str | Path) -> VideoInfo:
    files = pictures_of(path)
    with opened(files[0]) as (_, stream):
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
        timeline=Timeline(len(files), None, start, start, start),
    )
