"""gpu_check: its machinery, without a GPU; and that without one it says so and exits 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from benchmarks import common, gpu_check, gpu_exercise, gpu_steps, limits
from benchmarks.common import ROOT
from benchmarks.gpu_steps import Context, Result


@pytest.fixture
def context(tmp_path):
    (tmp_path / "tree").mkdir()
    return Context(tmp_path / "tree", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_exits_2(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no GPU" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_later_steps_run_after_a_failed_one_and_each_is_kept(tmp_path, monkeypatch):
    def broken(context):
        raise RuntimeError("no such kernel")

    steps = {
        "first": broken,
        "second": lambda context: Result("second", values={"cases": [{"n": 3}]}),
        "third": lambda context: Result("third", "skipped", "not here"),
    }
    monkeypatch.setattr(gpu_steps, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda device, commit: {"gpu": "Card"})
    assert gpu_check.main(["--out", str(tmp_path), "--only", "first,second,third"]) == 1
    record = json.loads((tmp_path / "gpu_check-cuda.json").read_text())
    assert [step["state"] for step in record["steps"]] == ["failed", "passed", "skipped"]
    assert record["steps"][0]["said"] == "RuntimeError: no such kernel"
    assert record["steps"][1]["values"] == {"cases": [{"n": 3}]}
    page = (tmp_path / "gpu_check-cuda.md").read_text()
    assert "| first | failed |" in page
    assert "- gpu: Card" in page
    assert not list(tmp_path.glob(".*"))


def test_what_passed_before_stays_until_the_code_changes(tmp_path, monkeypatch):
    found = {"first": "passed", "second": "failed"}
    steps = {name: lambda context, name=name: Result(name, found[name]) for name in found}
    monkeypatch.setattr(gpu_steps, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda device, commit: {"commit": commit})

    def states(*arguments):
        gpu_check.main(["--out", str(tmp_path), *arguments])
        record = json.loads((tmp_path / "gpu_check-cuda.json").read_text())
        return {step["name"]: step["state"] for step in record["steps"]}

    assert states("--commit", "a") == found
    found["second"] = "passed"
    assert states("--commit", "a", "--only", "second") == {"first": "passed", "second": "passed"}
    both = {"first": "passed", "second": "passed"}
    assert states("--commit", "b", "--only", "second", "--also", "a") == both
    assert "| first | passed | 0.0 | ; commit a |" in (tmp_path / "gpu_check-cuda.md").read_text()
    assert states("--commit", "c", "--only", "second", "--also", "b") == {"second": "passed"}
    late = {"first": "failed", "second": "passed"}  # neither is begun
    assert states("--commit", "c", "--limit", "1e-9") == late
    other = tmp_path / "gpu_check-cuda-before.json"
    assert not other.exists()
    assert states("--commit", "d") == both
    assert json.loads(other.read_text())["machine"] == {"commit": "c"}


def test_a_step_that_is_cut_off_by_the_time_of_all_leaves_what_was_found_before(
    tmp_path, monkeypatch
):
    found = [
        Result("a", "failed", "one differs", date="1", values={"cases": [{}, {}]}),
        Result("a", "failed", "cut off", date="2", values={"cases": [{}]}),
        Result("a", "passed", "whole", date="3", values={"cases": [{}]}),
        Result("a", "failed", "cut off", date="4", values={"cases": [{}, {}, {}]}),
        Result("a", "failed", "one differs", date="5"),
    ]
    monkeypatch.setattr(gpu_check, "STEPS", {"a": None})
    monkeypatch.setattr(gpu_check, "run_steps", lambda *_: (each for each in [found.pop(0)]))
    monkeypatch.setattr(gpu_check, "copy_tree", lambda folder, built: folder)

    def said(*limit):
        arguments = ["--device", "cpu", "--only", "a", "--commit", "c", "--out", str(tmp_path)]
        gpu_check.main([*arguments, *limit])
        (step,) = json.loads((tmp_path / "gpu_check-cpu.json").read_text())["steps"]
        return step["said"]

    late = ("--limit", "1e-9")
    shown = [said(), said(*late), said(*late), said(*late), said()]
    assert shown == ["one differs", "one differs", "whole", "whole", "one differs"]


def test_it_begins_where_no_video_can_be_read_and_so_do_the_benchmarks_without_any():
    names = ", ".join(f"benchmarks.{name}" for name in gpu_steps._WITHOUT_VIDEO)
    blocked = f"""
