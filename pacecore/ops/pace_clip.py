"""`pace_clip`: decoded frames and a plan in, network clips out, in one pass."""

import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.ops.library import NAMESPACE, expected_errors, has_tangent, ops

__all__ = ["check_plan", "pace_clip"]

_CHANNEL_ORDERS = ("rgb", "bgr")
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)


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
) -> Tensor:
    """Network clips from decoded frames: gather, resize, crop, flip, jitter, normalise.

    A pure function: every random choice is an argument. Not differentiable, as its source is uint8.

    Args:
        frames: uint8 frames of any sizes and formats; its `data` and `table` are on the device that
            computes.
        plan: (B, T) int32, the row of frames.table that each frame of each clip shows. Equal
            neighbours share their load and resize.
        crop: (B, 3) int32: top and left of the crop in the resized image, flip 0 or 1 (left to
            right, after the crop).
        jitter: (B, T, 4) float32: brightness, contrast and saturation factors (at least 0) and hue
            in turns (-0.5 to 0.5) of each frame. None, together with jitter_order, for no jitter at
            all.
        jitter_order: (B, T) int32: -1, this frame is not jittered; else two bits a step from the
            lowest: the operation of step i is (order >> 2 * i) & 3, with 0 brightness, 1 contrast,
            2 saturation, 3 hue, each of them once.
        resize: (height, width) that every frame is scaled to before the crop.
        crop_size: (H, W), at most resize, and on CUDA 2048 wide.
        mean, std: three numbers each, for red, green and blue whatever the channel order, in the
            unit 0..255.
        channel_order: "rgb" or "bgr".
        dtype: torch.float32, float16 or bfloat16.
        memory_format: torch.contiguous_format or torch.channels_last_3d.

    Returns:
        clips (B, 3, T, H, W): ((values in 0..255) - mean) / std.

    Definition. A pixel of the resized image lies in the source at
    (i + 1/2) * source size / size - 1/2, clamped to the frame, and is interpolated bilinearly
    there, without antialias, as torch's `interpolate(align_corners=False)`. For YUV 4:2:0 the luma
    plane and both chroma planes are each sampled at that position: chroma lies halfway between
    rows, and on even columns (MPEG-2, MPEG-4, H.264) or halfway between columns (JPEG, MPEG-1).
    Then the matrix and the range of the frame's format give RGB, clamped to 0..255; nothing is
    rounded. Jitter is that of torchvision on float images in 0..1, in the drawn order, clamped to
    0..1 after each step:

        brightness   f * x
        contrast     f * x + (1 - f) * (mean grey of the cropped frame before this step)
        saturation   f * x + (1 - f) * grey;  grey = 0.2989 R + 0.587 G + 0.114 B
        hue          HSV hue plus f turns, modulo 1

    and `clips` is rounded once, to dtype.

    Raises PacecoreError for a wrong type, shape, device or size, and on CPU for any value out of
    range. On CUDA the contents of tensors are not read on the host, as that would wait for the GPU:
    a frame whose plan entry, table row, crop or jitter order is out of range comes out as NaN, and
    nothing outside `frames.data` is ever read. `check_plan` finds such values beforehand.
    """
    _check_places(frames, plan=plan, crop=crop, jitter=jitter, jitter_order=jitter_order)
    if channel_order not in _CHANNEL_ORDERS:
        raise PacecoreError(f"pace_clip: channel_order must be rgb or bgr, got {channel_order!r}")
    if dtype not in _TYPES:
        raise PacecoreError(f"pace_clip: dtype must be float32, float16 or bfloat16, got {dtype!r}")
    if memory_format not in _MEMORY_FORMATS:
        raise PacecoreError(
            "pace_clip: memory_format must be torch.contiguous_format or torch.channels_last_3d, "
            f"got {memory_format}"
        )
    if isinstance(jitter, Tensor) and (jitter.requires_grad or has_tangent(jitter)):
        raise PacecoreError("pace_clip: jitter must not require a gradient, there is none")
    with expected_errors("pace_clip"):
        return ops().pace_clip(
            frames.data,
            frames.table,
            plan,
            crop,
            jitter,
            jitter_order,
            resize,
            crop_size,
            mean,
            std,
            channel_order == "bgr",
            dtype,
            memory_format == torch.channels_last_3d,
        )


def check_plan(
    frames: Frames,
    plan: Tensor,
    crop: Tensor,
    jitter: Tensor | None = None,
    jitter_order: Tensor | None = None,
    *,
    resize: tuple[int, int],
    crop_size: tuple[int, int],
) -> None:
    """All checks of `pace_clip` on CPU tensors, before they go to a GPU.

    On a GPU the contents of tensors cannot be checked. Raises PacecoreError as pace_clip does on
    CPU, of these arguments; computes nothing.
    """
    _check_places(frames, plan=plan, crop=crop, jitter=jitter, jitter_order=jitter_order)
    with expected_errors("pace_clip"):
        ops().check_pace_clip(
            frames.data,
            frames.table,
            plan,
            crop,
            jitter,
            jitter_order,
            resize,
            crop_size,
        )


def _check_places(frames: Frames, **inputs: Tensor | None) -> None:
    """Raises PacecoreError where frames are none, or another tensor is on another device."""
    if not isinstance(frames, Frames):
        raise PacecoreError(f"pace_clip: frames must be Frames, got {type(frames).__name__}")
    if not isinstance(frames.data, Tensor):
        got = type(frames.data).__name__
        raise PacecoreError(f"pace_clip: frames.data must be a tensor, got {got}")
    for name, tensor in {"frames.table": frames.table, **inputs}.items():
        # Of one without values, as on `meta`, torch would run the fake kernel.
        if isinstance(tensor, Tensor) and tensor.device != frames.data.device:
            where = f"the device of frames.data, {frames.data.device}"
            raise PacecoreError(f"pace_clip: {name} must be on {where}, got {tensor.device}")


def register(namespace: str) -> None:
    """Gives the op of `namespace` its fake kernel."""

    @torch.library.register_fake(f"{namespace}::pace_clip")
    def _(
        data: Tensor,
        table: Tensor,
        plan: Tensor,
        crop: Tensor,
        jitter: Tensor | None,
        jitter_order: Tensor | None,
        resize: list[int],
        crop_size: list[int],
        mean: list[float],
        std: list[float],
        bgr: bool,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        shape = (plan.shape[0], 3, plan.shape[1], *crop_size)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device=data.device, memory_format=layout)


register(NAMESPACE)
