"""Names and shapes of the weights that public repositories' networks hold, and values for them."""

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

Entries = Iterator[tuple[str, tuple[int, ...]]]


def norm(name: str, channels: int) -> Entries:
    for entry in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{entry}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, features: int, outputs: int) -> Entries:
    yield f"{name}.weight", (outputs, features)
    yield f"{name}.bias", (outputs,)


def vcop_conv(name: str, inner: int, outer: int, kernel: tuple, factored: bool) -> Entries:
    t, h, w = kernel
    if not factored:
        yield f"{name}.temporal_spatial_conv.weight", (outer, inner, t, h, w)
        return
    middle = math.floor(t * h * w * inner * outer / (h * w * inner + t * outer))
    yield f"{name}.spatial_conv.weight", (middle, inner, 1, h, w)
    yield from norm(f"{name}.bn", middle)
    yield f"{name}.temporal_conv.weight", (outer, middle, t, 1, 1)


def vcop_residual(factored: bool, blocks: int = 1) -> Entries:
    yield from vcop_conv("conv1", 3, 64, (3, 7, 7), factored)
    yield from norm("bn1", 64)
    inner = 64
    for stage, outer in ((2, 64), (3, 128), (4, 256), (5, 512)):
        for block in range(blocks):
            name = f"conv{stage}.block1" if block == 0 else f"conv{stage}.blocks.{block - 1}"
            if stage > 2 and block == 0:
                yield from vcop_conv(f"{name}.downsampleconv", inner, outer, (1, 1, 1), factored)
                yield from norm(f"{name}.downsamplebn", outer)
            yield from vcop_conv(f"{name}.conv1", inner, outer, (3, 3, 3), factored)
            yield from norm(f"{name}.bn1", outer)
            yield from vcop_conv(f"{name}.conv2", outer, outer, (3, 3, 3), factored)
            yield from norm(f"{name}.bn2", outer)
            inner = outer


C3D_LAYERS = (
    *(("1", 3, 64), ("2", 64, 128), ("3a", 128, 256), ("3b", 256, 256)),
    *(("4a", 256, 512), ("4b", 512, 512), ("5a", 512, 512), ("5b", 512, 512)),
)


def vcop_c3d() -> Entries:
    for layer, inner, outer in C3D_LAYERS:
        yield f"conv{layer}.weight", (outer, inner, 3, 3, 3)
        yield f"conv{layer}.bias", (outer,)
        yield from norm(f"bn{layer}", outer)


def prp_c3d() -> Entries:
    for layer, inner, outer in C3D_LAYERS:
        name = "conv" + layer.replace("a", "_1").replace("b", "_2")
        yield f"{name}.conv3d.0.weight", (outer, inner, 3, 3, 3)
        yield f"{name}.conv3d.0.bias", (outer,)
        yield from norm(f"{name}.conv3d.1", outer)


INCEPTION = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def split_conv(name: str, inner: int, outer: int, size: int = 3) -> Entries:
    yield f"{name}.conv1.weight", (outer, inner, 1, size, size)
    yield from norm(f"{name}.bn1", outer)
    yield f"{name}.conv2.weight", (outer, outer, size, 1, 1)
    yield from norm(f"{name}.bn2", outer)


def official_s3dg() -> Entries:
    def plain(name: str, inner: int, outer: int, kernel: tuple = (1, 1, 1)) -> Entries:
        yield f"{name}.conv1.weight", (outer, inner, *kernel)
        yield from norm(f"{name}.bn1", outer)

    yield from plain("conv1", 3, 64, (3, 7, 7))
    yield from plain("conv_2b", 64, 64)
    yield from split_conv("conv_2c", 64, 192)
    yield from linear("gating.fc", 192, 192)
    for block, (inner, b0, b1a, b1b, b2a, b2b, b3) in INCEPTION.items():
        name = f"mixed_{block}"
        yield from plain(f"{name}.conv_b0", inner, b0)
        yield from plain(f"{name}.conv_b1_a", inner, b1a)
        yield from split_conv(f"{name}.conv_b1_b", b1a, b1b)
        yield from plain(f"{name}.conv_b2_a", inner, b2a)
        yield from split_conv(f"{name}.conv_b2_b", b2a, b2b)
        yield from plain(f"{name}.conv_b3_b", inner, b3)
        for branch, channels in enumerate((b0, b1b, b2b, b3)):
            yield from linear(f"{name}.gating_b{branch}.fc", channels, channels)


def coclr_s3dg() -> Entries:
    def plain(name: str, inner: int, outer: int) -> Entries:
        yield f"{name}.conv.weight", (outer, inner, 1, 1, 1)
        yield from norm(f"{name}.bn", outer)

    yield from split_conv("Conv_1a", 3, 64, 7)
    yield from plain("Conv_2b", 64, 64)
    yield from split_conv("Conv_2c", 64, 192)
    for block, (inner, b0, b1a, b1b, b2a, b2b, b3) in INCEPTION.items():
        name = f"Mixed_{block}"
        yield from plain(f"{name}.branch0.0", inner, b0)
        yield from plain(f"{name}.branch1.0", inner, b1a)
        yield from split_conv(f"{name}.branch1.1", b1a, b1b)
        yield from plain(f"{name}.branch2.0", inner, b2a)
        yield from split_conv(f"{name}.branch2.1", b2a, b2b)
        yield from plain(f"{name}.branch3.1", inner, b3)
        for branch, channels in enumerate((b0, b1b, b2b, b3)):
            yield from linear(f"{name}.gating_b{branch}.fc", channels, channels)


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights by formula: the same for a name and shape wherever it is computed."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    phase = zlib.crc32(name.encode()) % 1000
    count = math.prod(shape)
    period = torch.sin(torch.arange(4099, dtype=torch.float64) ** 1.1 * 0.7 + phase)
    wave = period.repeat(count // 4099 + 1)[:count].reshape(shape)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 1 + 0.5 * wave
    if len(shape) > 1:
        return wave * math.sqrt(4 / math.prod(shape[1:]))
    return 0.1 * wave


def filled(entries: Entries, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value(name, shape) for name, shape in entries}
