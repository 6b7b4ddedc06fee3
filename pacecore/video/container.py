"""An opened video file: its packets, and frames from the decoder; every failure a VideoError."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.stream import Disposition

from pacecore.errors import PacecoreError
from pacecore.timeline import Follower

__all__ = [
    "READ_AS_IT_IS",
    "VideoError",
    "decode_packets",
    "decoded",
    "opened",
    "packets_of",
]

MAX_PIXELS = 2**26  # of one frame: twice 8K; a damaged header may claim gigabytes
# Decoders that leave out unneeded pictures on request, and nothing but them.
_CAN_SKIP = {"mpeg4", "h264", "hevc"}

# Text in a file that is no UTF-8 is no reason to refuse it; from PyAV 19 on it never is.
READ_AS_IT_IS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

av.logging.set_level(None)  # FFmpeg's own messages on damaged files; the reason is in VideoError


class VideoError(PacecoreError):
    """A video cannot be read; the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return VideoError, (self.path, self.reason)


@contextmanager
def opened(path: str | Path, kind: str | None = None, **options: str) -> Iterator[tuple]:
    """The file's container and its first video stream, ready for one decoding thread; closed in
    every case. options: FFmpeg's, of the container.
    """
    url = str(Path(path).absolute())  # FFmpeg takes 10:30.avi for a protocol
    if os.path.exists(url) and not os.path.isfile(url):
        raise VideoError(path, "is a pipe or device, no file")  # which may never end
    try:
        container = av.open(url, format=kind, options=options, **READ_AS_IT_IS)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise VideoError(path, _reason(error)) from None
    except MemoryError:
        raise VideoError(path, "needs more memory than there is") from None
    try:
        streams = [s for s in container.streams.video if s.codec_context is not None]
        # An attached picture (cover art) is a stream of one still image, marked so.
        streams = [s for s in streams if not s.disposition & Disposition.attached_pic] or streams
        if not streams:
            unknown = container.streams.video
            reason = "no decoder here for its video" if unknown else "no video stream in it"
            raise VideoError(path, reason)
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


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error)
    return f"cannot be read: {text}"


def packets_of(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator:
    """The stream's packets; an empty one stands for no picture, and would tell the decoder that the
    stream ended.
    """
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except IndexError:  # PyAV's, after the last packet, of streams that came while it read
        return


def decoded(
    path: str | Path, stream: av.video.stream.VideoStream, container: av.container.InputContainer
) -> Iterator[av.VideoFrame]:
    """Frames in display order from where the container stands, to the end. Raises VideoError where
    decoding fails.
    """
    return decode_packets(path, stream, packets_of(container, stream))


def decode_packets(
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
