"""Frames of a video file: those asked for, or all.

They leave as the decoder gives them, planar YUV 4:2:0 wherever the source allows, with what the
file says of matrix and range. Decoding begins at the key frame before the first of those asked for.
A frame is the picture as it is stored: a note that it be shown turned, with pixels that are not
square, or field by field is not followed.
"""

import os
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

import av
import numpy as np

from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.planes import FrameSink, UnsupportedFrameError
from pacecore.timeline import Follower, Timeline
from pacecore.video.container import (
    VideoError,
    decode_packets,
    decoded,
    opened,
    packets_of,
)
from pacecore.video.probing import VideoInfo, by_presentation, pictures_of, probe

__all__ = ["decode", "decode_all", "turned"]

# Frames between two wanted ones that cost about as much to decode as a seek and its flush.
_SEEK_GAP = 1


class _OutOfStep(Exception):
    """Frames did not come out where the timeline has them."""


def decode(path: str | Path, wanted: np.ndarray, info: VideoInfo | None = None) -> Frames:
    """The frames `wanted` of a video: row i of the result is frame wanted[i].

    wanted: (N,) int64, frame numbers, 0-based, ascending, each once. info: what probe(path) gave,
    to save the scan. Equals a decode from the start, frame for frame; but of H.264 that has lost
    pictures, what stands in for these goes with what else is asked for. Raises VideoError, also for
    a frame beyond the end, and PacecoreError for a path of another type.
    """
    if not isinstance(path, str | os.PathLike):
        raise PacecoreError(f"decode: path must be text or a Path, got {type(path).__name__}")
    given = np.asarray(wanted)
    wanted = given.astype(np.int64) if given.dtype.kind in "iu" else np.empty(0)
    if wanted.ndim != 1 or not len(wanted) or (np.diff(wanted) <= 0).any() or wanted[0] < 0:
        rule = "wanted frames must be whole numbers, ascending and each once"
        raise VideoError(path, f"{rule}, got {given}")
    info = info or probe(path)
    if wanted[-1] >= info.num_frames:
        raise VideoError(path, f"has {info.num_frames} frames, frame {wanted[-1]} was asked for")
    if os.path.isdir(Path(path)):
        return _decode_pictures(path, wanted)
    try:
        return _decode_seeking(path, wanted, info)
    except (_OutOfStep, VideoError):  # what a packet wrongly marked as key gives may not decode
        return _decode_from_start(path, wanted, info.timeline)


def decode_all(path: str | Path, *, chunk: int = 32, planar: bool = False) -> Iterator[Frames]:
    """Every frame of a video in order, at most `chunk` at a time; planar: RGB becomes YUV too.

    Raises VideoError where decoding fails, and PacecoreError for a chunk of no frame.
    """
    if not isinstance(chunk, Integral) or chunk < 1:
        rule = "chunk must be a whole number of at least 1"
        raise PacecoreError(f"decode_all: {rule}, got {chunk!r}")
    if os.path.isdir(Path(path)):
        for first in range(0, len(files := pictures_of(path)), chunk):
            wanted = np.arange(first, min(first + chunk, len(files)))
            yield _decode_pictures(path, wanted, planar=planar)
        return
    with opened(path) as (container, stream):
        sink = FrameSink(chunk, stream.codec_context.name, planar=planar)
        for frame in decoded(path, stream, container):
            _add(path, sink, frame)
            if sink.full:
                yield sink.frames()
                sink = FrameSink(chunk, stream.codec_context.name, planar=planar)
        if len(sink):
            yield sink.frames()


def turned(path: str | Path) -> int:
    """Degrees clockwise that the file says its frames be turned by to be shown; of pictures 0.

    Raises VideoError where its first frame cannot be read.
    """
    if os.path.isdir(Path(path)):
        return 0
    with opened(path) as (container, stream):
        return next((-frame.rotation % 360 for frame in decoded(path, stream, container)), 0)


def _decode_from_start(path: str | Path, wanted: np.ndarray, timeline: Timeline) -> Frames:
    with opened(path) as (container, stream):
        sink, taken, shown = FrameSink(len(wanted), stream.codec_context.name), 0, 0
        follower = Follower(timeline.from_start(), 0, set())
        for frame in decoded(path, stream, container):
            number = follower.number(frame)
            shown += 1
            if taken < len(wanted) and number == wanted[taken]:
                _add(path, sink, frame)
                taken += 1
            if taken == len(wanted) and timeline.coded is None:
                return sink.frames()
    if taken < len(wanted):
        raise VideoError(path, f"frame {wanted[taken]} of {timeline.num_frames} does not decode")
    if shown != timeline.num_frames:  # a lost picture takes B-pictures with it: which, none knows
        raise VideoError(path, f"its packets tell {timeline.num_frames} frames, {shown} decode")
    return sink.frames()


def _decode_seeking(path: str | Path, wanted: np.ndarray, info: VideoInfo) -> Frames:
    timeline, kind = info.timeline, info.container.split(",")[0]  # spares guessing it
    with opened(path, kind) as (container, stream):
        sink, first = FrameSink(len(wanted), stream.codec_context.name), 0
        while first < len(wanted):
            last = _run_length(wanted, first, timeline)
            _decode_run(path, container, stream, wanted[first:last], info, sink)
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
    info: VideoInfo,
    sink: FrameSink,
) -> None:
    """Adds `wanted` to the sink, from the key frame before the first. Raises _OutOfStep where the
    frames do not match.
    """
    timeline = info.timeline
    entry = timeline.entry(int(wanted[0]))
    if entry == 0:  # only the first run begins here, where the opened file stands already
        packets = packets_of(container, stream)
    else:
        by_pts = timeline.stamps is not None or by_presentation(info.container)
        key = int(timeline.key_stamps[entry]), int(timeline.key_places[entry])
        packets = _packets_from(container, stream, *key, by_pts)
    follower, taken = Follower(timeline, entry, set(wanted.tolist())), 0
    for frame in decode_packets(path, stream, packets, follower):
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
    key_place: int,
    by_pts: bool,
) -> Iterator:
    """The stream's packets from the key packet with this stamp and place on. Raises _OutOfStep if
    it is not there: where a damaged AVI has lost frames, its index still counts them.
    """
    container.seek(key_stamp, stream=stream)
    packets = packets_of(container, stream)
    for packet in packets:
        stamp = packet.pts if by_pts or packet.dts is None else packet.dts
        found = packet.is_keyframe and stamp == key_stamp
        if found and key_place in (-1, packet.pos):
            yield packet
            yield from packets
            return
        if found or stamp is None or stamp > key_stamp:  # another one, or landed behind it
            break
    raise _OutOfStep


def _decode_pictures(path: str | Path, wanted: np.ndarray, *, planar: bool = False) -> Frames:
    files = pictures_of(path)
    if wanted[-1] >= len(files):  # some went after they were counted
        raise VideoError(path, f"has {len(files)} pictures, frame {wanted[-1]} was asked for")
    sink = FrameSink(len(wanted), "", planar=planar)
    for number in wanted:
        try:
            with opened(files[number]) as (container, stream):
                sink.codec = stream.codec_context.name
                picture = next(decoded(files[number], stream, container), None)
                if picture is None:
                    raise VideoError(files[number], "holds no picture")
                _add(files[number], sink, picture)
        except VideoError as error:
            raise VideoError(path, f"{files[number].name}: {error.reason}") from None
    return sink.frames()


def _add(path: str | Path, sink: FrameSink, frame: av.VideoFrame) -> None:
    try:
        sink.add(frame)
    except UnsupportedFrameError as error:
        raise VideoError(path, str(error)) from None
