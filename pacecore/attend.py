"""Where a network looks: attention maps of one video at each pace (supplement of the paper).

attention = min-max of bicubic of mean over time of mean over channels of (last map)^2
(Zagoruyko and Komodakis). Squared activations say where a network responds, not why.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pacecore.backbones import Backbone
from pacecore.backbones.tuning import memory_format
from pacecore.config import AttendOptions, TrainOptions, taken
from pacecore.device import clip_format, pick_device
from pacecore.distributed import barrier, is_main, join, rank, world_size
from pacecore.errors import PacecoreError
from pacecore.files import write_json
from pacecore.loader import ClipRequest, load_batches
from pacecore.pictures import clip_sheet, heat, inscription, to_rgb
from pacecore.protocol import PATIENCE, decoder_count, open_measured, out_folder, ready
from pacecore.runlog import Progress
from pacecore.sampling import Sampling, centre_plan, parse_paces
from pacecore.source import FrameSource
from pacecore.trained import Trained, require_trained
from pacecore.video_writer import write_png, write_video

__all__ = ["attention_maps", "overlaid", "run_attend"]

_LONGEST_STEM = 200  # bytes; a file's name has 255 at most
_SHOWN = 112  # pixels that a picture has at least; smaller crops are enlarged


def attention_maps(
    backbone: Backbone, clips: Tensor, size: tuple[int, int], time: str = "mean"
) -> Tensor:
    """Attention (B, T, *size), 0..1 in fp32, over the frames of clips (B, 3, T, H, W).

    time: "mean", one map of the clip for all its frames; "last", the last step's; "all", each
    frame has the map of its own step, on a scale common to the clip. A map without contrast is 0.
    """
    last = backbone.stage_names[-1]
    found = backbone.maps(clips, [last])[last].float()
    power = found.square().mean(dim=1)  # (B, T', H', W')
    if time == "mean":
        power = power.mean(dim=1, keepdim=True)
    elif time == "last":
        power = power[:, -1:]
    elif time != "all":
        raise PacecoreError(f"attend: time must be mean, last or all, got {time!r}")
    # From 0 on: of equal values bicubic makes some that differ, by parts in a million.
    power = power - power.amin(dim=(1, 2, 3), keepdim=True)
    large = F.interpolate(power, size=size, mode="bicubic", align_corners=False)
    low = large.amin(dim=(1, 2, 3), keepdim=True)
    reach = large.amax(dim=(1, 2, 3), keepdim=True) - low
    scaled = torch.where(reach > 0, (large - low) / reach.clamp_min(1e-30), 0.0)
    frames = clips.shape[2]
    steps = torch.arange(frames, device=clips.device) * scaled.shape[1] // frames
    return scaled[:, steps]


def overlaid(pictures: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Pictures (..., H, W, 3) uint8 under the colours of attention (..., H, W), 0..1."""
    mixed = 0.6 * pictures + 0.4 * heat(attention)
    return mixed.round().astype(np.uint8)


def run_attend(trained: Trained, options: AttendOptions) -> dict[str, Any]:
    """Draws videos at each pace from the same first frame, attention over the frames.

    For each video options.out gets NAME.png, a row a pace and every few frames, and NAME.mp4, a
    column a pace: the clip above, its attention below. Beside them attend.json. Raises
    PacecoreError for a start frame that a video does not have, or a video that cannot be read.
    """
    options = taken("attend", options, AttendOptions)
    require_trained("attend", trained)
    device = pick_device(options.device)
    if options.paces or not isinstance(trained.options, TrainOptions):
        paces = parse_paces(options.paces or "1,2,3,4")
    else:
        paces = trained.options.sampling().classes
    with join(device, patience=PATIENCE):
        data = open_measured(trained, options)
        source = data.held_out or data.train
        count = min(options.count, len(source))
        videos = np.linspace(0, len(source) - 1, count).astype(int).tolist()
        folder = out_folder(trained, options)
        drawing = _Drawing(trained, options, paces, device, source)
        drawn = drawing.draw(videos, folder)
        barrier()  # what the others draw is there too, or they have told why not
        result = {
            "checkpoint": str(trained.path),
            "step": trained.step,
            "measured_with": asdict(options),
            "paces": [str(pace) for pace in paces],
            "videos": drawn,
        }
        if is_main():
            write_json(folder / "attend.json", result)
        return result


