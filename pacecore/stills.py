"""Single frames of videos as pictures, for a person to look at."""

from collections.abc import Sequence

import numpy as np
import torch

from pacecore.loader import ClipFormat, ClipRequest, load_batches
from pacecore.pictures import to_rgb
from pacecore.sampling import Sampling, centre_plan
from pacecore.source import FrameSource

__all__ = ["still_frames"]


def still_frames(
    source: FrameSource, videos: Sequence[int], *, size: tuple[int, int] = (120, 160)
) -> np.ndarray:
    """The middle frame of each of `videos`, (n, *size, 3) uint8 RGB, between grey bars where its
    shape is another; all grey where unreadable.
    """
    sampling = Sampling(clip_frames=1, resize=size, crop=size)
    pace = sampling.paces[0]

    def requests(number: int) -> list[ClipRequest]:
        video = videos[number]
        frames = source.num_frames(video)
        return [ClipRequest(video, (centre_plan(sampling, frames, frames // 2, pace, 0),))]

    pictures = np.full((len(videos), *size, 3), 127, np.uint8)
    for batch in load_batches(source, requests, range(len(videos)), clip_frames=1, workers=0):
        if len(batch):
            height, width = batch.frames.table[0, 3:5].tolist()
            scale = min(size[0] / height, size[1] / width)
            inner = max(1, round(scale * height)), max(1, round(scale * width))
            form = ClipFormat(resize=inner, crop_size=inner)
            clips = batch.to(torch.device("cpu")).clips(form)
            top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
            place = pictures[batch.number, top : top + inner[0], left : left + inner[1]]
            place[:] = to_rgb(clips, form.mean, form.std, form.channel_order)[0, 0]
    return pictures
