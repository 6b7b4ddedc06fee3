"""The meaning of `pace_clip` in plain torch, in any float type.

The oracle of the tests and the baseline of the benchmark.
"""

import torch
from torch import Tensor

from pacecore.frames import Frames

__all__ = ["adjusted", "axis_taps", "pace_clip", "resized_rgb", "yuv_to_rgb_matrix"]

_LUMA_WEIGHTS = ((0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593))  # red, blue: 601, 709, 2020
_GREY = (0.2989, 0.587, 0.114)


def axis_taps(
    positions: Tensor, size_in: int, size_out: int, chroma: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where output positions lie along one axis.

    Gives the index of the sample before, of the one after, and the weight of the second.

    positions: (n,) int64 pixels of the resized image; half-pixel centres, clamped to the first and
    last sample. chroma: None for luma or RGB; "even" for chroma samples that lie on even luma
    samples, "between" for half a sample further.
    """
    denominator = 2 * size_out
    place = ((2 * positions + 1) * size_in - size_out).clamp(0, (size_in - 1) * denominator)
    if chroma is not None:
        place = place - (size_out if chroma == "between" else 0)
        denominator *= 2
        size_in = (size_in + 1) // 2
        place = place.clamp(0, (size_in - 1) * denominator)
    first = place // denominator
    weight = (place - first * denominator).double() / denominator
    return first, (first + 1).clamp(max=size_in - 1), weight


def yuv_to_rgb_matrix(format_code: int) -> tuple[Tensor, Tensor]:
    """(3, 3) and (3,) float64 of a FrameFormat code: rgb = matrix @ (Y, U, V) + offset."""
    kr, kb = _LUMA_WEIGHTS[format_code >> 1 & 3]
    kg = 1 - kr - kb
    full_range = bool(format_code & 8)
    y_scale, c_scale = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    red, blue = 2 * (1 - kr), 2 * (1 - kb)
    matrix = torch.tensor(
        [[1, 0, red], [1, -blue * kb / kg, -red * kr / kg], [1, blue, 0]], dtype=torch.float64
    )
    matrix *= torch.tensor([y_scale, c_scale, c_scale])
    black = torch.tensor([0.0 if full_range else 16.0, 128.0, 128.0], dtype=torch.float64)
    return matrix, -matrix @ black


def _sampled(plane: Tensor, rows: tuple, columns: tuple, dtype: torch.dtype) -> Tensor:
    """Bilinear at every row and column of the taps: (h, w) or (h, w, c) uint8 to (H, W) or (H, W, c)."""
    (top, bottom, down), (left, right, across) = rows, columns
    down = down.to(dtype).view(-1, *[1] * (plane.dim() - 1))
    across = across.to(dtype).view(1, -1, *[1] * (plane.dim() - 2))
    upper, lower = plane[top].to(dtype), plane[bottom].to(dtype)
    blended = upper + down * (lower - upper)
    first, second = blended[:, left], blended[:, right]
    return first + across * (second - first)


def resized_rgb(
    frames: Frames,
    row: int,
    crop: tuple[int, int, int],
    resize: tuple[int, int],
    crop_size: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """The crop of one resized frame, flipped if asked, RGB in 0..255: (3, H, W)."""
    y_offset, u_offset, v_offset, height, width, stride, chroma_stride, code = frames.table[
        row
    ].tolist()
    top, left, flip = crop
    device = frames.data.device
    down = torch.arange(top, top + crop_size[0], device=device)
    across = torch.arange(left, left + crop_size[1], device=device)
    across = across.flip(0) if flip else across

    def plane(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        return torch.as_strided(frames.data, shape, strides, frames.data.storage_offset() + offset)

    rows = axis_taps(down, height, resize[0])
    columns = axis_taps(across, width, resize[1])
    if not code & 1:
        pixels = plane(y_offset, (height, width, 3), (stride, 3, 1))
        return _sampled(pixels, rows, columns, dtype).permute(2, 0, 1)
    chroma_rows = axis_taps(down, height, resize[0], "between")
    chroma_columns = axis_taps(across, width, resize[1], "between" if code & 16 else "even")
    half = ((height + 1) // 2, (width + 1) // 2)
    yuv = torch.stack(
        [
            _sampled(plane(y_offset, (height, width), (stride, 1)), rows, columns, dtype),
            *(
                _sampled(
                    plane(offset, half, (chroma_stride, 1)), chroma_rows, chroma_columns, dtype
                )
                for offset in (u_offset, v_offset)
            ),
        ]
    )
    matrix, offset = yuv_to_rgb_matrix(code)
    rgb = torch.einsum("cd,dhw->chw", matrix.to(yuv), yuv) + offset.to(yuv).view(3, 1, 1)
    return rgb.clamp(0, 255)


def _grey(rgb: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W)"""
    red, green, blue = rgb.unbind(-3)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).unsqueeze(-3)


