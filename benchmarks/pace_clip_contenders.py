"""The cases of the benchmark of `pace_clip`, and its contenders: what else a user would pick.

Each contender makes, of a case and its inputs, a function that computes all its clips, or raises
ImportError where its package is not installed.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pacecore.frames import Frames
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference import pace_clip as reference

from .common import peer

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CONTENDERS", "Case", "Inputs", "inputs_of", "ours", "pil_jittered"]

_ORDERS = [sum(s << 2 * i for i, s in enumerate(p)) for p in itertools.permutations(range(4))]


@dataclass(frozen=True)
class Case:
    """One shape of the work: `clips` clips of `clip_frames` frames, each frame shown once."""

    name: str
    source: tuple[int, int]
    resize: tuple[int, int]
    crop: tuple[int, int]
    clip_frames: int
    clips: int
    jitter: bool = True
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def options(self) -> dict:
        return {"resize": self.resize, "crop_size": self.crop}

    def bytes_a_clip(self) -> int:
        """Bytes of YUV under the crop, read once, and of the output, written once."""
        share = self.crop[0] * self.crop[1] / (self.resize[0] * self.resize[1])
        source = self.source[0] * self.source[1] * 1.5 * share
        output = 3 * self.crop[0] * self.crop[1] * self.dtype.itemsize
        return int(self.clip_frames * (source + output))


@dataclass(frozen=True)
class Inputs:
    """The same frames as planar YUV for ours and as RGB for the others, and one plan."""

    frames: Frames
    rgb: Tensor  # (B, T, 3, h, w) uint8
    plan: Tensor
    crop: Tensor
    jitter: Tensor | None
    order: Tensor | None

    @property
    def plan_arguments(self) -> tuple[Tensor | None, ...]:
        return self.plan, self.crop, self.jitter, self.order


def smooth_planes(generator: torch.Generator, count: int, size: tuple[int, int]) -> Tensor:
    """(count, h, w) uint8 with the slow gradients of pictures, 16 to 235."""
    coarse = torch.rand(count, 1, size[0] // 16 + 2, size[1] // 16 + 2, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (16 + 219 * fine[:, 0]).to(torch.uint8)


def inputs_of(case: Case, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    height, width = case.source
    half = ((height + 1) // 2, (width + 1) // 2)
    count = case.clips * case.clip_frames
    planes = [smooth_planes(generator, count, size) for size in (case.source, half, half)]
    data = torch.cat([plane.flatten(1) for plane in planes], dim=1).flatten()
    frames = Frames.of_yuv420p(data, case.source).to(device)
    plan = torch.arange(count, dtype=torch.int32).view(case.clips, case.clip_frames)
    whole = torch.zeros(1, 3, dtype=torch.int32, device=device)
    rgb = torch.cat(
        [
            reference.pace_clip(
                frames,
                rows[None],
                whole,
                resize=case.source,
                crop_size=case.source,
                compute_dtype=torch.float32,
                planar=True,
            )
            .transpose(1, 2)
            .round()
            .to(torch.uint8)
            for rows in plan.to(device)
        ]
    )
    room = torch.tensor([r - c + 1 for r, c in zip(case.resize, case.crop, strict=True)] + [2])
    crop = (torch.rand(case.clips, 3, generator=generator) * room).int()
    jitter = order = None
    if case.jitter:
        jitter = 0.2 + 1.6 * torch.rand(*plan.shape, 4, generator=generator)
        jitter[..., 3] = 0.4 * torch.rand(plan.shape, generator=generator) - 0.2
        cycle = itertools.islice(itertools.cycle(_ORDERS), count)
        order = torch.tensor(list(cycle), dtype=torch.int32).view(plan.shape)
        order[torch.rand(plan.shape, generator=generator) >= 0.8] = -1  # as the paper's p = 0.8
        jitter, order = jitter.to(device), order.to(device)
    return Inputs(frames, rgb.contiguous(), plan.to(device), crop.to(device), jitter, order)


# ---- Contenders ----


def ours(case: Case, data: Inputs) -> Callable[[], object]:
    return lambda: pace_clip(
        data.frames,
        *data.plan_arguments,
        dtype=case.dtype,
        memory_format=case.memory_format,
        **case.options,
    )


def plain_torch(case: Case, data: Inputs) -> Callable[[], object]:
    return lambda: reference.pace_clip(
        data.frames,
        *data.plan_arguments,
        dtype=case.dtype,
        memory_format=case.memory_format,
        compute_dtype=torch.float32,
        planar=True,
        **case.options,
    )


def compiled_torch(case: Case, data: Inputs) -> Callable[[], object]:
    return torch.compile(plain_torch(case, data), fullgraph=True, dynamic=False)


def per_clip(case: Case, data: Inputs, resized: Callable, steps: list[Callable]) -> Callable:
    """A chain of `resized(frames)` and one function(frame, factor) for each step of the jitter.

    Plans are read out beforehand, so that no contender waits for the device.
    """
    crops = data.crop.tolist()
    orders = data.order.tolist() if data.order is not None else None
    factors = data.jitter.tolist() if data.jitter is not None else None
    height, width = case.crop

    def clip(b: int) -> Tensor:
        top, left, flip = crops[b]
        frames = resized(data.rgb[b])[..., top : top + height, left : left + width]
        frames = frames.flip(-1) if flip else frames
        if orders is None:
            return frames.to(case.dtype).transpose(0, 1).contiguous()
        jittered = []
        for t in range(case.clip_frames):
            frame = frames[t].float() / 255
            for place in range(4 if orders[b][t] >= 0 else 0):
                step = orders[b][t] >> 2 * place & 3
                frame = steps[step](frame, factors[b][t][step])
            jittered.append(frame * 255)
        return torch.stack(jittered, 1).to(case.dtype)

    return lambda: torch.stack([clip(b) for b in range(case.clips)])


def torchvision_v2(case: Case, data: Inputs) -> Callable[[], object]:
    bilinear = peer("torchvision.transforms").InterpolationMode.BILINEAR
    tv = peer("torchvision.transforms.v2.functional")

    def resized(frames: Tensor) -> Tensor:
        return tv.resize(frames, list(case.resize), interpolation=bilinear, antialias=False)

    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    return per_clip(case, data, resized, steps)


def kornia(case: Case, data: Inputs) -> Callable[[], object]:
    """Frames that have one step at one place go through it together, each with its own factor; but
    on a CPU, where all would leave its caches, each alone: S3D-G's took 330 ms a clip so, 400 else.
    """
    enhance = peer("kornia.enhance")
    turn = 2 * torch.pi
    steps = [
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda frames, factors: enhance.adjust_hue(frames, factors * turn),
    ]
    crops = data.crop.tolist()
    height, width = case.crop
    count = case.clips * case.clip_frames
    fit = data.rgb.device.type != "cpu" or 12 * count * height * width <= 2**24
    together = count if fit else 1

    def clip(b: int) -> Tensor:
        top, left, flip = crops[b]
        frames = torch.nn.functional.interpolate(
            data.rgb[b].float(), case.resize, mode="bilinear", align_corners=False
        )[..., top : top + height, left : left + width]
        return frames.flip(-1) if flip else frames

    def jitter_of(first: int) -> list[tuple]:
        """(step, which of the frames from `first` on, their factors), in order."""
        part = slice(first, first + together)
        orders, factors = data.order.flatten()[part], data.jitter.flatten(0, 1)[part]
        found = []
        for place, step in itertools.product(range(4), range(4)):
            chosen = ((orders >= 0) & (orders >> 2 * place & 3 == step)).nonzero().flatten()
            if len(chosen):
                found.append((steps[step], chosen, factors[chosen, step]))
        return found

    jitter = [] if data.order is None else [jitter_of(n) for n in range(0, count, together)]

    def run() -> Tensor:
        frames = torch.cat([clip(b) for b in range(case.clips)])
        for part, chain in zip(frames.split(together), jitter, strict=False):
            part /= 255
            for step, chosen, factors in chain:
                part[chosen] = step(part[chosen], factors)
            part *= 255
        clips = frames.unflatten(0, (case.clips, case.clip_frames)).transpose(1, 2)
        return clips.to(case.dtype).contiguous()

    return run


def official_chain(case: Case, data: Inputs) -> Callable[[], object]:
    if data.rgb.device.type != "cpu":
        raise ImportError("cv2 and PIL run on the CPU")
    cv2, Image = map(peer, ("cv2", "PIL.Image"))

    cv2.setNumThreads(torch.get_num_threads())
    images = data.rgb.permute(0, 1, 3, 4, 2).contiguous().numpy()
    crops, (height, width) = data.crop.tolist(), case.crop
    orders = data.order.tolist() if data.order is not None else None
    factors = data.jitter.tolist() if data.jitter is not None else None

    def frame(b: int, t: int) -> np.ndarray:
        top, left, flip = crops[b]
        small = cv2.resize(images[b, t], case.resize[::-1], interpolation=cv2.INTER_LINEAR)
        small = small[top : top + height, left : left + width]
        small = cv2.flip(small, 1) if flip else small
        if orders is None or orders[b][t] < 0:
            return small
        return np.array(pil_jittered(Image.fromarray(small), factors[b][t], orders[b][t]))

    def run() -> Tensor:
        clips = np.stack(
            [np.stack([frame(b, t) for t in range(case.clip_frames)]) for b in range(case.clips)]
        )
        return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous().to(case.dtype)

    return run


def pil_jittered(picture: "Image.Image", factors: Sequence[float], order: int) -> "Image.Image":
    """`picture` after the steps of a clip plan's jitter in their `order`, each with its factor:
    what torchvision's ColorJitter does on PIL's 8-bit pictures.
    """
    from PIL import Image, ImageEnhance

    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place in range(4):
        step = order >> 2 * place & 3
        if step < 3:
            picture = enhancers[step](picture).enhance(float(factors[step]))
            continue
        hue, saturation, value = picture.convert("HSV").split()
        # PIL's hues go round in 256 steps; torchvision has 255 a turn, and drops what is a part.
        turned = np.asarray(hue) + np.uint8(int(factors[step] * 255) % 256)
        picture = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    return picture


CONTENDERS = {
    "pace_clip": ours,
    "reference": plain_torch,
    "torch.compile of the reference": compiled_torch,
    "torchvision v2": torchvision_v2,
    "kornia": kornia,
    "cv2 and PIL": official_chain,
}
