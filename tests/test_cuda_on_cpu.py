"""The emulation of CUDA finds every planted fault, and none in the same kernel without it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.devices import SCHEDULES

HERE = Path(build.__file__).parent

# Faults that one run reports, and words of the report; those of the sanitizers stand with the
# place that the emulation adds.
REPORTED = {
    "barrier_not_reached": "block (0, 0, 0): deadlock: thread (0, 0, 0) waits at __syncthreads, "
    "planted_faults.cu:{line}, but thread (40, 0, 0) has ended",
    "two_barriers": "is at __syncthreads, planted_faults.cu:",
    "lane_missing": "deadlock: thread (0, 0, 0) waits at a warp-wide operation, planted_faults.cu:",
    "shuffle_from_outside": "which has ended or is not in the mask",
    "caller_not_in_mask": "is not in the mask that it names",
    "misaligned_copy": "needs both addresses to be multiples of 16",
    "too_many_threads": "a block has 1 to 1024 threads, at most 64 of them in z, got (1056, 1, 1)",
    "too_much_shared": "at most 166912 bytes of dynamic shared memory on sm_80, got 204800",
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
    "missing_copy_wait",
    "early_copy",
]


@pytest.fixture(scope="module")
def planted_faults() -> Path:
    reason = build.compiler_missing()
    if reason:
        pytest.skip(reason)
    return build.build(program=HERE / "planted_faults.cu", sanitize=True)


def run(program: Path, name: str, how: str, schedule: str) -> subprocess.CompletedProcess:
    command = [program, name, how, str(SCHEDULES[schedule]), "1"]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("name", [*REPORTED, *DIFFERING])
def test_sound_kernels_pass(planted_faults, name):
    runs = [run(planted_faults, name, "sound", schedule) for schedule in SCHEDULES]
    assert all(ran.returncode == 0 and ran.stderr == "" for ran in runs), runs
    assert len({ran.stdout for ran in runs}) == 1
    assert len(runs[0].stdout) == 64 * 8


@pytest.mark.parametrize("name", REPORTED)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fault_is_reported(planted_faults, name, schedule):
    ran = run(planted_faults, name, "faulty", schedule)
    assert ran.returncode != 0
    assert f"{name}<faulty>:" in ran.stderr
    if schedule == "forwards":
        source = (HERE / "planted_faults.cu").read_text().split("__global__ void " + name)
        line = source[0].count("\n") + 3  # where these kernels have their barrier
        assert REPORTED[name].format(line=line) in ran.stderr
    if schedule == "forwards" and name in SANITIZED:
        place = f"{name}<faulty>: block (0, 0, 0): thread ({SANITIZED[name]}, 0, 0): reported by"
        assert place in ran.stderr


@pytest.mark.parametrize("name", DIFFERING)
def test_fault_changes_the_result(planted_faults, name):
    runs = [run(planted_faults, name, "faulty", schedule) for schedule in SCHEDULES]
    assert all(ran.returncode == 0 for ran in runs), runs
    assert len({ran.stdout for ran in runs}) > 1
