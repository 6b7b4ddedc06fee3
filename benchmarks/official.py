"""Pre-training the way the paper's authors published it: frames extracted to JPEG, cv2, PIL, fp32.

`Official` drives the importable parts of a user's own copy of their repository,
laura-wang/video-pace: its data set, its transforms and its R(2+1)D. Its train.py does not run with
today's libraries, so the loop around those parts is here. `Rebuilt` does the same work in our own
words, for those who have no copy: the same JPEGs, read by cv2, jittered frame by frame by PIL.

The frames of video v are FOLDER/v/frame000001.jpg and so on, the list has "v label frames" a line.
"""

import importlib
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from pacecore.backbones import build_backbone
from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.index import VideoIndex
from pacecore.sampling import ClipPlan, Sampling, plan_views
from pacecore.video import decode_all
from pacecore.workers import core_count

from .backbones import conv3d_as_torch_has_it
from .common import peer
from .pace_clip_contenders import pil_jittered

__all__ = ["ExtractedFrames", "Official", "Rebuilt", "Shape", "extract", "training_step"]

PACES = 4
# What a clip is jittered by, as the paper has it.
_JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
_JITTERED_SHARE = 0.8


@dataclass(frozen=True)
class Shape:
    """Frames of a clip, and height, width and crop of a frame in pixels."""

    clip_frames: int = 16
    resize: tuple[int, int] = (128, 171)
    crop: int = 112


@dataclass(frozen=True)
class ExtractedFrames:
    """Every frame of some videos as a JPEG file."""

    folder: Path
    counts: tuple[int, ...]  # frames of each video

    def path(self, video: int, frame: int) -> str:
        """File of frame `frame`, counted from 0."""
        return str(self.folder / str(video) / f"frame{frame + 1:06d}.jpg")

    def write_list(self) -> Path:
        path = self.folder / "videos.list"
        path.write_text("".join(f"{v} 0 {count}\n" for v, count in enumerate(self.counts)))
        return path


def extract(index: VideoIndex, folder: Path) -> ExtractedFrames:
    """Writes the frames of every video at its own size, with the JPEG quality that cv2 has; on each
    core a video at a time.
    """
    _needed("cv2")
    folders = [folder / str(video) for video in range(len(index))]
    # PyAV and cv2 let other threads run while they decode and encode.
    with ThreadPoolExecutor(core_count()) as pool:
        counts = pool.map(_extracted, [entry.path for entry in index.entries], folders)
        return ExtractedFrames(folder, tuple(counts))


def _extracted(path: str, folder: Path) -> int:
    """Writes the frames of a video into its folder and gives their number."""
    cv2 = _needed("cv2")
    folder.mkdir(parents=True)
    count = 0
    for part in decode_all(path):
        for row in part.table.tolist():
            count += 1
            picture = cv2.cvtColor(_i420(part, row), cv2.COLOR_YUV2BGR_I420)
            cv2.imwrite(str(folder / f"frame{count:06d}.jpg"), picture)
    return count