import sys; sys.modules["av"] = None
import benchmarks.gpu_check, benchmarks.gpu_exercise, tests.conftest, pacecore.doctor, {names}
assert benchmarks.options.device_name("auto")
"""
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=ROOT)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_its_own_folder_in_the_tree_is_no_change_of_the_code(tmp_path, monkeypatch):
    def run(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("1")
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "first"]):
        run(*words)
    (tmp_path / "gpu-check").mkdir()
    (tmp_path / "gpu-check" / "build.log").write_text("built")
    about = gpu_check.machine("cpu")
    assert (len(about["commit"]), about["uncommitted_changes"]) == (40, False)
    (tmp_path / "code.py").write_text("2")
    assert gpu_check.machine("cpu")["uncommitted_changes"] is True


def test_no_step_begins_after_the_limit_of_all_which_opening_the_gpu_belongs_to(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_check, "STEPS", {"a": lambda context: pytest.fail("begun")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda device, commit: time.sleep(0.5) or {})
    monkeypatch.setattr(gpu_check, "copy_tree", lambda folder, built: folder)
    assert gpu_check.main(["--out", str(tmp_path), "--only", "a", "--limit", "0.5"]) == 1
    assert "not begun" in (tmp_path / "gpu_check-cuda.json").read_text()


def test_those_of_a_group_run_side_by_side_and_are_told_as_they_end(context, monkeypatch):
    begun, told = threading.Barrier(2), threading.Event()
    steps = {
        "first": lambda context: Result("first"),
        "slow": lambda context: (begun.wait(30), told.wait(30), Result("slow"))[-1],
        "quick": lambda context: (begun.wait(30), Result("quick"))[-1],
        "other": lambda context: Result("other", "passed" if told.is_set() else "failed"),
    }
    monkeypatch.setattr(gpu_steps, "STEPS", steps)
    groups = {"slow": "untimed", "quick": "untimed", "other": "timed"}
    monkeypatch.setattr(gpu_check, "TOGETHER", groups)
    results = []
    for result in gpu_check.run_steps(list(steps), context):
        results.append(result)
        if result.name == "quick":
            told.set()
    assert [result.name for result in results] == ["first", "quick", "slow", "other"]
    assert all(result.state == "passed" for result in results)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_keeps_what_has_ended_and_ends_the_rest(tmp_path, sent):
    """Of two steps side by side the first has ended; the other's process must not live on."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import gpu_check, gpu_steps
from benchmarks.common import run_main

