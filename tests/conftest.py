"""What every test file shares: the list of devices that the op tests run on.

`device` is a fixture with four values. The two "emulated" ones run the CUDA kernels on the CPU
(tests/cuda_on_cpu) as a GPU of that architecture would, under three orders of their threads, whose
results must agree bit for bit; there the tensors are on the CPU.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.cuda_on_cpu import devices

DEVICES = ("cpu", "emulated_sm86", "emulated_sm90", "cuda")


def require(variable: str, reason: str) -> None:
    """Skips, saying why, or fails where the environment promises what is missing."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.cuda] * (name == "cuda")) for name in DEVICES]
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where an op test puts its tensors; while it runs, the ops reach the kernels to be tested."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            require("PACECORE_REQUIRE_CUDA", "no CUDA device is visible to torch")
        with devices.hardware():
            yield torch.device("cuda")
    elif request.param.startswith("emulated"):
        reason = devices.emulation_missing()
        if reason:
            require("PACECORE_REQUIRE_EMULATION", reason)
        with devices.emulation(int(request.param[-2:])):
            yield torch.device("cpu")
    else:
        yield torch.device("cpu")