def _i420(part: Frames, row: list[int]) -> np.ndarray:
    """The three planes of a frame below each other, as cv2 takes them: without an odd last row or
    column.
    """
    y, u, v, height, width, stride, chroma_stride, _ = row
    height, width = height // 2 * 2, width // 2 * 2
    half = height // 2, width // 2
    places = (((height, width), stride, y), (half, chroma_stride, u), (half, chroma_stride, v))
    planes = [
        part.data.as_strided(shape, (step, 1), offset).numpy().ravel()
        for shape, step, offset in places
    ]
    return np.concatenate(planes).reshape(height * 3 // 2, width)


def _needed(name: str) -> types.ModuleType:
    """A package that this way needs. Raises ImportError that names it."""
    try:
        return peer(name)
    except ImportError as error:
        raise ImportError(f"the authors' way needs {name}: {error}") from None


class Official:
    """The parts of a copy of laura-wang/video-pace. Raises PacecoreError for what is not there."""

    name = "the official repository"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise PacecoreError(f"official: {folder} is not a folder")
        transforms = self._module("utils", "video_transforms")
        names = ("ClipResize", "RandomCrop", "RandomHorizontalFlip")
        self._steps = [self._part(transforms, name) for name in names]
        self._dataset = self._part(self._module("datasets", "ucf101"), "ucf101_pace_pretrain")
        self._network = self._part(self._module("models", "r21d"), "R2Plus1DNet")

    def _module(self, package: str, name: str) -> types.ModuleType:
        """A file of the copy, under the name by which its other files import it."""
        path = self.folder / package / f"{name}.py"
        if not path.is_file():
            raise PacecoreError(f"official: {self.folder} has no {package}/{name}.py")
        # Not through sys.path: `datasets` and `utils` may be other packages that are installed.
        parent = types.ModuleType(package)
        parent.__path__ = [str(path.parent)]
        sys.modules[package] = parent
        sys.modules.pop(f"{package}.{name}", None)
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            raise PacecoreError(
                f"official: {path} needs {error.name}, which is not installed"
            ) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PacecoreError(f"official: {path} cannot be imported: {reason}") from error

    def _part(self, module: types.ModuleType, name: str) -> Callable:
        if not hasattr(module, name):
            raise PacecoreError(f"official: {module.__file__} has no {name}")
        return getattr(module, name)

    def dataset(self, frames: ExtractedFrames, shape: Shape) -> Dataset:
        """Its items are clips (3, T, H, W) uint8 and the rank of their pace."""
        transforms = _needed("torchvision.transforms")
        resize, crop, flip = self._steps
        jitter = transforms.RandomApply([transforms.ColorJitter(**_JITTER)], p=_JITTERED_SHARE)
        return self._dataset(
            str(frames.write_list()),
            str(frames.folder),
            clip_len=shape.clip_frames,
            max_sr=PACES,
            transforms_=transforms.Compose([resize(shape.resize), crop(shape.crop), flip(0.5)]),
            color_jitter_=jitter,
        )

    def network(self) -> nn.Module:
        """R(2+1)D with one block a stage and a head of four paces."""
        return self._network(num_classes=PACES)


class Rebuilt:
    """The same way in our own words; the network is ours, run as torch runs it unasked."""

    name = "the authors' way, rebuilt"

    def dataset(self, frames: ExtractedFrames, shape: Shape) -> Dataset:
        return _JpegClips(frames, shape)

    def network(self) -> nn.Module:
        backbone = build_backbone("r21d")
        return _Plain(nn.Sequential(backbone, nn.Linear(backbone.feature_dim, PACES)))


class _Plain(nn.Module):
    """A network with nn.Conv3d's own forward in every convolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, clips: Tensor) -> Tensor:
        with conv3d_as_torch_has_it(True):
            return self.inner(clips)


class _JpegClips(Dataset):
    def __init__(self, frames: ExtractedFrames, shape: Shape) -> None:
        _needed("cv2")
        _needed("PIL.Image")
        self.frames, self.shape = frames, shape
        crop = (shape.crop, shape.crop)
        self.sampling = Sampling(
            views=1, clip_frames=shape.clip_frames, resize=shape.resize, crop=crop
        )

    def __len__(self) -> int:
        return 10 * len(self.frames.counts)  # an epoch visits each video ten times

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        data_pass, video = divmod(place, len(self.frames.counts))
        (plan,) = plan_views(self.sampling, self.frames.counts[video], data_pass, video)
        return self._clip(video, plan), plan.label

    def _clip(self, video: int, plan: ClipPlan) -> np.ndarray:
        """cv2.imread and resize, then crop, flip and jitter on PIL pictures."""
        import cv2
        from PIL import Image

        top, left, flip = plan.crop.tolist()
        side = self.shape.crop
        clip = np.empty((len(plan.frame_numbers), side, side, 3), dtype=np.uint8)
        for place, number in enumerate(plan.frame_numbers.tolist()):
            picture = cv2.imread(self.frames.path(video, number))
            picture = cv2.resize(picture, self.shape.resize[::-1])
            picture = Image.fromarray(picture).crop((left, top, left + side, top + side))
            if flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            order = int(plan.jitter_order[place])
            if order >= 0:
                picture = pil_jittered(picture, plan.jitter[place], order)
            clip[place] = np.asarray(picture)
        return clip.transpose(3, 0, 1, 2)


def training_step(network: nn.Module, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """A step as the authors take it: cross-entropy, SGD, and the accuracy fetched every time.

    The function takes clips (B, 3, T, H, W) uint8 and labels (B,), as their data set gives them.
    """
    network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-3)

    def step(clips: Tensor, labels: Tensor) -> None:
        clips, labels = clips.to(device, dtype=torch.float), labels.to(device)
        optimizer.zero_grad()
        outputs = network(clips)
        loss = F.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        (outputs.softmax(1).argmax(1) == labels).sum().cpu()
        loss.item()  # printed and logged at each step

    return step
