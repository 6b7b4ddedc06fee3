"""Videos made of numbers, for tests of what comes after decoding."""

from pathlib import Path

import numpy as np
import torch

from pacecore.errors import PacecoreError
from pacecore.frames import Frames


class PacketSource:
    """Packed RGB videos drawn from their number: a bright bar that moves one pixel a frame."""

    def __init__(self, lengths, size=(20, 24), bad=()):
        self.lengths, self.size, self.bad = tuple(lengths), size, frozenset(bad)

    def __len__(self):
        return len(self.lengths)

    def num_frames(self, video):
        return self.lengths[video]

    def path(self, video):
        return Path(f"video-{video}.avi")

    def label(self, video):
        return video % 2

    def decode(self, video, wanted):
        if video in self.bad:
            raise PacecoreError(f"video-{video}.avi: cut short")
        height, width = self.size
        pixels = np.random.default_rng(video).integers(0, 80, (height, width, 3), dtype=np.uint8)
        data = np.repeat(pixels[None], len(wanted), axis=0)
        for row, frame in enumerate(wanted):
            data[row, :, int(frame + video) % width] = 250
        return Frames.of_rgb(torch.from_numpy(data))
