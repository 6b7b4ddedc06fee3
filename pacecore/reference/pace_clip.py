"""The meaning of `pace_clip` in plain torch, in any float type.

The oracle of the tests and the baseline of the benchmark: all frames at once, no branch on values,
so that it compiles into one graph.
"""

import torch
from torch import Tensor

from pacecore.frames import Frames

__all__ = ["adjusted", "axis_taps", "pace_clip", "resized_rgb", "yuv_to_rgb_matrix"]

_LUMA_WEIGHTS = ((0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593))  # red, blue: 601, 709, 2020
_GREY = (0.2989, 0.587, 0.114)


def axis_taps(
    positions: Tensor, size_in: Tensor, size_out: int, between: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where output positions lie along one axis of the source.

    positions: int64 pixels of the resized image, and size_in: int64 samples of luma, of shapes that
    broadcast. Half-pixel centres, clamped to the first and last sample. between: None for luma or
    RGB; for chroma whether its samples lie half a sample past even luma samples, or on them.
    Gives the index of the sample before, of the one after, and the float64 weight of the second.
    """
    denominator = 2 * size_out
    place = ((2 * positions + 1) * size_in - size_out).clamp(min=0)
    place = torch.minimum(place, (size_in - 1) * denominator)
    if between is not None:
        denominator *= 2
        size_in = (size_in + 1) // 2
        place = (place - size_out * between).clamp(min=0)
        place = torch.minimum(place, (size_in - 1) * denominator)
    first = place // denominator
    weight = (place - first * denominator).double() / denominator
    return first, torch.minimum(first + 1, size_in - 1), weight


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


def _sampled(
    data: Tensor,
    start: Tensor,
    rows: tuple[Tensor, ...],
    row_bytes: Tensor,
    columns: tuple[Tensor, ...],
    column_bytes: int,
    dtype: torch.dtype,
) -> Tensor:
    """Bilinear samples (B, T, H, W) of planes that start at byte `start` (B, T, 1, 1) of data.

    rows and columns are taps, (B, T, H, 1) and (B, T, 1, W).
    """
    (top, bottom, down), (left, right, across) = rows, columns
    down, across = down.to(dtype), across.to(dtype)

    def at(row: Tensor, column: Tensor) -> Tensor:
        place = start + row * row_bytes + column * column_bytes
        return data[place.clamp(0, data.shape[0] - 1)].to(dtype)

    first = at(top, left) + down * (at(bottom, left) - at(top, left))
    second = at(top, right) + down * (at(bottom, right) - at(top, right))
    return first + across * (second - first)


def resized_rgb(
    frames: Frames,
    plan: Tensor,
    crop: Tensor,
    resize: tuple[int, int],
    crop_size: tuple[int, int],
    dtype: torch.dtype,
    planar: bool | None = None,
) -> Tensor:
    """The crops of resized frames, flipped if asked, RGB in 0..255: (B, T, 3, H, W).

    planar: all frames are planar YUV, or none is; None where they are mixed.
    """
    device = frames.data.device
    table = frames.table[plan.long()][..., None, None].unbind(2)  # 8 of (B, T, 1, 1)
    y_start, u_start, v_start, height, width, stride, chroma_stride, code = table
    top, left, flip = crop.long()[:, None, :, None, None].unbind(2)  # (B, 1, 1, 1)
    down = top + torch.arange(crop_size[0], device=device).view(1, 1, -1, 1)
    across = torch.arange(crop_size[1], device=device).view(1, 1, 1, -1)
    across = left + torch.where(flip == 1, crop_size[1] - 1 - across, across)
    rows, columns = axis_taps(down, height, resize[0]), axis_taps(across, width, resize[1])
    results = []
    if planar is not False:
        between = (code >> 4 & 1).bool()
        chroma_rows = axis_taps(down, height, resize[0], torch.ones_like(between))
        chroma_columns = axis_taps(across, width, resize[1], between)
        luma = _sampled(frames.data, y_start, rows, stride, columns, 1, dtype)
        u, v = (
            _sampled(frames.data, start, chroma_rows, chroma_stride, chroma_columns, 1, dtype)
            for start in (u_start, v_start)
        )
        matrices, offsets = zip(
            *(yuv_to_rgb_matrix(2 * i) for i in (0, 1, 2, 0, 4, 5, 6)), strict=True
        )
        kind = (code >> 1 & 7)[..., 0, 0]
        # (B, T, 3, 3, 1, 1) and (B, T, 3, 1, 1)
        matrix = torch.stack(matrices).to(device, dtype)[kind][..., None, None]
        offset = torch.stack(offsets).to(device, dtype)[kind][..., None, None]
        yuv = torch.stack([luma, u, v], dim=2)
        results.append(((matrix * yuv[:, :, None]).sum(3) + offset).clamp(0, 255))
    if not planar:
        results.append(
            torch.stack(
                [
                    _sampled(frames.data, y_start + c, rows, stride, columns, 3, dtype)
                    for c in range(3)
                ],
                dim=2,
            )
        )
    return results[0] if len(results) == 1 else torch.where(code[..., None] % 2 == 1, *results)


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
    to_most = (value.unsqueeze(-3) - rgb) / torch.where(flat, 1, chroma).unsqueeze(-3)
    red, green, blue = to_most.unbind(-3)
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
    channels = []
    for choices in table:
        channel = choices[5]
        for i in range(5):
            channel = torch.where(index == i, choices[i], channel)
        channels.append(channel)
    return torch.stack(channels, -3)


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

    Each of the four places computes all steps and picks one.
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
    planar: bool | None = None,
) -> Tensor:
    """As the op of this name, computed in `compute_dtype` and rounded once to `dtype`.

    planar: as in `resized_rgb`, to leave out what the frames do not need.
    """
    clips = resized_rgb(frames, plan, crop, resize, crop_size, compute_dtype, planar)
    if jitter is not None:
        clips = _jittered(clips / 255, jitter, jitter_order) * 255
    centre, spread = (
        torch.tensor(values, dtype=compute_dtype, device=clips.device).view(3, 1, 1)
        for values in (mean, std)
    )
    clips = (clips - centre) / spread
    clips = clips.flip(2) if channel_order == "bgr" else clips
    return clips.transpose(1, 2).to(dtype).contiguous(memory_format=memory_format)
