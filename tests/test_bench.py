"""pacecore bench: what runs, what a failure leaves, rows and pages; installed from any folder."""

import ast
import itertools
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import common, pretrain, retrieve, suite, train_step
from benchmarks.backbones import Apart, Way, kernels_of
from benchmarks.common import (
    PACECORE,
    RESULTS,
    Timing,
    peer,
    read_record,
    run_limited,
    run_main,
    time_in_turn,
)
from benchmarks.info_nce import loss_alone
from benchmarks.official import Shape, _i420
from benchmarks.options import parsed, parser_of
from benchmarks.pace_clip_contenders import Case, inputs_of, per_clip, pil_jittered
from benchmarks.pretrain import Setting
from benchmarks.readme import _summary
from benchmarks.rows import ADAPTERS, Row, rows_of, short
from pacecore.cli import pacecore
from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.reference.info_nce import info_nce as reference

ROOT = Path(__file__).resolve().parents[1]
LIMITS = [{"threads": 1, "copy_bytes_per_second": 5e9, "float32_flops": 25e9}]
MACHINE = {
    "processors": 2,
    "processor": "AMD",
    "torch": "2.13.0",
    "pacecore": {"version": "0.1.0"},
    "commit": "",
    "date": "2026-01-01T00:00:00",
    "load_average": [1.0, 1.0, 1.0],
}

# A benchmark's process in few words; what it does is the name of the file.
SCRIPT = """
import argparse, json, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--device"); parser.add_argument("--out"); parser.add_argument("--data")
parser.add_argument("--quick", action="store_true")
options = parser.parse_args()
print("kornia left out: No module named 'kornia'")
case = {"threads": 1, "copy_bytes_per_second": 5e9, "float32_flops": 25e9}
if "limits" not in __file__:
    case |= {"queries": 10, "gallery": 20, "dimensions": 30, "k": 5}
    case["pacecore"] = {"seconds": {"p50": 0.5}, "peak_extra_bytes": 1e6}
    case["other"] = {"seconds": {"p50": 1.5}}
open(options.out, "w").write(json.dumps({"cases": [case]}))
"""


