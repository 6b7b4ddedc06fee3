"""The kernels on the GPU against the same kernels run on the CPU; on the CPU, its own against them.

Tolerances are the rounding of the compute type and one step of the output's: the order of sums and
fused multiply-add differ between the two, the definition does not.
"""

import pytest
import torch

from pacecore.ops import info_nce, pace_clip
from tests.conftest import require
from tests.cuda_on_cpu import devices
from tests.pace_clip_cases import FORMATS, random_frames, random_jitter, random_plan

DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One step of the type, relative; of float32 a thousand, which sums of a few hundred terms stay in.
STEP = {torch.float32: 2.0**-13, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.fixture(autouse=True)
def emulation_there():
    reason = devices.emulation_missing()
    if reason:
        require("PACECORE_REQUIRE_EMULATION", reason)


def architecture(device: torch.device) -> int:
    if device.type == "cpu":
        return 90
    return 90 if torch.cuda.get_device_capability(device)[0] >= 9 else 86


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_pace_clip(device, dtype, layout):
    generator = torch.Generator().manual_seed(11)
    resize, crop_size = (64, 70), (57, 66)
    frames = random_frames(generator, [(40, 48), (33, 51), (90, 64)], FORMATS, gap=2)
    arguments = [
        *random_plan(generator, len(frames.table), 2, 3, resize, crop_size),
        *random_jitter(generator, 2, 3),
    ]
    options = {"resize": resize, "crop_size": crop_size, "dtype": dtype, "memory_format": layout}
    got = pace_clip(frames.to(device), *(a.to(device) for a in arguments), **options)
    with devices.emulation(architecture(device)):
        emulated = pace_clip(frames, *arguments, **options)
    # Hue is ill-conditioned where colours are grey: 1e-3 of 255 is what the op's own tests allow.
    torch.testing.assert_close(got.cpu(), emulated, rtol=STEP[dtype], atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "features", "denominator"),
    [(7, 16, "batch"), (37, 24, "anchor"), (37, 24, "batch"), (515, 12, "anchor")],
)
def test_info_nce(device, dtype, n, features, denominator):
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, features, generator=generator).to(dtype)
    groups = torch.arange(n) // 2
    results = {}
    for place in (device, torch.device("cpu")):
        mine = z.to(place).detach().clone().requires_grad_()
        options = {"temperature": 0.5, "denominator": denominator, "normalize": True}
        if place is device:
            loss = info_nce(mine, groups.to(place), **options).loss
            loss.backward()
        else:
            with devices.emulation(architecture(device)):
                loss = info_nce(mine, groups, **options).loss
                loss.backward()
        results[place is device] = loss.detach().cpu(), mine.grad.cpu()
    (loss, grad), (emulated_loss, emulated_grad) = results[True], results[False]
    torch.testing.assert_close(loss, emulated_loss, rtol=STEP[dtype], atol=1e-5)
    largest = emulated_grad.abs().max().item()
    torch.testing.assert_close(grad, emulated_grad, rtol=STEP[dtype], atol=STEP[dtype] * largest)
