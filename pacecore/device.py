"""What the options mean on the device that is there: which one, in which type and layout."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pacecore.backbones import build_backbone
from pacecore.backbones.bf16 import check_bf16_conv3d, errors_of_layers
from pacecore.backbones.tuning import MEMORY_FORMAT
from pacecore.config import AnyOptions, RunOptions, input_scale
from pacecore.distributed import any_rank, is_main, local_rank
from pacecore.errors import PacecoreError
from pacecore.kernels import lack_of
from pacecore.runlog import tell

if TYPE_CHECKING:
    from pacecore.loader import ClipFormat

__all__ = ["clip_format", "pick_device", "repeatable_or_fast", "true_fp32", "trusted"]

_TRIED = 4  # clips on which bf16 is tried


def pick_device(wish: str) -> torch.device:
    """The device of an option `device`; auto: a GPU where there is one that the kernels serve, and
    words where they do not. Raises PacecoreError when the device is not there or is not served.
    """
    if wish == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        lack = lack_of(0)
        if lack:
            if local_rank() == 0:
                words = f"the GPU is left unused: {lack.reason}; {lack.mend}"
                tell(f"warning: {words}", sys.stderr)
            return torch.device("cpu")
        wish = "cuda"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", wish):
        raise PacecoreError(f"device must be auto, cpu, cuda or cuda:<n>, got {wish!r}")
    device = torch.device(wish)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise PacecoreError(
                f"device {wish}: this torch finds no CUDA device; see pacecore doctor"
            )
        count = torch.cuda.device_count()
        # Launchers show a process all GPUs of its machine, or its own alone.
        index = local_rank() % count if device.index is None else device.index
        if index >= count:
            raise PacecoreError(f"device {wish}: there are {count} CUDA devices")
        lack = lack_of(index)
        if lack:
            raise PacecoreError(f"device {wish}: {lack.reason}; {lack.mend}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def trusted(
    options: AnyOptions,
    device: torch.device,
    *,
    resume: bool = False,
    measures: RunOptions | None = None,
) -> AnyOptions:
    """`options`, with fp32 for bf16 where any rank's device computes bf16 convolutions wrongly or
    slower, on a CPU also those of the network at hand; a run that is resumed stays with what it was
    measured to be faster in.

    measures: options of the training whose network is measured: without gradients, and as it was
    asked for where that is slower. Every rank must call it.
    """
    if options.amp != "bf16":
        return options
    check, stays = check_bf16_conv3d(device), resume or measures is not None
    if device.type == "cpu" and (stays or check.usable):  # else it might take minutes, for nothing
        of = measures or options
        with torch.device("meta"):
            network = build_backbone(of.backbone, of.depth or None, of.width)
        clips = (_TRIED, 3, of.clip_frames, of.crop, of.crop)
        found = errors_of_layers(network, clips, gradients=not measures)
        check = replace(check, errors=found if measures else check.errors | found)
    own = bool(check.wrong) if stays else not check.usable
    (unfit,) = any_rank(own)
    if is_main() and (unfit or not stays):
        elsewhere = "bf16 conv3d is wrong or slow on another rank's device; fp32 is used"
        tell(elsewhere if unfit and not own else check.report())
    return replace(options, amp="none") if unfit else options


@contextmanager
def repeatable_or_fast(repeatable: bool) -> Iterator[None]:
    """Within the block torch computes what is `repeatable` bit for bit, or else with whatever cuDNN
    finds fastest; after it as before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if repeatable:
        # cuBLAS reads it when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # Batches have two sizes at most: cuDNN tries what is fastest for each once.
    torch.backends.cudnn.benchmark = not repeatable
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def true_fp32() -> Iterator[None]:
    """Within the block products of fp32 matrices are not rounded to TF32 or bf16, as the caller may
    have let torch do, or TORCH_ALLOW_TF32_CUBLAS_OVERRIDE in a container; after it as before.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [each.fp32_precision for each in backends]
    try:
        of_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # a backend has been set otherwise, by itself
        of_all = "highest"
    torch.set_float32_matmul_precision("highest")  # of the backends too
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(of_all)
        for each, precision in zip(backends, before, strict=True):
            each.fp32_precision = precision


def clip_format(
    options: RunOptions, device: torch.device, layout: torch.memory_format = MEMORY_FORMAT
) -> "ClipFormat":
    """How pace_clip makes the network's input; `layout` as memory_format(network, device) says."""
    from pacecore.loader import ClipFormat  # needs av, which nobody needs to pick a device

    mean, std = input_scale(options.normalize)
    return ClipFormat(
        resize=tuple(options.resize),
        crop_size=(options.crop, options.crop),
        mean=mean,
        std=std,
        channel_order=options.channel_order,
        dtype=torch.bfloat16 if options.amp == "bf16" and device.type == "cuda" else torch.float32,
        memory_format=layout,
    )
