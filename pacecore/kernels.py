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
        build = f"in the source folder, PACECORE_CUDA=1 {REBUILD}"  # which says what it lacks
        mend = f"put nvcc 12.0 or later on PATH, then, {build}"
        return Lack("this pacecore has no CUDA kernels", mend)
    driver, ours = (int(info[name].partition(".")[0]) for name in ("cuda_driver", "cuda"))
    if driver < ours:  # torch may bring an older CUDA's libraries, which run
        reason = f"its driver is of CUDA {info['cuda_driver']}, pacecore's kernels are of"
        older = f"with an older nvcc on PATH, in the source folder, {REBUILD}"
        return Lack(f"{reason} CUDA {info['cuda']}", f"update the driver; or, {older}")
    if not _covered(info["cuda_architectures"], capability):
        wish = f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}"
        built = f"its kernels were built for {info['cuda_architectures']}"
        return Lack(built, f"in the source folder, {wish} {REBUILD}")
    return None


def _covered(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for "sm_80 sm_90 compute_90" run on a GPU of this capability.

    Machine code (sm) serves its own generation from its own minor number on, intermediate code
    (compute) every later GPU. With an a behind it serves that one GPU, with an f its generation.
    """
    for kind, major, minor, kept_to in re.findall(r"(sm|compute)_(\d+)(\d)([af]?)", architectures):
        of = (int(major), int(minor))
        if kept_to == "a":
            serves = of == capability
        elif kind == "sm" or kept_to == "f":
            serves = of[0] == capability[0] and of[1] <= capability[1]
        else:
            serves = of <= capability
        if serves:
            return True
    return False
