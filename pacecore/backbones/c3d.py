"""C3D (Tran et al., ICCV 2015) with batch norm, without its fully connected layers.

At 16 x 112 x 112, all kernels 3x3x3:

    conv1   64           64 x 16 x 112 x 112    pool1  1,2,2
    conv2   128         128 x 16 x  56 x  56    pool2  2,2,2
    conv3   256, 256    256 x  8 x  28 x  28    pool3  2,2,2
    conv4   512, 512    512 x  4 x  14 x  14    pool4  2,2,2
    conv5   512, 512    512 x  2 x   7 x   7
"""

from itertools import pairwise

from torch import nn

from pacecore.backbones.base import Backbone, scale_channels
from pacecore.backbones.layers import ConvNorm, conv3d

__all__ = ["C3D"]


class C3D(Backbone):
    """C3D: 27,661,440 parameters; its convolutions have a bias."""

    stage_names = (
        *("conv1", "pool1", "conv2", "pool2", "conv3", "pool3"),
        *("conv4", "pool4", "conv5"),
    )
    smallest_clip = (8, 16)
    p4_stage = "pool4"

    def __init__(self, width: float = 1.0) -> None:
        c1, c2, c3, c4 = (scale_channels(c, width) for c in (64, 128, 256, 512))
        super().__init__(feature_dim=c4)
        self.conv1 = _convolutions(3, c1)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = _convolutions(c1, c2)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3 = _convolutions(c2, c3, c3)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4 = _convolutions(c3, c4, c4)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5 = _convolutions(c4, c4, c4)


def _convolutions(*channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            ConvNorm(conv3d(before, after, (3, 3, 3), bias=True), after)
            for before, after in pairwise(channels)
        )
    )
