"""Which GPUs the CUDA kernels that were built serve."""

import re
from typing import NamedTuple

import torch

from pacecore._extension import REBUILD, extension

__all__ = ["OLDEST", "Lack", "lack_of"]

OLDEST = (8, 0)  # compute capability; the kernels copy asynchronously, which came with it


class Lack(NamedTuple):
    """Why pacecore's kernels do not run on a GPU, and what mends it."""

    reason: str
    mend: str


def lack_of(number: int) -> Lack | None:
    """Of CUDA device `number`; None where they run."""
    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    info = extension().build_info()
    if capability < OLDEST:
        oldest = f"sm_{OLDEST[0]}{OLDEST[1]}"
        return Lack(f"pacecore's kernels need {oldest} or later", "use --device cpu")
    if not info["cuda"]:
        mend = f"put nvcc 12.0 or later on PATH, then, in the source folder, {REBUILD}"
        return Lack("this pacecore has no CUDA kernels", mend)
    if not _covered(info["cuda_architectures"], capability):
        wish = f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}"
        built = f"its kernels were built for {info['cuda_architectures']}"
        return Lack(built, f"in the source folder, {wish} {REBUILD}")
    return None


def _covered(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for "sm_80 sm_90" run on a GPU of this capability.

    Machine code serves its own generation from its own minor number on; later generations are
    served by the intermediate code of the newest one, which a build carries by default.
    """
    built = [(int(n[:-1]), int(n[-1])) for n in re.findall(r"sm_(\d+)", architectures)]
    same = any(major == capability[0] and minor <= capability[1] for major, minor in built)
    return same or (bool(built) and capability[0] > max(built)[0])
