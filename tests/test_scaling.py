"""How cost grows, and what is planned from it: the fits, the pages, and where figures come from."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import planning, scaling
from benchmarks.common import RESULTS
from benchmarks.planning import Inputs
from benchmarks.processes import held_bytes, watched
from benchmarks.readme import pages
from pacecore.errors import PacecoreError
from pacecore.store import record_bytes

MACHINE = {"processors": 2, "processor": "AMD", "torch": "2", "threads": 1}
MACHINE |= {"date": "2026-01-01T", "load_average": [0.5]}


def test_growth_is_the_power_of_the_size():
    assert scaling.growth([(n, 3 * n**2) for n in (1, 2, 5)]) == pytest.approx(2)
    assert scaling.growth([(4, 7.0)]) is None
    assert scaling.growth([(4, 7.0), (8, 0)]) is None


def test_steps_and_embeddings_are_measured_as_their_grid_says():
    grid = scaling.Grid(0.125, (1, 2), (4,), (16,), (), (), (16, 32), 16)
    device = torch.device("cpu")
    cases = list(scaling.steps(grid, device))
    assert [(case["grows"], case["value"]) for case in cases] == [
        ("batch", 1), ("batch", 2), ("clip_frames", 4), ("side_px", 16),
    ]  # fmt: skip
    assert all(case["clips_per_second"] > 0 for case in cases)
    found = list(scaling.embeddings(grid, device))
    assert [(case["way"], case["value"]) for case in found] == [
        ("info_nce", 16), ("info_nce", 32), ("plain torch", 16),
    ]  # fmt: skip
    page = scaling.page({"machine": MACHINE, "command": "x", "cases": [*cases, *found]})
    assert "## Clips of a batch" in page
    assert page.count("Fitted: time grows as the power") == 2
    assert "Embeddings of the contrastive loss, forward and backward: plain torch" in page


def test_a_quick_run_on_a_gpu_feeds_nothing_and_its_page_has_no_such_table(tmp_path, monkeypatch):
    grids = {(kind, quick): scaling.grid(torch.device(kind), quick)
             for kind in ("cuda", "cpu") for quick in (True, False)}  # fmt: skip
    assert [key for key, grid in grids.items() if not grid.workers] == [("cuda", True)]
    rows = {"grows": "rows", "way": "info_nce", "seconds": 1.0, "value": 16, "peak_bytes": 2}
    monkeypatch.setattr(scaling, "open_videos", lambda *_: (None, ""))
    monkeypatch.setattr(scaling, "grid", lambda *_: grids["cuda", True])
    monkeypatch.setattr(scaling, "feeding", lambda *_: pytest.fail("fed"))
    monkeypatch.setattr(scaling, "steps", lambda *_: [])
    monkeypatch.setattr(scaling, "embeddings", lambda *_: [rows])
    monkeypatch.setattr(scaling, "together", lambda *_: [])
    record = tmp_path / "scaling.json"
    monkeypatch.setattr("sys.argv", f"scaling --device cpu --quick --out {record}".split())
    scaling.main()
    page = record.with_suffix(".md").read_text()
    assert "## Embeddings" in page
    assert "Decoding processes" not in page


def test_memory_counts_the_processes_that_were_started():
    script = "import time; kept = bytearray(64 << 20); print(flush=True); time.sleep(300)"
    with watched(held_bytes, 0.25) as held:
        before = held.bytes
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            child.stdout.readline()
            end = time.monotonic() + 60
            while held.bytes - before < 60 << 20 and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
    assert held.bytes - before > 60 << 20


def test_the_pages_are_those_of_the_records():
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name}: run python -m benchmarks.readme"


def test_the_page_of_growth_says_what_a_shared_step_took():
    step = {"grows": "batch", "batch": 8, "clip_frames": 16, "side_px": 56, "value": 8}
    cases = [
        step | {"grows": grows, "clips_per_second": rate}
        for grows, rate in (("batch", 50.0), ("clip_frames", 40.0), ("side_px", 32.0))
    ]
    cases += [step | {"batch": 4, "clips_per_second": 1.0}, step | {"failed": "no memory"}]
    (said,) = scaling._noise([*cases, {"grows": "rows", "value": 8, "batch": 8}])
    assert "share took 160, 200 and 250 ms in them" in said
    assert scaling._noise(cases[:1]) == []


def test_a_plan_follows_from_its_inputs_and_the_record():
    rates = {"files, two views decoded once": 100.0, "store, two views": 500.0}
    cases = [{"way": way, "clips_per_core_second": rate} for way, rate in rates.items()]
    cases[0] |= {"packed_frames_per_core_second": 2000.0, "file_bytes_per_frame": 1000.0}
    cases[0]["videos"] = "some videos"
    page = planning.page(
        {"machine": MACHINE, "cases": cases}, Inputs(2000.0, "given", 50e9, 141e9, "one")
    )
    store = record_bytes((128, 171))
    assert f"{2000 * 16 * store / 1e9:.2f} GB/s" in page  # the bus of one GPU
    assert "| files | 20 |" in page  # 2,000 / 100 cores
    assert "8,640,000 clips" in page  # 240,000 x 18 x 2
    assert "| 1 | 1.20 hours | 4.80 hours | 20 | 4 |" in page
    assert f"{240_000 * 250 * store / 1e12:.2f} TB" in page
    assert "Packing once: 0.35 days of one core" in page  # 60 million / 2,000 / 86,400
    assert f"{1e9 * 2 / 2000 / 1024 / 60:.1f} minutes" in page


def record_of(path, **content):
    machine = {"gpu": "NVIDIA H100", "gpu_bytes": 80e9}
    path.write_text(json.dumps({"machine": machine} | content))


def test_plans_start_from_what_a_gpu_has_shown(tmp_path):
    ways = [
        {"way": "pacecore, store", "clips_per_second": 700.0},
        {"way": "pacecore, store in GPU memory, bf16", "clips_per_second": 900.0, "batch": 30},
        {"way": "the authors' way", "clips_per_second": 990.0},
        {"way": "pacecore, compiled", "failed": "no memory"},
    ]
    steps = [
        {"name": "limits", "values": {"cases": [{"bus_bytes_per_second": 54e9}]}},
        {"name": "pretrain", "values": {"cases": ways}},
        {"name": "tests", "values": {}},
    ]
    for lacking in (steps[:1], steps[1:], [steps[0], {"name": "pretrain", "values": {}}]):
        record_of(tmp_path / "gpu_check-cuda.json", steps=lacking)
        with pytest.raises(PacecoreError, match="needs the steps limits and pretrain"):
            planning.of_gpu(tmp_path)
    record_of(tmp_path / "gpu_check-cuda.json", steps=steps)
    found = planning.of_gpu(tmp_path)
    assert (found.gpu_clips, found.bus_bytes_per_second) == (900.0, 54e9)
    assert "from end to end in batches of 30, store in GPU memory, bf16; " in found.gpu_from
    record = json.loads((RESULTS / "data-cpu.json").read_text())
    page = planning.page(record, found)
    assert "| bus to a GPU | 54 GB/s | measured on an NVIDIA H100" in page
    assert "| memory of a GPU | 80 GB | measured on an NVIDIA H100" in page


def test_an_own_rate_is_called_given(tmp_path, monkeypatch):
    out = tmp_path / "plan.md"
    monkeypatch.setattr("sys.argv", ["planning", "--gpu-clips", "500", "--out", str(out)])
    planning.main()
    assert "| clips a second of a GPU | 500 | given with --gpu-clips |" in out.read_text()
    bus = planning.of_gpu(RESULTS).bus_bytes_per_second
    assert f"| bus to a GPU | {bus / 1e9:.0f} GB/s | measured on" in out.read_text()