@dataclass
class _Drawing:
    trained: Trained
    options: AttendOptions
    paces: tuple[Fraction, ...]
    device: torch.device
    source: FrameSource

    def draw(self, videos: list[int], folder: Path) -> list[dict[str, Any]]:
        """Draws this rank's share; returns what all ranks draw, in order."""
        names = self._names(videos)
        requests = {video: self._request(video) for video in videos}  # refused before any is drawn
        mine = videos[rank() :: world_size()]
        backbone = ready(self.trained.backbone, self.device)
        form = clip_format(self.trained.options, self.device, memory_format(backbone, self.device))
        progress = Progress("attend", len(mine), shows=is_main())
        progress.update(0)
        for batch in load_batches(
            self.source,
            lambda number: [requests[mine[number]]],
            range(len(mine)),
            clip_frames=self.trained.options.clip_frames,
            workers=min(decoder_count(self.options.workers, self.device), len(mine)),
            timeout_seconds=self.options.decode_timeout,
            give_way=self.device.type == "cpu",
        ):
            for path, reason in batch.bad:
                raise PacecoreError(f"{path}: {reason}")
            clips = batch.to(self.device).clips(form).float()
            pictures = to_rgb(clips, form.mean, form.std, form.channel_order)
            pictures = _enlarged(pictures)
            with torch.inference_mode():
                maps = attention_maps(backbone, clips, pictures.shape[2:4], self.options.time)
            name = names[mine[batch.number]]
            self._write(folder / name, pictures, maps.cpu().numpy())
            progress.update(batch.number + 1)
        progress.close()
        return [
            {
                "path": str(self.source.path(video)),
                "sheet": names[video] + ".png",
                "film": names[video] + ".mp4",
            }
            for video in videos
        ]

    def _names(self, videos: list[int]) -> dict[int, str]:
        """A name of its own for each: its file's, with its number where files share one."""
        stems = {video: _shortened(Path(self.source.path(video)).stem) for video in videos}
        often = Counter(stems.values())
        names = {video: f"attend-{stem}" for video, stem in stems.items() if often[stem] == 1}
        for video in sorted(stems.keys() - names):
            name = f"attend-{stems[video]}-{video}"
            while name in names.values():  # a file may be called so
                name += f"-{video}"
            names[video] = name
        return names

    def _request(self, video: int) -> ClipRequest:
        frames, start = self.source.num_frames(video), self.options.start_frame
        if start >= frames:
            raise PacecoreError(
                f"{self.source.path(video)}: start_frame must be below its {frames} frames, got"
                f" {start}"
            )
        sampling: Sampling = self.trained.options.sampling()
        plans = [
            centre_plan(sampling, frames, start, pace, label)
            for label, pace in enumerate(self.paces)
        ]
        return ClipRequest(video, tuple(plans))

    def _write(self, base: Path, pictures: np.ndarray, maps: np.ndarray) -> None:
        """pictures (P, T, H, W, 3), maps (P, T, H, W): one clip a pace."""
        shown = overlaid(pictures, maps)
        chosen = shown[:, :: self.options.every]
        names = [str(pace) for pace in self.paces]
        sheet = clip_sheet(chosen, names=names, columns=chosen.shape[1])
        write_png(base.with_name(base.name + ".png"), sheet)
        film = [_even(_panel(pictures[:, t], shown[:, t], names)) for t in range(shown.shape[1])]
        write_video(base.with_name(base.name + ".mp4"), film, self.options.rate)


def _shortened(stem: str) -> str:
    """`stem` as far as file systems take it, with more before and behind it."""
    encoded = os.fsencode(stem)
    kept = encoded[:_LONGEST_STEM].decode(errors="ignore")
    return stem if len(encoded) <= _LONGEST_STEM else kept


def _enlarged(pictures: np.ndarray) -> np.ndarray:
    """Pictures (P, T, H, W, 3) at a whole multiple of their size that a person can see."""
    factor = -(-_SHOWN // pictures.shape[2])
    if factor == 1:
        return pictures
    clips, frames, height, width, _ = pictures.shape
    flat = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2).float()
    large = F.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    shape = (clips, frames, height * factor, width * factor, 3)
    return large.permute(0, 2, 3, 1).round().byte().numpy().reshape(shape)


def _panel(above: np.ndarray, below: np.ndarray, names: list[str], gap: int = 4) -> np.ndarray:
    """(P, H, W, 3) twice -> a row of pictures above another, and the paces' names above both."""
    both = np.stack([above, below])  # (2, P, H, W, 3), the rows of a sheet
    sheet = clip_sheet(both, gap=gap, columns=both.shape[1])
    strip = np.full_like(sheet, 255)[: inscription("0").shape[0] + gap]
    for column, name in enumerate(map(inscription, names)):
        left = gap + column * (above.shape[2] + gap)
        strip[gap:, left : left + name.shape[1]] = name
    return np.concatenate([strip, sheet])


def _even(picture: np.ndarray) -> np.ndarray:
    """`picture` with an edge repeated where its height or width is odd."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
