"""Single frames of videos as pictures, for a person to look at."""

from collections.abc import Sequence
from dataclasses import replace

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
    """The middle frame of each of `videos`, (n, *size, 3) uint8 RGB; grey where unreadable."""
    form = ClipFormat(resize=size, crop_size=size)
    sampling = replace(Sampling(), clip_frames=1, resize=size, crop=size)
    pace = sampling.paces[0]

    def requests(number: int) -> list[ClipRequest]:
        video = videos[number]
        frames = source.num_frames(video)
        return [ClipRequest(video, (centre_plan(sampling, frames, frames // 2, pace, 0),))]

    pictures = np.full((len(videos), *size, 3), 127, np.uint8)
    for batch in load_batches(source, requests, range(len(videos)), clip_frames=1, workers=0):
        if len(batch):
            clips = batch.to(torch.device("cpu")).clips(form)
            pictures[batch.number] = to_rgb(clips, form.mean, form.std, form.channel_order)[0, 0]
    return pictures
