"""Video files to decoded frames: the only package that imports av (FFmpeg) to read."""

from pacecore.video.container import MAX_PIXELS, VideoError
from pacecore.video.decoding import decode, decode_all
from pacecore.video.probing import VideoInfo, probe

__all__ = ["MAX_PIXELS", "VideoError", "VideoInfo", "decode", "decode_all", "probe"]
