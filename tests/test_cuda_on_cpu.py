"""The emulation of CUDA finds every planted fault, and none in the same kernel without it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import require
from tests.cuda_on_cpu import build, devices
from tests.cuda_on_cpu.devices import SCHEDULES

HERE = Path(build.__file__).parent

# Faults that one run reports, and words of the report; those of the sanitizers stand with the
# place that the emulation adds.
REPORTED = {
    "barrier_not_reached": "block (0, 0, 0): deadlock: thread (0, 0, 0) waits at __syncthreads, "
    "planted_faults.cu:{line}, but thread (40, 0, 0) has ended",
    "two_barriers": "is at a barrier, planted_faults.cu:",
    "lane_missing": "deadlock: thread (0, 0, 0) waits at a warp-wide operation, planted_faults.cu:",
    "shuffle_from_outside": "which has ended or is not in the mask",
    "caller_not_in_mask": "is not in the mask that it names",
    "misaligned_copy": "needs both addresses to be multiples of 16",
    "partial_copy": "an asynchronous copy of 16 bytes reads all of them or none",
    "misaligned_matrix": "ldmatrix needs row addresses that are multiples of 16",
    "too_many_threads": "a block has 1 to 1024 threads, at most 64 of them in z, got (1056, 1, 1)",
    "too_much_shared": "at most 232448 bytes of shared memory on sm_90, got 0 static and 233472",
    "static_shared_not_counted": "limit of dynamic shared memory is 32768 bytes and was not raised",
    "cluster_barrier_not_reached": "deadlock: thread (0, 0, 0) of block (0, 0, 0) waits at the "
    "barrier of the cluster",
    "matrix_product": "ldmatrix needs all 32 lanes",
    "trap": "block (0, 0, 0): thread (7, 0, 0): executes __trap()",
    "global_out_of_bounds": "heap-buffer-overflow",
    "shared_out_of_bounds": "global-buffer-overflow",
    "dynamic_shared_out_of_bounds": "heap-buffer-overflow",
    "local_out_of_bounds": "index 4 out of bounds for type 'float [4]'",
    "misaligned_vector": "misaligned address",
}
SANITIZED = {
    "global_out_of_bounds": 63,
    "shared_out_of_bounds": 63,
    "dynamic_shared_out_of_bounds": 63,
    "local_out_of_bounds": 63,
    "misaligned_vector": 0,
}
# Faults that show as results which differ between the schedules.
DIFFERING = [
    "missing_barrier",
    "missing_barrier_before_reuse",
    "missing_warp_barrier",
    "unwritten_shared",
    "unwritten_dynamic_shared",
    "order_of_atomics",
    "order_of_blocks",
    "missing_cluster_barrier",
    "missing_copy_wait",
    "early_copy",
]


@pytest.fixture(scope="module")
def planted_faults() -> Path:
    reason = build.compiler_missing()
    if reason:
        require("PACECORE_REQUIRE_EMULATION", reason)
    return build.build(program=HERE / "planted_faults.cu", sanitize=True)


def run(program: Path, name: str, how: str, *schedules: str) -> subprocess.CompletedProcess:
    """Prints a line of 64 hexadecimal numbers for each schedule; without any, for all."""
    numbers = [str(SCHEDULES[schedule]) for schedule in schedules or SCHEDULES]
    command = [program, name, how, *numbers]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.parametrize("name", [*REPORTED, *DIFFERING])
def test_sound_kernels_pass(planted_faults, name):
    ran = run(planted_faults, name, "sound")
    assert (ran.returncode, ran.stderr) == (0, "")
    results = ran.stdout.split()
    assert len(results) == 3
    assert len(set(results)) == 1
    assert len(results[0]) == 64 * 8


def test_matrix_instructions(planted_faults):
    i, j, k = np.arange(16)[:, None], np.arange(8), np.arange(16)
    a = (i * 3 + k * 5) % 7 - 3
    b = (j * 2 + k[:, None] ** 2) % 5 - 2
    product = a @ b
    words = run(planted_faults, "matrix_product", "sound", "forwards").stdout
    values = np.array([int(words[at : at + 8], 16) for at in range(0, 512, 8)], dtype=np.uint32)
    expected = (product[:8] + 1000 * product[8:]).astype(np.float32)
    assert np.array_equal(values.view(np.float32).reshape(8, 8), expected)


@pytest.mark.parametrize("name", REPORTED)
def test_fault_is_reported(planted_faults, name):
    ran = run(planted_faults, name, "faulty", "forwards")
    assert ran.returncode != 0
    assert f"{name}<true>:" in ran.stderr
    source = (HERE / "planted_faults.cu").read_text().split("__global__ void " + name)
    line = source[0].count("\n") + 3  # where these kernels have their barrier
    assert REPORTED[name].format(line=line) in ran.stderr
    if name in SANITIZED:
        place = f"{name}<true>: block (0, 0, 0): thread ({SANITIZED[name]}, 0, 0): reported by"
        assert place in ran.stderr


@pytest.mark.parametrize("schedule", ["backwards", "shuffled"])
@pytest.mark.parametrize("name", REPORTED)
def test_fault_is_reported_in_every_order(planted_faults, name, schedule):
    ran = run(planted_faults, name, "faulty", schedule)
    assert ran.returncode != 0
    assert f"{name}<true>:" in ran.stderr


@pytest.mark.parametrize("name", DIFFERING)
def test_fault_changes_the_result(planted_faults, name):
    ran = run(planted_faults, name, "faulty")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(set(ran.stdout.split())) > 1


@pytest.fixture
def emulation():
    reason = devices.emulation_missing()
    if reason:
        require("PACECORE_REQUIRE_EMULATION", reason)
    with devices.emulation(90):
        yield


def test_schedules_that_disagree_are_an_error(emulation):
    results = iter([torch.zeros(3), torch.zeros(3), torch.tensor([0.0, -0.0, 0.0])])
    with pytest.raises(
        devices.ScheduleError, match="result 0 differs between threads run forwards"
    ):
        devices.run_every_schedule(lambda: next(results))


def test_schedules_agree_in_nan_too(emulation):
    result = torch.tensor([0.0, torch.nan])
    assert devices.run_every_schedule(lambda: result.clone()).isnan().tolist() == [False, True]


def test_memory_of_results_starts_as_nan(emulation):
    assert torch.ones(1).new_empty(8).isnan().all()


def test_what_is_not_modelled_is_an_error_that_says_what_to_do(tmp_path):
    reason = build.compiler_missing()
    if reason:
        require("PACECORE_REQUIRE_EMULATION", reason)
    source = tmp_path / "unknown.cu"
    source.write_text(
        '#include "launch.h"\n'
        "__global__ void kernel(int* out) { *out = __nv_isInvented(3); }\n"
        "int main() { return 0; }\n"
    )
    with pytest.raises(
        build.BuildError, match=r"(?s)__nv_isInvented.*not model.*cuda_on_cpu\.h"
    ) as caught:
        build.build(program=source)
    assert "primitives.h" in str(caught.value)