@pytest.fixture
def small_suite(tmp_path, monkeypatch):
    """A package of benchmarks of our own: limits, one that works, one that dies, one that hangs."""
    package = tmp_path / "fake" / "benches"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "limits.py").write_text(SCRIPT)
    (package / "retrieve.py").write_text(SCRIPT)
    (package / "evaluate.py").write_text("raise SystemExit('no such kernel')")
    (package / "data.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    monkeypatch.setattr(suite, "_PACKAGE", "benches")
    monkeypatch.setattr(suite, "__file__", str(package / "suite.py"))
    monkeypatch.setattr(suite, "BENCHMARKS", {name: suite.Benchmark(name) for name in NAMES})
    monkeypatch.setattr(suite, "QUICK_SECONDS", 5)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return tmp_path / "out"


NAMES = ("limits", "evaluate", "data", "retrieve")


def test_one_that_fails_or_hangs_leaves_the_rest(small_suite):
    told = []
    runs = suite.run_suite("cpu", small_suite, quick=True, on_done=told.append)
    assert [run.name for run in told] == list(NAMES)
    assert [run.state for run in runs] == ["passed", "failed", "failed", "passed"]
    assert [run.said for run in runs][1:3] == ["no such kernel", "not done after 5 s"]
    assert runs[3].said == "kornia left out: No module named 'kornia'"
    record = json.loads((small_suite / "bench-cpu.json").read_text())
    assert record["runs"] == [asdict(run) for run in runs]
    assert record["limits"][0]["float32_flops"] == 25e9
    page = (small_suite / "bench-cpu.md").read_text()
    assert page == suite.page(record)
    assert "Failed after" in page
    assert "| other | 1,500 ms | 3.00 x |" in page
    assert (small_suite / "data-cpu.log").read_text() == "begun\n"
    assert not list(small_suite.glob(".*"))


def test_a_record_of_an_earlier_run_is_not_taken_for_this_one(small_suite):
    small_suite.mkdir()
    old = small_suite / "evaluate-cpu.json"
    case = {"backbone": "r3d", "preset": "small", "share_of_network_rate": 0.5}
    case["clips_per_second"] = {"test": 2.0, "network_alone": 4.0}
    assert rows_of("evaluate", [case], LIMITS)  # it would be understood
    old.write_text(json.dumps({"cases": [case]}))
    subprocess.run(["touch", "-d", "2020-01-01", old], check=True)
    runs = suite.run_suite("cpu", small_suite, only=["evaluate"])
    assert [(run.name, run.state, run.rows) for run in runs][1] == ("evaluate", "failed", [])
    assert old.is_file()


def test_a_record_that_is_not_understood_is_a_failure(small_suite, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "retrieve", lambda cases, limits: [cases[0]["nothing"]])
    runs = suite.run_suite("cpu", small_suite, only=["retrieve"])
    assert runs[-1].state == "failed"
    assert runs[-1].said == "its record is not understood: KeyError 'nothing'"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"only": ["pace"]}, "only must be of limits, pace_clip"),
        ({"official": "/nowhere"}, "official: /nowhere is not a folder"),
        ({"data": "/nowhere"}, "/nowhere: no such file or folder"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_does(tmp_path, arguments, words):
    with pytest.raises(PacecoreError, match=words):
        suite.run_suite("cpu", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("experiments /nowhere --runs R", "experiments: /nowhere: no such file or folder"),
        ("experiments /nowhere --runs R --seeds 1,b", "must be a whole number, got 'b'"),
        ("experiments /nowhere --runs R --scene set[0-9]", "must have a group, in parentheses"),
        ("data --device tpu", "argument --device: device must be auto, cpu, cuda or cuda:<n>, got"),
        ("memory --clips 0", "argument --clips: must be a whole number above 0, got '0'"),
        ("info_nce --types int8", "must be of float32, bfloat16, float16, got 'int8'"),
        ("info_nce --rows 60,60", "argument --rows: must differ from each other, got '60,60'"),
        ("info_nce --quick --norms 2", "cases of its own, so --norms has no meaning beside it"),
        ("retrieve --quick --large 3", "--large has no quick run"),
        ("planning --gpu-clips inf", "must be a finite number above 0, got 'inf'"),
        ("scaling --page none.json", "none.json: cannot be read as a record: No such file"),
        ("install --work none", "--work: none is not a folder"),
        ("hostile --count 1", "hostile: PACECORE_DATA must name a folder of videos"),
    ],
)
def test_a_benchmark_ends_in_words(monkeypatch, capsys, tmp_path, command, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PACECORE_DATA", raising=False)
    name, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # runpy warns of it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_benchmark_that_breaks_off_leaves_what_it_has(monkeypatch, tmp_path):
    record = tmp_path / "record.json"
    cases = {"memory": lambda _: [{"held": 1}], "start": lambda _: 1 / 0}
    monkeypatch.setattr(train_step, "CASES", cases)
    options = f"train_step --data videos --only memory start --out {record}"
    monkeypatch.setattr(sys, "argv", options.split())
    with pytest.raises(ZeroDivisionError):
        train_step.main()
    assert json.loads(record.read_text())["cases"] == [{"case": "memory", "held": 1}]


def test_it_runs_without_docstrings(capsys):
    with pytest.raises(SystemExit, match="0"):
        parser_of(None).parse_args(["--help"])
    assert "--quick" in capsys.readouterr().out


def test_a_command_that_fails_ends_a_benchmark_in_words(capfd):
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: subprocess.run([*PACECORE, "train", "/no/videos"], check=True))
    assert ended.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-2] == "pacecore: /no/videos: no such file or folder"
    assert said[-1].endswith(": pacecore train videos ended with code 2")


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', "[" * 100_000, "\x00"])
def test_what_is_no_record_is_told_by_its_name(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(PacecoreError, match=f"{path}: "):
        read_record(path)


def test_options_given_to_a_quick_run_stay(monkeypatch):
    parser = parser_of("What it does.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=36)
    for words, expected in (("", (5, 36)), ("--quick", (2, 6)), ("--quick --videos 9", (2, 9))):
        monkeypatch.setattr(sys, "argv", ["it", *words.split()])
        options = parsed(parser, rounds=2, videos=6)
        assert (options.rounds, options.videos) == expected
        parser.set_defaults(rounds=5, videos=36)


def test_a_record_of_each_size_is_there_before_the_next(monkeypatch, tmp_path):
    record = tmp_path / "record.json"

    def case(queries, gallery, dimensions, device, rounds):
        if dimensions > 512:
            raise KeyboardInterrupt
        return {"queries": queries}

    monkeypatch.setattr(retrieve, "case", case)
    monkeypatch.setattr(sys, "argv", ["retrieve", "--out", str(record)])
    with pytest.raises(KeyboardInterrupt):
        retrieve.main()
    assert [each["queries"] for each in read_record(record)["cases"]] == [1500, 3783]


def test_the_verb_says_each_benchmark_and_exits_1_when_one_failed(monkeypatch, tmp_path):
    import pacecore.benchmarks.suite as installed

    def run_suite(device, out, *, on_done, **given):
        seen.update(given, device=device)
        runs = [installed.Run("retrieve", "passed", "", 1.0, [Row("c", "ours", 2.0, "ms", 1.0)])]
        runs += [installed.Run("data", "failed", "no videos", 2.0)]
        for run in runs:
            on_done(run)
        return runs

    seen: dict = {}
    monkeypatch.setattr(installed, "run_suite", run_suite)
    arguments = ["bench", "--device", "cpu", "--quick", "--only", "retrieve, data"]
    done = CliRunner().invoke(pacecore, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "failed  data" in done.output
    assert seen["only"] == ["retrieve", "data"]
    assert seen["command"] == "pacecore bench --device cpu --quick --only 'retrieve, data'"


def test_it_runs_as_a_verb_from_another_folder(tmp_path):
    program = "from pacecore.cli import main; main()"
    command = [sys.executable, "-c", program, "bench", "--only", "limits", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--quick", "--out", "found"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "found" / "bench-cpu.json").read_text())
    assert record["limits"][0]["copy_bytes_per_second"] > 0
    said = json.loads((tmp_path / "found" / "limits-cpu.json").read_text())["command"]
    assert said == "python -m pacecore.benchmarks.limits --device cpu --quick --out limits-cpu.json"


def test_children_end_with_the_command_that_started_them(tmp_path):
    script = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
    )
    _, output = run_limited([sys.executable, "-c", script], tmp_path / "log", 30)
    state = Path(f"/proc/{output.strip()}/stat")
    for _ in range(300):
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] in "ZX":
            return
        time.sleep(0.1)
    pytest.fail("its child lives on")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_import_each_other_by_dots(path):
    """Installed, they are pacecore.benchmarks; a package `benchmarks` is not there."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert not [name for name in names if name.split(".")[0] in ("benchmarks", "tests")]


def test_every_benchmark_of_the_suite_has_rows():
    assert set(suite.BENCHMARKS) - {"limits"} <= set(ADAPTERS)


@pytest.mark.parametrize(
    "name", ["pace_clip-cpu", "info_nce-cpu", "data-cpu", "backbones-small-cpu"]
)
def test_rows_of_the_records_that_are_here(name):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    rows = rows_of(name.split("-")[0], record["cases"], LIMITS)
    assert len(rows) > 1
    assert all(row.value > 0 and row.unit for row in rows)
    assert any(row.share for row in rows)
    assert any(row.times and row.times > 1 for row in rows)
    assert any(row.times in (None, 1) for row in rows)  # ours


def test_rows_of_one_benchmark_by_hand():
    case = {"queries": 10, "gallery": 100, "dimensions": 50}
    case["pacecore"] = {"seconds": {"p50": 0.001}, "peak_extra_bytes": 2e6}
    case["scikit-learn brute"] = {"seconds": {"p50": 0.004}, "peak_extra_bytes": 8e6}
    ours, other = rows_of("retrieve", [case], LIMITS)
    assert (ours.times, other.times) == (1.0, 4.0)
    assert ours.share == pytest.approx(2 * 10 * 100 * 50 / 0.001 / 25e9)
    assert other.note == "8 MB extra"


def test_an_installed_benchmark_is_not_looked_for_in_the_current_folder(tmp_path, monkeypatch):
    """Where the source may lie, with nothing built."""
    (tmp_path / "pacecore").mkdir()
    (tmp_path / "pacecore" / "__init__.py").write_text("raise SystemExit('of the source')")
    monkeypatch.setattr(common, "IN_SOURCE", False)
    command = [*common.module_command("pacecore.cli"), "--version"]
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "version" in done.stdout, done.stderr


def test_where_a_step_spends_its_time():
    def step():
        a = torch.ones(600, 600)  # filling it is little beside the products
        for _ in range(5):
            a = a @ a

    product, *others = kernels_of(step, torch.device("cpu"), most=3)
    assert (product["kernel"], product["calls"]) == ("aten::mm", 5)
    assert product["microseconds"] > max(other["microseconds"] for other in others) > 0
    assert len(others) == 2


def test_a_way_that_waits_for_its_turn_takes_no_time():
    way = Apart("r3d", 0.125, torch.rand(2, 3, 8, 32, 32), Way())
    (process,) = multiprocessing.active_children()

    def ticks():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before <= 5
    seconds, held = way(1)
    assert seconds > 0
    assert held >= 0
    way.pipe.close()
    process.join(30)


def test_ours_stands_beside_both_ways_of_torch_unasked():
    size = {"network": "r21d", "width": 1, "batch": 2, "frames": 16, "crop": 112, "peak_bytes": 1}
    rates = {"clips_per_second": 2.0, "tflop_per_second": 0.1}
    cases = [
        {**size, **rates, "way": "plain", "times_plain": 1.0},
        {**size, **rates, "way": "plain in TF32", "times_plain": 1.5},
        {**size, **rates, "way": "bf16", "times_plain": 3.0},
    ]
    plain, unasked, ours = rows_of("backbones", cases, LIMITS)
    assert (plain.times, unasked.times) == (3.0, 2.0)
    assert not rows_of("backbones", cases[:2], LIMITS)  # as where ours failed
    assert unasked.share is None  # no limit of that arithmetic was measured
    assert plain.note.endswith("ours is bf16")
    assert ours.way == "ours, bf16"
    line = _summary([{"rows": [asdict(row) for row in (plain, unasked, ours)]}])[2]
    assert "| 2.00 clips/s |" in line


def test_the_readme_shows_all_of_ours_where_there_is_no_peer():
    rows = [
        Row("a step", f"pacecore, {way}", ms, "ms", share=0.5)
        for way, ms in (("files", 6), ("store", 7))
    ]
    lines = _summary([{"rows": [asdict(row) for row in rows]}])[2:4]
    assert lines == [
        "| a step, files | 6.00 ms |  | 50 % |  |",
        "| a step, store | 7.00 ms |  | 50 % |  |",
    ]


def test_end_to_end_rows_compare_our_best_with_each_peer():
    common = {"batch": 4, "workers": 1, "clip": [8, 56, 56], "network_alone": 10.0, "amp": "none"}
    cases = [
        {"way": "the authors' way, rebuilt", "clips_per_second": 2.0, **common},
        {"way": "pacecore, store", "clips_per_second": 9.0, "waiting_share": 0.02, **common},
    ]
    peer, ours = rows_of("pretrain", cases, LIMITS)
    assert (peer.times, ours.times) == (4.5, None)
    assert ours.share == 0.9
    failed = {"way": "pacecore, store", "failed": "RuntimeError", **common}
    assert not rows_of("pretrain", [cases[0], failed], LIMITS)  # else the README calls theirs ours


def test_the_readme_says_of_training_which_of_our_ways_is_how_much_faster():
    common = {"batch": 30, "workers": 8, "clip": [16, 112, 112], "network_alone": None}
    rates = {"pacecore, store, bf16": 8.0, "pacecore, store": 4.0, "pacecore, store, slow": 1.0}
    cases = [
        {"way": way, "clips_per_second": rate, **common}
        for way, rate in (rates | {"the official repository": 2.0}).items()
    ]
    rows = [asdict(row) for row in rows_of("pretrain", cases, LIMITS)]
    what = "| r21d, width 1, 16 x 112 x 112, batch 30, 8 workers, end to end, store"
    assert _summary([{"rows": rows}])[2:-1] == [
        f"{what}, bf16 | 8.00 clips/s |  |  | the official repository 4.00 x |",
        f"{what} | 4.00 clips/s |  |  | the official repository 2.00 x |",
    ]


def test_the_limit_of_the_loss_is_the_most_that_the_run_reached():
    case = {"name": "pacecore", "rows": 60, "features": 512, "seconds": {"p50": 1e-3}}
    case |= {"peak_extra_bytes": 0, "share": 0.5, "tflops": 0.01}
    limits = [{"threads": 2, "float32_flops": 0.04e12}]
    (alone,) = rows_of("info_nce", [case | {"type": "float32"}], [])
    (beside,) = rows_of("info_nce", [case | {"type": "float32"}], limits)
    (other,) = rows_of("info_nce", [case | {"type": "bfloat16"}], limits)
    assert [row.share for row in (alone, beside, other)] == [0.5, 0.25, 0.5]
    assert beside.limit == "matrix product at 0.0400 TFLOP/s"


def test_contenders_are_timed_in_turn_after_a_run_to_warm_up():
    order: list[str] = []
    ticks = itertools.count().__next__
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    found = time_in_turn(functions, min_seconds=0, min_runs=4, rounds=2, clock=ticks)
    assert "".join(order) == "aaabbbaaabbb"
    assert found == {"a": Timing(1.0, 1.0, 1.0, 4), "b": Timing(1.0, 1.0, 1.0, 4)}


def test_the_loss_alone_is_the_same_loss():
    z, groups = torch.randn(12, 5), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4])
    torch.testing.assert_close(loss_alone(z, groups), reference(z, groups)[0])


def test_a_peer_without_jitter_does_no_arithmetic_but_the_resize():
    case = Case("", (8, 8), (8, 8), (4, 4), clip_frames=2, clips=1, jitter=False)
    run = per_clip(case, inputs_of(case, torch.device("cpu")), lambda frames: frames, [])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    assert "aten::mul" not in {event.name for event in seen.events()}


def test_the_clock_stops_before_the_workers_end(monkeypatch):
    class Loader:
        def __init__(self, dataset, *, sampler, batch_size, **_):
            self.batches = len(sampler) // batch_size

        def __iter__(self):
            for _ in range(self.batches):
                yield torch.zeros(4, 3), torch.zeros(4)
            time.sleep(1)  # as joining them takes

    monkeypatch.setattr(pretrain, "DataLoader", Loader)
    monkeypatch.setattr(pretrain, "training_step", lambda *_: lambda *_: time.sleep(0.01))
    setting = Setting(
        torch.device("cpu"),
        Shape(clip_frames=4, resize=(24, 32), crop=16),
        batch=4,
        workers=1,
        timed_steps=5,
    )
    way = SimpleNamespace(network=torch.nn.Identity)
    found = pretrain.authors(setting, way, [0], tf32=False)
    assert found["steps"] == 5
    assert found["clips_per_second"] > 4 * 5 / 0.9


def test_frames_of_odd_sizes_lose_a_row_or_column():
    size = (37, 51)
    frame = Frames.of_rgb(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).table.clone()
    data = torch.arange(37 * 52 + 2 * 19 * 26, dtype=torch.int64).to(torch.uint8)
    frame[0] = torch.tensor([0, 37 * 52, 37 * 52 + 19 * 26, *size, 52, 26, 1])
    planes = _i420(Frames(data, frame), frame[0].tolist())
    assert planes.shape == (54, 50)
    luma = data[: 37 * 52].view(37, 52)[:36, :50]
    chroma = [data[37 * 52 :].view(2, 19, 26)[plane, :18, :25].flatten() for plane in (0, 1)]
    assert planes.ravel().tolist() == torch.cat([luma.flatten(), *chroma]).tolist()


def test_pil_s_jitter_takes_the_steps_in_order_and_turns_hues_by_whole_steps():
    Image = pytest.importorskip("PIL.Image", reason="jitters with PIL")
    picture = Image.new("RGB", (1, 1), (200, 100, 100))
    # Twice as bright it is (255, 200, 200); without contrast it is its mean grey, 130.
    bright_first, grey_first = 0 | 1 << 2 | 2 << 4 | 3 << 6, 1 | 0 << 2 | 2 << 4 | 3 << 6
    for order, grey in ((bright_first, 216), (grey_first, 255)):
        found = pil_jittered(picture, [2, 0, 1, 0], order).getpixel((0, 0))
        assert found == (grey,) * 3
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    for turns, hue in ((0.1, 25), (-0.1, 231)):  # 25.5 of 255 steps
        turned = Image.new("HSV", (1, 1), (hue, 255, 255)).convert("RGB")
        found = pil_jittered(red, [1, 1, 1, turns], bright_first)
        assert found.getpixel((0, 0)) == turned.getpixel((0, 0))


def test_a_peer_that_does_not_load_is_left_out_like_one_that_is_missing(tmp_path, monkeypatch):
    """As a torchvision that was built for another torch."""
    (tmp_path / "pacecore_peer.py").write_text("raise RuntimeError('operator peer::nms is not')\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = "pacecore_peer does not load: RuntimeError: operator peer::nms is not"
    with pytest.raises(ImportError, match=words):
        peer("pacecore_peer")
    with pytest.raises(ModuleNotFoundError, match="No module named 'pacecore_other_peer'"):
        peer("pacecore_other_peer")


def test_a_missing_peer_is_said():
    record = {"command": "pacecore bench", "quick": True, "machine": MACHINE, "limits": LIMITS}
    record |= {"runs": [], "peers": {"kornia": None, "cv2": "4.9"}}
    page = suite.page(record)
    assert "Not installed, so not compared: kornia." in page
    assert "an AMD" in page
    assert "| 1 | 5.00 | 0.0250 |" in page


@pytest.mark.parametrize(
    ("number", "words"),
    [(1234.5, "1,234"), (56.78, "56.8"), (5.678, "5.68"), (0.0123, "0.0123"), (0.5, "0.50")],
)
def test_three_figures(number, words):
    assert short(number) == words
