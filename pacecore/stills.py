"""Single frames of videos as pictures, for a person to look at."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from pacecore.errors import PacecoreError
from pacecore.ops import pace_clip
from pacecore.pictures import to_rgb
from pacecore.source import FrameSource

__all__ = ["still_frames"]


def still_frames(
    source: FrameSource, videos: Sequence[int], *, size: tuple[int, int] = (120, 160)
) -> np.ndarray:
    """The middle frame of each of `videos`, (n, *size, 3) uint8 RGB, between grey bars where its
    shape is another; all grey where unreadable.
    """
    pictures = np.full((len(videos), *size, 3), 127, np.uint8)
    plan, crop = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 3, dtype=torch.int32)
    for picture, video in zip(pictures, videos, strict=True):
        with suppress(PacecoreError):  # it stays grey
            frames = source.decode(video, np.array([source.num_frames(video) // 2]))
            height, width = frames.table[0, 3:5].tolist()
            scale = min(size[0] / height, size[1] / width)
            inner = max(1, round(scale * height)), max(1, round(scale * width))
            clip = pace_clip(frames, plan, crop, resize=inner, crop_size=inner)
            top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
            place = picture[top : top + inner[0], left : left + inner[1]]
            place[:] = to_rgb(clip, (0.0,) * 3, (1.0,) * 3, "rgb")[0, 0]
    return pictures
