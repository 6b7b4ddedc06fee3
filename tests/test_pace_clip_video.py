"""pace_clip on real videos against FFmpeg's accurate conversion; needs PACECORE_DATA."""

import os
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from pacecore.frames import FrameFormat, Matrix
from pacecore.ops.pace_clip import pace_clip
from pacecore.video.container import READ_AS_IT_IS
from tests.pace_clip_cases import frame_of

_DATA = os.environ.get("PACECORE_DATA", "")
if not hasattr(Interpolation, "ACCURATE_RND"):
    pytest.skip("PyAV before 17 does not ask FFmpeg for more", allow_module_level=True)
_ACCURATE = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_COLORSPACES = {Matrix.BT601: Colorspace.ITU601, Matrix.BT709: Colorspace.ITU709}
_VIDEOS = [  # MPEG-4 and H.264 of three sizes
    "clips/BenchPress/v_BenchPress_g01_c04.avi",
    "clips/hmdb51_wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "clips/kinetics400_unlabelled/SOX5yA1l24A.mp4",
]

pytestmark = pytest.mark.skipif(
    not _DATA, reason="PACECORE_DATA does not name the folder of real videos"
)


def decoded(path: str) -> tuple[av.VideoFrame, list[torch.Tensor]]:
    """The 21st frame and its planes."""
    with av.open(str(Path(_DATA) / path), **READ_AS_IT_IS) as container:
        frame = next(islice(container.decode(video=0), 20, None))
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(torch.from_numpy(rows[: plane.height, : plane.width].copy()))
    return frame, planes


@pytest.mark.parametrize("matrix", list(_COLORSPACES), ids=str)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("path", _VIDEOS)
def test_colours_are_those_of_ffmpeg(device, path, matrix, full_range):
    """At the video's own size FFmpeg's result is ours rounded to whole levels."""
    frame, planes = decoded(path)
    size = tuple(planes[0].shape)
    frames = frame_of(planes, FrameFormat(matrix=matrix, full_range=full_range)).to(device)
    plan = torch.zeros(1, 1, dtype=torch.int32, device=device)
    crop = torch.zeros(1, 3, dtype=torch.int32, device=device)
    got = pace_clip(frames, plan, crop, resize=size, crop_size=size)[0, :, 0].cpu()
    converted = frame.reformat(
        format="rgb24",
        src_colorspace=_COLORSPACES[matrix],
        dst_colorspace=_COLORSPACES[matrix],
        src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_ACCURATE,
    )
    difference = (got - torch.from_numpy(converted.to_ndarray()).permute(2, 0, 1)).abs()
    assert difference.mean() < 0.3  # rounding alone makes 0.25
    assert difference.max() < 1.05
