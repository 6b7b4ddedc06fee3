"""nvcc compiles every kernel for old and new GPUs, without spills and at its stated occupancy."""

import copy
import json
import re
import shutil

import pytest

from tests import cuda_resources

needs_nvcc = pytest.mark.skipif(
    cuda_resources.nvcc() is None or shutil.which("c++filt") is None,
    reason="no nvcc (CUDA_HOME, PATH, /usr/local/cuda) or no c++filt: the kernels are not compiled",
)


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads(cuda_resources.TABLE.read_text())


@pytest.fixture(scope="module")
def measured(table) -> dict:
    return cuda_resources.measure(table)


@needs_nvcc
def test_kernels_are_as_the_table_says(table, measured):
    assert not cuda_resources.differences(table, measured)


@needs_nvcc
def test_every_kernel_of_the_sources_is_measured_for_every_architecture(measured):
    architectures = cuda_resources.architectures()
    assert {80, 90} < set(architectures)
    for entry in measured["kernels"].values():
        assert {f"sm_{arch}" for arch in architectures} < set(entry)
    of_sources = set()
    for source in cuda_resources.CSRC.glob("cuda/*.cu"):
        kernels = re.findall(r"__global__[^{;]*?\b(\w+_kernel)\(", source.read_text())
        assert kernels, source
        of_sources.update(kernels)
    assert of_sources == {name.split("<")[0] for name in measured["kernels"]}


@needs_nvcc
def test_what_nvcc_said_of_the_same_sources_is_not_asked_again(table, monkeypatch):
    monkeypatch.setattr(cuda_resources, "disassembler", lambda: None)
    asked = {"sm_80": 1, "sm_90": 2}
    monkeypatch.setattr(cuda_resources, "dynamic_shared", lambda names: dict.fromkeys(names, asked))
    runs = []
    monkeypatch.setattr(cuda_resources, "compile_kernels", lambda: runs.append(1) or {80: []})
    known = {**table, "compiled": cuda_resources.compiled(table["kernels"])}
    measured = cuda_resources.measure(known)
    assert not runs
    findings = cuda_resources.differences(known, measured)
    assert len(findings) == len(table["kernels"])  # how they are launched is measured all the same
    assert all("dynamic_shared was" in finding for finding in findings)
    cuda_resources.measure(known, again=True)
    edited = copy.deepcopy(known)
    edited["kernels"]["batch_kernel"]["sm_80"]["registers"] -= 1
    cuda_resources.measure(edited)
    assert len(runs) == 2


@needs_nvcc
@pytest.mark.parametrize("changed", ["pace_clip_math.h", "cuda/launch.h", "cuda/info_nce.cu"])
def test_a_change_of_any_source_of_the_kernels_has_them_compiled(changed, tmp_path, monkeypatch):
    before = cuda_resources.compiled({})
    copied = tmp_path / "csrc"
    shutil.copytree(cuda_resources.CSRC, copied)
    monkeypatch.setattr(cuda_resources, "CSRC", copied)
    assert cuda_resources.compiled({}) == before
    (copied / changed).write_text((copied / changed).read_text() + "//\n")
    assert cuda_resources.compiled({}) != before


@needs_nvcc
def test_inner_loops_access_memory_in_the_widths_of_the_table(table, measured):
    if cuda_resources.disassembler() is None:
        pytest.skip("no nvdisasm: set PACECORE_NVDISASM or pip install nvidia-cuda-nvdisasm")
    if table["nvcc"] != measured["nvcc"]:
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this is {measured['nvcc']}")
    for name, entry in measured["kernels"].items():
        for arch in ("sm_80", "sm_90"):
            assert entry[arch]["loop_accesses"] == table["kernels"][name][arch]["loop_accesses"]


def test_the_table_holds_no_spill_and_a_disassembly(table):
    for name, entry in table["kernels"].items():
        assert entry["threads"] % 32 == 0, name
        assert {"sm_80", "sm_90", "sm_100"} < set(entry), name
        for arch in entry.keys() - {"threads", "dynamic_shared"}:
            assert entry[arch]["spill"] == 0, name
            assert entry[arch]["loop_accesses"] is not None, name


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared_bytes", "blocks"),
    [
        (80, 256, 32, 0, 8),  # by threads: 2048 / 256
        (80, 32, 32, 0, 32),  # by the number of blocks
        (80, 256, 64, 0, 4),  # by registers: 65536 / (256 * 64)
        (80, 256, 65, 0, 3),  # 72 registers are dealt out: 2304 a warp, 28 warps, whole blocks of 8
        (80, 128, 255, 0, 2),  # 8192 a warp, 8 warps
        (80, 128, 32, 48 * 1024, 3),  # by shared memory: 164 KB / (48 + 1)
        (90, 128, 32, 48 * 1024, 4),  # 228 KB / 49
        (120, 256, 32, 0, 6),  # by threads: 1536 / 256
    ],
)
def test_occupancy_by_hand(arch, threads, registers, shared_bytes, blocks):
    assert cuda_resources.blocks_per_sm(arch, threads, registers, shared_bytes) == blocks


NUMBERS = {
    "registers": 40,
    "spill": 0,
    "stack": 0,
    "shared": 1024,
    "blocks_per_sm": 6,
    "loop_accesses": ["LDG.E.128"],
}
KERNEL = {"threads": 256, "dynamic_shared": {"sm_80": 64, "sm_90": 32}, "sm_80": NUMBERS}
TABLE = {
    "nvcc": "13.0",
    "kernels": {"kernel<float>": KERNEL},
}


def changed(key: str, value: object) -> dict:
    new = copy.deepcopy(TABLE)
    entry = new["kernels"]["kernel<float>"]
    (entry["sm_80"] if key in NUMBERS else entry)[key] = value
    return new


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("spill", 8, "spills 8 bytes"),
        ("blocks_per_sm", 5, "5 blocks on a multiprocessor, below the stated 6"),
        ("registers", 41, "registers was 40, is 41"),
        ("loop_accesses", ["LDG.E"], "loop_accesses was ['LDG.E.128'], is ['LDG.E']"),
        ("threads", None, "has no __launch_bounds__"),
        ("threads", 128, "threads was 256, is 128"),
        ("dynamic_shared", {"sm_80": None, "sm_90": 32}, "not launched"),
    ],
)
def test_a_change_is_found(key, value, finding):
    assert any(finding in line for line in cuda_resources.differences(TABLE, changed(key, value)))


def test_another_nvcc_may_count_otherwise_but_not_worse():
    assert not cuda_resources.differences(TABLE, TABLE)
    assert not cuda_resources.differences(TABLE, {**changed("registers", 41), "nvcc": "13.1"})
    assert cuda_resources.differences(TABLE, {**changed("spill", 8), "nvcc": "13.1"})
    assert cuda_resources.differences(TABLE, {**changed("blocks_per_sm", 5), "nvcc": "13.1"})


def test_a_kernel_that_is_new_or_gone_is_found():
    empty = {"nvcc": "13.0", "kernels": {}}
    assert cuda_resources.differences(empty, TABLE) == ["kernel<float>: not in the table"]
    assert "no longer compiled" in cuda_resources.differences(TABLE, empty)[0]
