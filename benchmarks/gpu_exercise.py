"""Every path of the CUDA kernels once, at small ragged sizes, against the reference.

Small on purpose: compute-sanitizer slows a kernel a hundredfold. Exit code 1 names what differs.

    compute-sanitizer --tool memcheck python -m benchmarks.gpu_exercise [--device cpu] [--few]
"""

import argparse
import itertools
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from pacecore.frames import FrameFormat, Frames, Matrix, concatenate
from pacecore.ops.info_nce import info_nce
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference.info_nce import info_nce as reference_info_nce
from pacecore.reference.pace_clip import pace_clip as reference_pace_clip

from .options import device_name

__all__ = ["main", "picture"]

# By how much an op may be off, as a share of the largest value: roundings of a result of that type.
_BOUNDS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-10}


def picture(height: int, width: int, kind: FrameFormat, generator: torch.Generator) -> Frames:
    """One frame of random bytes."""
    if not kind.planar:
        size = 1, height, width, 3
        return Frames.of_rgb(torch.randint(0, 256, size, dtype=torch.uint8, generator=generator))
    count = height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return Frames.of_yuv420p(data, (height, width), kind)


def pace_clip_cases(device: str, few: bool = False) -> Iterator[tuple[str, float, float]]:
    """(name, error, bound) of clips of mixed frames, for each type, layout and kind of jitter."""
    generator = torch.Generator().manual_seed(0)
    kinds = (
        FrameFormat(),
        FrameFormat(matrix=Matrix.BT709, full_range=True, centre_sited=True),
        FrameFormat(planar=False),
        FrameFormat(matrix=Matrix.BT2020),
    )
    sizes = ((37, 51), (24, 32), (63, 40), (1, 1))
    frames = concatenate(
        [picture(*size, kind, generator) for size, kind in zip(sizes, kinds, strict=True)]
    )
    clips, steps = 3, 5
    plan = torch.randint(0, 4, (clips, steps), dtype=torch.int32, generator=generator)
    plan[0, 1] = plan[0, 0]  # a repeated frame
    crop = torch.tensor([[0, 0, 0], [9, 13, 1], [4, 2, 1]], dtype=torch.int32)
    jitter = torch.rand((clips, steps, 4), generator=generator) * 1.6 + 0.2
    jitter[..., 3] = jitter[..., 3] / 4 - 0.25
    orders = [
        sum(step << 2 * i for i, step in enumerate(p)) for p in itertools.permutations(range(4))
    ]
    chosen = torch.randint(0, len(orders), (clips, steps), generator=generator)
    order = torch.tensor(orders, dtype=torch.int32)[chosen]
    order[1, 2] = -1
    shape = {"resize": (33, 47), "crop_size": (24, 34), "channel_order": "bgr"}
    shape |= {"mean": (110.0, 100.0, 90.0), "std": (60.0, 50.0, 55.0)}
    ragged = [frames, plan, crop, jitter, order]
    # The sizes of the paper: a frame has a cluster of blocks, rows start at multiples of 16 bytes.
    whole = [
        concatenate([picture(240, 320, kind, generator) for kind in kinds[:2]]),
        torch.tensor([[0, 1]], dtype=torch.int32),
        torch.tensor([[3, 17, 1]], dtype=torch.int32),
        jitter[:1, :2],
        torch.tensor([[orders[5], orders[-1]]], dtype=torch.int32),
    ]
    shapes = {"ragged": shape, "whole": {"resize": (128, 171), "crop_size": (112, 112)}}
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    types = (torch.float32, torch.bfloat16) if few else tuple(_BOUNDS)[:3]
    for size, jittered in itertools.product(shapes, (True, False)):
        inputs = ragged if size == "ragged" else whole
        inputs = inputs if jittered else [*inputs[:3], None, None]
        expected = reference_pace_clip(*inputs, **shapes[size], dtype=torch.float64)
        moved = [tensor if tensor is None else tensor.to(device) for tensor in inputs]
        for layout, kind in itertools.product(layouts, types):
            result = pace_clip(*moved, **shapes[size], dtype=kind, memory_format=layout)
            name = f"pace_clip {size} {kind} {layout} {'jitter' if jittered else 'plain'}"
            yield name, _error(result, expected), 3 * _BOUNDS[kind]  # hue magnifies a rounding


def info_nce_cases(device: str, few: bool = False) -> Iterator[tuple[str, float, float]]:
    """(name, error, bound) of loss and gradient for each type, and sizes either side of a tile."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 1), (7, 33), (60, 64), (130, 40), (600, 24))
    kinds = tuple(_BOUNDS)[:3]
    if few:
        shapes, kinds = shapes[2::2], (torch.float32, torch.bfloat16)
    for (n, features), kind, denominator in itertools.product(shapes, kinds, ("anchor", "batch")):
        z = torch.randn((n, features), generator=generator).to(kind)
        groups = torch.randint(0, max(2, n // 3), (n,), generator=generator)
        for options in ({}, {"normalize": True, "temperature": 0.2, "anchor_start": n // 3}):
            options = {"denominator": denominator, **options}
            exact, leaf = z.double().requires_grad_(), z.to(device, copy=True).requires_grad_()
            expected = reference_info_nce(exact, groups, **options)[0]
            expected.backward()
            loss = info_nce(leaf, groups.to(device), **options).loss
            loss.backward()
            name = f"info_nce {kind} n {n} D {features} {options}"
            yield f"{name} loss", _error(loss.detach(), expected.detach()), _BOUNDS[torch.float32]
            yield f"{name} gradient", _error(leaf.grad, exact.grad), _BOUNDS[kind]


def _error(result: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp_min(1e-6)
    return ((result.double().cpu() - expected).abs().max() / largest).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", type=device_name, default="cuda")
    parser.add_argument("--few", action="store_true", help="fewer types and sizes")
    options = parser.parse_args()
    wrong, count = [], 0
    for cases in (pace_clip_cases, info_nce_cases):
        for name, error, bound in cases(options.device, options.few):
            count += 1
            if not error <= bound:  # NaN too
                wrong.append(f"{name}: error {error:.2e}, bound {bound:.0e}")
    print("\n".join([*wrong, f"{count} results compared, {len(wrong)} differ"]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
