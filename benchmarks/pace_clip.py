"""Time of `pace_clip` against what else a user would pick.

    python -m benchmarks.pace_clip [--device cuda] [--quick] [--out FILE]

Contenders, those that are installed: ours; the reference in plain torch; torch.compile of it;
torchvision's v2 functions on float images; kornia's; and the chain of the paper's own code on CPU:
cv2.resize, crop, flip, PIL jitter on 8-bit images. The last three start from RGB frames, so they
are spared the conversion from YUV that the first three do. Each frame has its own jitter. On a CPU
the process keeps the memory it frees, as pacecore's training does, else S3D-G's clips would come
in fresh pages and time the kernel's faults, for every contender.

Channels-last output beside contiguous output is timed in turn, so that a slow spell of the machine
falls on both.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pacecore.backbones.tuning import keep_freed_memory
from pacecore.frames import FrameFormat, Frames, concatenate
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference import pace_clip as reference

from .common import add_arguments, processor_seconds, time_function, write_record

__all__ = ["main"]

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
    code = FrameFormat().code
    luma, chroma = height * width, half[0] * half[1]
    row = [0, luma, luma + chroma, height, width, width, half[1], code]
    frames = concatenate(
        [
            Frames(torch.cat([plane[i].flatten() for plane in planes]), torch.tensor([row]))
            for i in range(count)
        ]
    ).to(device)
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


# ---- Contenders: each makes a function that computes all clips, or raises ImportError ----


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
            return frames.to(case.dtype).transpose(0, 1).contiguous() * 1
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
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    def resized(frames: Tensor) -> Tensor:
        return tv.resize(
            frames, list(case.resize), interpolation=InterpolationMode.BILINEAR, antialias=False
        )

    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    return per_clip(case, data, resized, steps)


def kornia(case: Case, data: Inputs) -> Callable[[], object]:
    from kornia import enhance

    def resized(frames: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(
            frames.float(), case.resize, mode="bilinear", align_corners=False
        )

    turn = 2 * torch.pi
    steps = [
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda frame, factor: enhance.adjust_hue(frame, factor * turn),
    ]
    return per_clip(case, data, resized, steps)


def official_chain(case: Case, data: Inputs) -> Callable[[], object]:
    if data.rgb.device.type != "cpu":
        raise ImportError("cv2 and PIL run on the CPU")
    import cv2
    import numpy as np
    from PIL import Image, ImageEnhance

    cv2.setNumThreads(torch.get_num_threads())
    images = data.rgb.permute(0, 1, 3, 4, 2).contiguous().numpy()
    crops, (height, width) = data.crop.tolist(), case.crop
    orders = data.order.tolist() if data.order is not None else None
    factors = data.jitter.tolist() if data.jitter is not None else None
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]

    def hue_turned(image: Image.Image, turns: float) -> Image.Image:
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.array(hue).astype(np.int16) + round(turns * 255)).astype(np.uint8)
        return Image.merge("HSV", (Image.fromarray(turned, "L"), saturation, value)).convert("RGB")

    def frame(b: int, t: int) -> np.ndarray:
        top, left, flip = crops[b]
        small = cv2.resize(images[b, t], case.resize[::-1], interpolation=cv2.INTER_LINEAR)
        small = small[top : top + height, left : left + width]
        small = cv2.flip(small, 1) if flip else small
        if orders is None or orders[b][t] < 0:
            return small
        image = Image.fromarray(small)
        for place in range(4):
            step = orders[b][t] >> 2 * place & 3
            factor = factors[b][t][step]
            image = (
                hue_turned(image, factor) if step == 3 else enhancers[step](image).enhance(factor)
            )
        return np.array(image)

    def run() -> Tensor:
        clips = np.stack(
            [np.stack([frame(b, t) for t in range(case.clip_frames)]) for b in range(case.clips)]
        )
        return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous().to(case.dtype)

    return run


CONTENDERS = {
    "pace_clip": ours,
    "reference": plain_torch,
    "torch.compile of the reference": compiled_torch,
    "torchvision v2": torchvision_v2,
    "kornia": kornia,
    "cv2 and PIL": official_chain,
}


# ---- The record ----


def cases(device: torch.device, quick: bool) -> list[Case]:
    cuda = device.type == "cuda"
    clips = (60 if quick else 240) if cuda else (2 if quick else 4)
    paper = {"resize": (128, 171), "crop": (112, 112), "clip_frames": 16, "clips": clips}
    s3dg = {
        "resize": (256, 256),
        "crop": (224, 224),
        "clip_frames": 64,
        "clips": max(1, clips // 8),
    }
    video, small = (240, 320), (128, 171)
    low = torch.float16 if not cuda else torch.bfloat16
    first = [
        Case("paper, 320 x 240", video, **paper),
        Case("paper, 320 x 240, no jitter", video, **paper, jitter=False),
    ]
    if quick:
        return first
    return [
        *first,
        Case("paper, 171 x 128", small, **paper),
        Case("paper, 171 x 128, no jitter", small, **paper, jitter=False),
        Case(f"paper, 320 x 240, {low}", video, **paper, dtype=low),
        Case(f"paper, 171 x 128, {low}, no jitter", small, **paper, jitter=False, dtype=low),
        Case("S3D-G, 340 x 256", (256, 340), **s3dg),
        Case("S3D-G, 340 x 256, no jitter", (256, 340), **s3dg, jitter=False),
    ]


def layouts(case: Case, device: torch.device, quick: bool) -> dict:
    """Time of channels-last output over that of contiguous output, by rounds in turn."""
    data = inputs_of(case, device)
    formats = torch.contiguous_format, torch.channels_last_3d
    functions = [ours(replace(case, memory_format=one), data) for one in formats]
    ratios, least = [], 0.02 if quick else 0.05
    for turn in range(5 if quick else 20):
        order = (0, 1) if turn % 2 else (1, 0)
        took = {
            each: time_function(functions[each], device, min_seconds=least, min_runs=2).p50
            for each in order
        }
        ratios.append(took[1] / took[0])
    shares = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, p50, p80 = torch.tensor(ratios, dtype=torch.float64).quantile(shares).tolist()
    name = f"{case.name}, channels last over contiguous"
    print(f"{name:74s} {p50:.3f} times ({p20:.3f} to {p80:.3f})", flush=True)
    return {
        "case": name,
        "threads": torch.get_num_threads(),
        "ratio": {"p20": p20, "p50": p50, "p80": p80},
    }


def copy_bandwidth(device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy within the device's memory, those read and those written."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    timing = time_function(lambda: target.copy_(source), device, min_seconds=0.5)
    found = {"bytes_a_second": 2 * source.numel() / timing.p50}
    if device.type == "cpu":
        spent = processor_seconds(lambda: target.copy_(source))
        found["processor_bytes_a_second"] = 2 * source.numel() / spent
    return found


def run_case(case: Case, threads: int, bandwidth: float, args: argparse.Namespace) -> list[dict]:
    device = torch.device(args.device)
    data = inputs_of(case, device)
    rows = []
    for name, make in CONTENDERS.items():
        if args.only and not any(word in name for word in args.only):
            continue
        if name.startswith("torch.compile") and args.quick:
            continue
        row = {"case": case.name, "contender": name, "threads": threads}
        try:
            function = make(case, data)
        except ImportError as missing:
            print(f"{case.name:42s} {name:32s} left out: {missing}")
            continue
        timing = time_function(function, device, min_seconds=args.seconds, min_runs=3)
        a_clip = timing.p50 / case.clips
        if device.type == "cpu":
            row["processor_ms_a_clip"] = 1000 * processor_seconds(function) / case.clips
        rate = case.bytes_a_clip() / a_clip
        row |= {
            "clips": case.clips,
            "seconds": timing,
            "ms_a_clip": 1000 * a_clip,
            "clips_a_second": 1 / a_clip,
            "bytes_a_second": rate,
            "share_of_copy": rate / bandwidth,
        }
        rows.append(row)
        times = row["ms_a_clip"] / rows[0]["ms_a_clip"]
        print(
            f"{case.name:42s} {name:32s} {threads} threads {row['ms_a_clip']:9.3f} ms a clip "
            f"({times:6.1f} times the first), {100 * row['share_of_copy']:5.1f} % of a copy",
            flush=True,
        )
        torch._dynamo.reset()  # what was compiled for one case would count against the next
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time for each figure")
    parser.add_argument("--only", nargs="*", help="words of the contenders to run; default all")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    every = torch.get_num_threads()
    rows = []
    for threads in [1] if device.type == "cuda" else sorted({1, every}):
        torch.set_num_threads(threads)
        copy = copy_bandwidth(device)
        rows.append({"case": "copy", "threads": threads, **copy})
        for case in cases(device, args.quick):
            if threads > 1 and case.name != "paper, 320 x 240":
                continue
            rows += run_case(case, threads, copy["bytes_a_second"], args)
            if threads == 1:
                rows.append(layouts(case, device, args.quick))
            # Again after each case, so that a run which is cut off leaves what it has.
            path = write_record(args.out, "pace_clip", args.device, rows)
    print(f"record: {path}")


if __name__ == "__main__":
    main()
