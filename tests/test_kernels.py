"""Which GPUs the kernels serve, told of GPUs that are not there."""

import pytest

from pacecore.kernels import _covered, lack_of
from tests.gpus import gpus


@pytest.mark.parametrize(
    ("capability", "covered"),
    [
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((12, 1), True),
        ((7, 5), False),
    ],
)
def test_which_gpus_are_covered(capability, covered):
    assert _covered("sm_80 sm_90", capability) is covered


def test_no_kernels_cover_nothing():
    assert not _covered("", (9, 0))


@pytest.mark.parametrize(
    ("capability", "architectures", "reason", "mend"),
    [
        ((7, 5), "sm_80", "pacecore's kernels need sm_80 or later", "use --device cpu"),
        ((9, 0), "", "this pacecore has no CUDA kernels", "put nvcc 12.0 or later on PATH"),
        ((8, 0), "sm_90", "its kernels were built for sm_90", "TORCH_CUDA_ARCH_LIST=8.0 pip"),
    ],
)
def test_why_a_gpu_is_not_served(monkeypatch, capability, architectures, reason, mend):
    gpus(monkeypatch, capability, architectures=architectures)
    lack = lack_of(0)
    assert lack.reason == reason
    assert mend in lack.mend


def test_a_gpu_that_is_served_lacks_nothing(monkeypatch):
    gpus(monkeypatch, (9, 0), architectures="sm_80 sm_90")
    assert lack_of(0) is None