def slow(context):
    code, _ = context.run("slow", [sys.executable, "-c", SLEEP], 300)
    return gpu_steps._judged("slow", code, "", 300)

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
steps = {{"quick": lambda context: gpu_steps.Result("quick"), "slow": slow}}
gpu_check.STEPS = gpu_steps.STEPS = steps
gpu_check.TOGETHER = dict.fromkeys(steps, "a group")
gpu_check.copy_tree = lambda folder, built: folder
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.argv[1:] = ["--device", "cpu", "--out", {str(tmp_path)!r}, "--only", "quick,slow"]
run_main(gpu_check.main)
"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    log, written = tmp_path / "slow.log", tmp_path / "gpu_check-cpu.json"
    try:
        while not (log.is_file() and log.read_text().strip() and written.is_file()):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        assert process.wait(60) == 130
    finally:
        process.kill()
    record = json.loads(written.read_text())
    assert [(step["name"], step["state"]) for step in record["steps"]] == [("quick", "passed")]
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_nothing_is_begun_with_a_build_that_crashes(context, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    code, output = context.run("exercise", [sys.executable, "-c", crash], 30)
    crashed = gpu_steps._judged("exercise", code, output, 30)
    off = Result("exercise", "failed", values={"went_through": True})
    assert [gpu_steps.breaks(each) for each in (crashed, off, Result("build"))] == [
        True,
        False,
        False,
    ]
    assert (crashed.state, crashed.said) == ("failed", "ended by signal SIGSEGV; it said nothing")
    steps = {name: lambda context: pytest.fail("begun") for name in ("tests", "pace_clip")}
    monkeypatch.setattr(gpu_steps, "STEPS", {"exercise": lambda context: crashed, **steps})
    results = list(gpu_check.run_steps(["exercise", "tests", "pace_clip"], context))
    assert [result.state for result in results] == ["failed"] * 3
    assert results[2].said == "not begun, since exercise failed"


def test_a_record_that_is_not_understood_is_told_on_the_page():
    record = {"machine": {}, "steps": [_step("info_nce", {"cases": [{"seconds": 1}]})]}
    assert "its record is not understood: KeyError" in gpu_check.page(record)


def test_unknown_step_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--out", str(tmp_path), "--only", "nothing"])


def test_the_copied_tree_imports_the_command_line(tmp_path):
    tree = gpu_check.copy_tree(tmp_path)
    assert (tree / "pacecore" / "cli" / "__init__.py").is_file()
    assert (tree / "setup.py").is_file()
    assert not list(tree.rglob("*.so"))
    assert not (tree / ".git").exists()
    again = gpu_check.copy_tree(tmp_path / "again", built=True)
    names = [{each.name for each in (root / "pacecore").glob("*.so")} for root in (ROOT, again)]
    assert names[0] == names[1]


def test_exercise_agrees_on_the_cpu_and_sees_a_difference(monkeypatch):
    for cases in (gpu_exercise.pace_clip_cases, gpu_exercise.info_nce_cases):
        wrong = [(name, error) for name, error, bound in cases("cpu") if not error <= bound]
        assert not wrong
    true = gpu_exercise.pace_clip
    monkeypatch.setattr(gpu_exercise, "pace_clip", lambda *a, **k: true(*a, **k) * 1.5)
    assert all(error > bound for _, error, bound in gpu_exercise.pace_clip_cases("cpu"))


def test_no_step_outlasts_the_time_of_all(tmp_path):
    (tmp_path / "tree").mkdir()
    soon = Context(tmp_path / "tree", tmp_path, deadline=time.perf_counter() + 1)
    start = time.perf_counter()
    code, _ = soon.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 50)
    assert code is None
    assert time.perf_counter() - start < 20


def test_a_rehearsal_skips_what_needs_a_gpu(tmp_path):
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--only", "tests,memcheck,racecheck"]
    assert gpu_check.main(arguments) == 0
    record = json.loads((tmp_path / "gpu_check-cpu.json").read_text())
    assert [step["state"] for step in record["steps"]] == ["skipped"] * 3
    assert "rehearsal" in (tmp_path / "gpu_check-cpu.md").read_text()


def test_the_page_has_the_figures_beside_the_limits():
    found = {"threads": 1, "copy_bytes_per_second": 3e12, "float32_flops": 5e13}
    found |= {"bfloat16_flops": 8e14, "bus_bytes_per_second": 5e10}
    network = {"network": "r21d", "width": 1.0, "way": "bf16", "batch": 60, "frames": 16}
    network |= {"crop": 112, "clips_per_second": 1234.0, "tflop_per_second": 200.0}
    network |= {"peak_bytes": 2e9, "times_plain": 5.0}
    record = {
        "machine": {"gpu": "Card"},
        "steps": [
            _step("limits", {"cases": [found]}),
            _step("backbones", {"cases": [{"bf16_check": "fine"}, network]}),
        ],
    }
    page = gpu_check.page(record)
    assert "| 1 | 3,000 | 50.0 | 800 | 50.0 |" in page
    assert "1,234 clips/s" in page
    assert "25.0 %" in page  # of the bf16 rate


def _step(name, values):
    return {"name": name, "state": "passed", "seconds": 1, "said": "", "output": ""} | {
        "values": values
    }


def test_limits_count_bytes_both_ways_and_two_operations_a_term(monkeypatch):
    monkeypatch.setattr(limits, "_seconds", lambda function, device: (function(), 0.5)[1])
    found = limits.measure("cpu", 10**6, 100, (torch.float32, torch.bfloat16))
    assert found["copy_bytes_per_second"] == pytest.approx(4e6)
    assert found["float32_flops"] == found["bfloat16_flops"] == pytest.approx(4e6)
