"""Which GPUs the kernels serve, told of GPUs that are not there."""

import pytest

from pacecore.kernels import _covered, lack_of
from tests.gpus import gpus


@pytest.mark.parametrize(
    ("architectures", "served", "others"),
    [
        ("sm_80 sm_90 compute_90", "8.0 8.6 8.9 9.0 10.0 12.1", "7.5"),
        ("sm_80 sm_90", "8.9 9.0", "10.0 12.0"),
        ("sm_80 compute_80 sm_120", "8.0 9.0 10.3 12.0 12.1", "7.5"),
        ("sm_86", "8.6 8.9", "8.0 9.0"),
        ("sm_90a", "9.0", "8.0 10.0"),
        ("sm_120a compute_120a", "12.0", "12.1"),
        ("sm_100f", "10.0 10.3", "9.0 12.0"),
        ("", "", "8.0 9.0"),
    ],
)
def test_which_gpus_are_covered(architectures, served, others):
    for names, covered in ((served, True), (others, False)):
        for name in names.split():
            major, minor = map(int, name.split("."))
            assert _covered(architectures, (major, minor)) is covered, name


@pytest.mark.parametrize(
    ("capability", "architectures", "reason", "mend"),
    [
        ((7, 5), "sm_80", "pacecore's kernels need sm_80 or later", "use --device cpu"),
        ((9, 0), "", "this pacecore has no CUDA kernels", "PACECORE_CUDA=1 pip install"),
        ((8, 0), "sm_90", "its kernels were built for sm_90", "TORCH_CUDA_ARCH_LIST=8.0 pip"),
    ],
)
def test_why_a_gpu_is_not_served(monkeypatch, capability, architectures, reason, mend):
    gpus(monkeypatch, capability, architectures=architectures)
    lack = lack_of(0)
    assert lack.reason == reason
    assert mend in lack.mend


def test_a_driver_older_than_the_kernels_is_told(monkeypatch):
    gpus(monkeypatch, (9, 0), driver="12.4")
    lack = lack_of(0)
    assert lack.reason == "its driver is of CUDA 12.4, pacecore's kernels are of CUDA 13.0"
    assert lack.mend.startswith("update the driver; or, with an older nvcc on PATH")


def test_a_gpu_that_is_served_lacks_nothing(monkeypatch):
    gpus(monkeypatch, (9, 0), architectures="sm_80 sm_90")
    assert lack_of(0) is None