def _hue_turned(rgb: Tensor, turns: Tensor) -> Tensor:
    """RGB in 0..1 to HSV, hue plus `turns` modulo 1, and back; the textbook way, by sectors."""
    value, least = rgb.amax(-3), rgb.amin(-3)
    chroma = value - least
    flat = chroma == 0
    saturation = chroma / torch.where(value == 0, 1, value)
    red, green, blue = (
        (value.unsqueeze(-3) - rgb) / torch.where(flat, 1, chroma).unsqueeze(-3)
    ).unbind(-3)
    sector = torch.where(
        value == rgb.select(-3, 0),
        blue - green,
        torch.where(value == rgb.select(-3, 1), 2 + red - blue, 4 + green - red),
    )
    hue = torch.where(flat, 0, sector / 6 % 1)
    six = (hue + turns.squeeze(-3)) % 1 * 6
    index = six.floor()
    rest = six - index
    p = value * (1 - saturation)
    q = value * (1 - saturation * rest)
    t = value * (1 - saturation * (1 - rest))
    index = index.long() % 6
    table = ((value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q))
    stacked = torch.stack([torch.stack(channel, -3) for channel in table], -4)  # (..., 3, 6, H, W)
    picked = index.unsqueeze(-3).unsqueeze(-3).expand(*stacked.shape[:-3], 1, *stacked.shape[-2:])
    return stacked.gather(-3, picked).squeeze(-3)


def adjusted(rgb: Tensor, step: int, factor: Tensor) -> Tensor:
    """One step of the jitter, on 0..1: 0 brightness, 1 contrast, 2 saturation, 3 hue (in turns).

    rgb: (..., 3, H, W); factor: (..., 1, 1, 1). Clamped to 0..1.
    """
    if step == 3:
        return _hue_turned(rgb, factor).clamp(0, 1)
    other = [lambda: 0, lambda: _grey(rgb).mean((-1, -2), keepdim=True), lambda: _grey(rgb)][step]()
    return (factor * rgb + (1 - factor) * other).clamp(0, 1)


def _jittered(rgb: Tensor, jitter: Tensor, order: Tensor) -> Tensor:
    """rgb (..., 3, H, W) in 0..1, jitter (..., 4), order (...): every frame its own.

    No branch on values, so that it compiles into one graph: each of the four places computes all
    steps and picks one.
    """
    factors = jitter.to(rgb).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)  # (..., 4, 1, 1, 1)
    for place in range(4):
        step = torch.where(order < 0, -1, order >> 2 * place & 3)[..., None, None, None]
        before = rgb
        for i in range(4):
            rgb = torch.where(step == i, adjusted(before, i, factors.select(-4, i)), rgb)
    return rgb


def pace_clip(
    frames: Frames,
    plan: Tensor,
    crop: Tensor,
    jitter: Tensor | None = None,
    jitter_order: Tensor | None = None,
    *,
    resize: tuple[int, int],
    crop_size: tuple[int, int],
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    channel_order: str = "rgb",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """As the op of this name, computed in `compute_dtype` and rounded once to `dtype`."""
    crops = crop.tolist()
    clips = torch.stack(
        [
            torch.stack(
                [
                    resized_rgb(frames, row, tuple(crops[b]), resize, crop_size, compute_dtype)
                    for row in rows
                ]
            )
            for b, rows in enumerate(plan.tolist())
        ]
    )  # (B, T, 3, H, W)
    if jitter is not None:
        clips = _jittered(clips / 255, jitter, jitter_order) * 255
    centre, spread = (
        torch.tensor(v, dtype=compute_dtype).to(clips).view(3, 1, 1) for v in (mean, std)
    )
    clips = (clips - centre) / spread
    clips = clips.flip(2) if channel_order == "bgr" else clips
    return clips.transpose(1, 2).to(dtype).contiguous(memory_format=memory_format)
