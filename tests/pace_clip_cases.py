"""What the tests of pace_clip share: frames, plans and jitter to draw from, calls, tolerances."""

import itertools

import torch
from torch import Tensor

from pacecore.frames import FrameFormat, Frames, Matrix, concatenate
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference import pace_clip as reference

# Largest error of a float32 result, in levels of 0..255: 2e-3 is promised, noise with jitter at the
# ends of its range comes to about 5e-4.
EXACT = 1e-3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "emulated", "emulated_sm86", "cuda")

FORMATS = [
    FrameFormat(planar=False),
    *(
        FrameFormat(matrix=matrix, full_range=full, centre_sited=centre)
        for matrix in Matrix
        for full in (False, True)
        for centre in (False, True)
    ),
]
ORDERS = [
    sum(step << 2 * place for place, step in enumerate(steps))
    for steps in itertools.permutations(range(4))
]


def frame_of(planes: list[Tensor], frame_format: FrameFormat, gap: int = 0) -> Frames:
    """One frame from its planes, (h, w) each or one (h, w, 3); `gap` unused bytes after each row.

    The data ends with the last pixel, not with the last row's gap.
    """
    offsets, parts, start = [], [], 0
    for plane in planes:
        rows = plane.reshape(plane.shape[0], -1)
        padded = torch.nn.functional.pad(rows, (0, gap), value=255).flatten()
        parts.append(padded[: padded.numel() - gap])
        offsets.append(start)
        start += parts[-1].numel()
    offsets += [0] * (3 - len(offsets))
    strides = [plane[0].numel() + gap for plane in planes]
    chroma_stride = strides[1] if len(strides) == 3 else 0
    height, width = planes[0].shape[:2]
    row = [*offsets, height, width, strides[0], chroma_stride, frame_format.code]
    return Frames(torch.cat(parts), torch.tensor([row]))


def random_frame(
    generator: torch.Generator, height: int, width: int, frame_format: FrameFormat, gap: int = 0
) -> Frames:
    """Noise over all of 0..255: the hardest case for interpolation, hue and clamps."""
    half = ((height + 1) // 2, (width + 1) // 2)
    shapes = [(height, width), half, half] if frame_format.planar else [(height, width, 3)]
    planes = [torch.randint(0, 256, s, dtype=torch.uint8, generator=generator) for s in shapes]
    return frame_of(planes, frame_format, gap)


def random_frames(
    generator: torch.Generator, sizes: list[tuple[int, int]], formats: list[FrameFormat], gap: int
) -> Frames:
    return concatenate(
        [
            random_frame(generator, *size, fmt, gap)
            for size, fmt in zip(sizes, itertools.cycle(formats), strict=False)
        ]
    )


def random_jitter(
    generator: torch.Generator, batch: int, clip_frames: int
) -> tuple[Tensor, Tensor]:
    """Factors in the paper's range, and orders that go through all 24 and, now and then, none."""
    factors = 0.2 + 1.6 * torch.rand(batch, clip_frames, 4, generator=generator)
    factors[..., 3] = torch.rand(batch, clip_frames, generator=generator) - 0.5
    start = int(torch.randint(25, (), generator=generator))
    cycle = itertools.islice(itertools.cycle([*ORDERS, -1]), start, start + batch * clip_frames)
    order = torch.tensor(list(cycle), dtype=torch.int32).view(batch, clip_frames)
    return factors, order


def random_plan(
    generator: torch.Generator,
    rows: int,
    batch: int,
    clip_frames: int,
    resize: tuple[int, int],
    crop_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """plan (B, T) and crop (B, 3), with repeated neighbours now and then."""
    plan = torch.randint(rows, (batch, clip_frames), generator=generator).sort(dim=1).values
    crop = torch.stack(
        [
            torch.randint(resize[0] - crop_size[0] + 1, (batch,), generator=generator),
            torch.randint(resize[1] - crop_size[1] + 1, (batch,), generator=generator),
            torch.randint(2, (batch,), generator=generator),
        ],
        dim=1,
    )
    return plan.int(), crop.int()


def ints(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def whole(frames: Frames, size: tuple[int, int], device: torch.device, **options) -> Tensor:
    """Frame 0 scaled to `size`, without crop: (3, H, W) on the CPU."""
    clips = pace_clip(
        frames.to(device),
        ints([0]).to(device),
        ints([0, 0, 0]).to(device),
        resize=size,
        crop_size=size,
        **options,
    )
    return clips[0, :, 0].cpu()


def both(frames: Frames, arguments: list[Tensor], device: torch.device, **options):
    """The op on `device`, and the float64 reference: both on the CPU."""
    expected = reference.pace_clip(frames, *arguments, **{**options, "dtype": torch.float64})
    got = pace_clip(frames.to(device), *(a.to(device) for a in arguments), **options)
    assert got.dtype == options.get("dtype", torch.float32)
    return got.cpu(), expected


def assert_rounded_once(got: Tensor, expected: Tensor) -> None:
    """`got` is the float64 value rounded to its type, but for an error that float32 also has."""
    spacing = torch.finfo(got.dtype).eps * expected.abs().clamp(min=torch.finfo(got.dtype).tiny)
    error = (got.double() - expected).abs()
    assert (error <= EXACT + (0 if got.dtype == torch.float32 else 0.5 * spacing)).all()


def case(device: torch.device, seed: int = 20) -> tuple[Frames, list[Tensor], dict]:
    """Frames of three formats and sizes, plan, crop, jitter and order, and the two sizes."""
    generator = torch.Generator().manual_seed(seed)
    frames = random_frames(generator, [(24, 31), (15, 20), (16, 9)], FORMATS[:3], gap=2)
    resize, crop_size = (19, 26), (16, 20)
    tensors = [
        *random_plan(generator, 3, 2, 6, resize, crop_size),
        *random_jitter(generator, 2, 6),
    ]
    options = {"resize": resize, "crop_size": crop_size}
    return frames.to(device), [t.to(device) for t in tensors], options
