"""The steps of gpu_check: what they run, and what they take for a pass."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_steps
from benchmarks.gpu_steps import Context
from benchmarks.outcomes import read_outcomes
from benchmarks.suite import BENCHMARKS


@pytest.fixture
def context(tmp_path):
    (tmp_path / "tree").mkdir()
    return Context(tmp_path / "tree", tmp_path)


def test_a_step_past_its_limit_is_killed_and_keeps_what_it_said(context):
    script = "import time; print('so far', flush=True); time.sleep(60)"
    code, output = context.run("slow", [sys.executable, "-c", script], 2)
    result = gpu_steps._judged("slow", code, output, 2)
    assert (result.state, result.said) == (
        "failed",
        "not done after 2 s, or in the time of all steps",
    )
    assert result.output.strip() == "so far"
    assert (context.out / "slow.log").read_text().strip() == "so far"


def test_the_build_knows_its_lines_for_the_sanitizer(context, monkeypatch):
    settings = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(Context, "run", lambda *_, **given: (settings.update(given), (0, ""))[1])
    assert gpu_steps.build(context).values["architecture"] == "9.0"
    assert settings["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert settings["NVCC_APPEND_FLAGS"] == "-lineinfo"


def test_a_benchmark_that_leaves_no_case_has_failed_and_what_it_leaves_out_is_said(
    context, monkeypatch
):
    left = iter([None, [], [{"threads": 1}]])

    def run(self, name, command, *_):
        if (cases := next(left)) is not None:
            (context.out / "limits-cuda.json").write_text(json.dumps({"cases": cases}))
        return 0, "  cv2 left out: not here\nwritten"

    monkeypatch.setattr(Context, "run", run)
    results = [gpu_steps.benchmark("limits")(context) for _ in range(3)]
    found = [(result.state, result.said) for result in results]
    none = "0 cases in limits-cuda.json; cv2 left out: not here"
    assert found == [("failed", none), ("failed", none), ("passed", none.replace("0", "1"))]


def test_benchmarks_are_quick_and_limited_and_have_the_options_that_they_take(context, monkeypatch):
    commands, limited = {}, {}

    def run(self, name, command, limit, **_):
        commands[name], limited[name] = command, limit
        return 0, ""

    monkeypatch.setattr(gpu_steps, "find_spec", lambda name: True)
    monkeypatch.setattr(Context, "run", run)
    chosen = replace(context, data="videos", official="copy")
    names = {*BENCHMARKS, "memory", "scaling"}
    for name in names:
        gpu_steps.STEPS[name](chosen)
    assert set(commands) == names
    assert all("--quick" in command for command in commands.values())
    assert (max(limited.values()), limited["pace_clip"]) == (limited["pretrain"], 60)
    assert limited["pretrain"] <= 200
    both = ["--data", "videos", "--official", "copy"]
    assert commands["pretrain"][-4:] == commands["data"][-4:] == both
    assert commands["scaling"][-2:] == ["--data", "videos"]
    assert "--data" not in commands["retrieve"]


OUTCOMES = {
    "good": ("passed", ""),
    "bad": ("failed", "x"),
    "left out": ("skipped", "no"),
    "of videos": ("skipped", "PACECORE_DATA does not name them"),
    "tests/test_official.py": ("left out", "cv2 is not here"),
}


def lines_of(outcomes):
    rows = [{"name": n, "outcome": outcome, "why": why} for n, (outcome, why) in outcomes.items()]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("has_av", "text", "where"),
    [
        (False, "ModuleNotFoundError: No module named 'av'", "needs_av"),
        (True, "ModuleNotFoundError: No module named 'av'", "not_collected"),
        (False, "SyntaxError", "not_collected"),
    ],
)
def test_counts_of_tests_by_outcome(tmp_path, monkeypatch, has_av, text, where):
    monkeypatch.setattr(gpu_steps, "find_spec", lambda name: has_av)
    record = tmp_path / "tests.jsonl"
    broken = {"tests/test_video.py": ("not collected", text)}
    record.write_text(lines_of(OUTCOMES | broken) + '{"name": "cut o')
    counts = gpu_steps._counts(read_outcomes(record))
    assert Counter({k: counts[k] for k in ("passed", "failed", "skipped")}) == Counter(
        passed=1, failed=1, skipped=1
    )
    assert counts["needs_videos"] == 1
    assert counts["left_out"] == ["tests/test_official.py"]
    assert counts[where] == ["tests/test_video.py"]


def test_what_an_earlier_run_left_is_not_taken_for_this_one(context, monkeypatch):
    monkeypatch.setattr(Context, "run", lambda *_, **__: (-11, "it crashed"))
    (context.out / "tests.jsonl").write_text(lines_of({"good": ("passed", "")}))
    (context.out / "limits-cuda.json").write_text(json.dumps({"cases": [{"threads": 1}]}))
    for step in (gpu_steps.tests, gpu_steps.benchmark("limits")):
        result = step(context)
        assert (result.state, result.values) == ("failed", {})


@pytest.mark.parametrize(("code", "state"), [(0, "passed"), (-6, "failed"), (3, "failed")])
def test_tests_of_a_process_that_does_not_end_well_have_not_passed(
    context, monkeypatch, code, state
):
    write = (context.out / "tests.jsonl").write_text
    good = lines_of({"good": ("passed", "")})
    monkeypatch.setattr(Context, "run", lambda *_, **__: (write(good) and code, "1 passed"))
    result = gpu_steps.tests(context)
    assert (result.state, result.values["passed"]) == (state, 1)
    ends = {0: "", -6: "; ended by signal SIGABRT; 1 passed", 3: "; 1 passed"}
    assert result.said == f"1 passed, 0 failed, 0 skipped{ends[code]}"


TESTS = """
import os, signal, time
import pytest

pytestmark = pytest.mark.cuda

def test_good():
    pass

@pytest.fixture
def unclean():
    yield
    raise OSError("not taken down")

def test_unclean(unclean):
    pass

@pytest.mark.skipif(True, reason="no such GPU")
def test_skipped():
    pass

def test_last():
    ends = "test_good", "not taken down", "no such GPU", "test_b.py", "test_c.py"
    while not all(end in open({record!r}).read() for end in ends):
        time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without groups of processes")
def test_what_ended_before_the_tests_were_killed_is_counted(context, monkeypatch):
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))  # for benchmarks.outcomes
    (folder := context.tree / "tests").mkdir(parents=True)
    (folder / "test_a.py").write_text(TESTS.format(record=str(context.out / "tests.jsonl")))
    (folder / "test_b.py").write_text("import pytest\npytest.importorskip('nowhere')\n")
    (folder / "test_c.py").write_text("import nowhere\n")
    result = gpu_steps.tests(context)
    assert result.state == "failed"
    assert result.said.startswith("1 passed, 1 failed, 1 skipped; ended by signal SIGKILL; ")
    assert result.said.endswith("; not collected: tests/test_c.py; without: tests/test_b.py")
    assert "not taken down" in result.output


def test_tests_that_are_not_done_in_time_are_counted(context, monkeypatch):
    write = (context.out / "tests.jsonl").write_text
    some = lines_of({"good": ("passed", ""), "tests/test_a.py": ("left out", "no cv2")})
    monkeypatch.setattr(Context, "run", lambda *_, **__: (write(some) and None, "."))
    result = gpu_steps.tests(context)
    late = f"not done after {gpu_steps._TESTS_SECONDS} s, or in the time of all steps"
    assert result.state == "failed"
    assert result.said == f"1 passed, 0 failed, 0 skipped; {late}; without: tests/test_a.py"


def test_a_file_that_needs_what_is_not_installed_fails_no_step(context, monkeypatch):
    write = (context.out / "tests.jsonl").write_text
    some = lines_of({"good": ("passed", ""), "file": ("left out", "no cv2")})
    monkeypatch.setattr(Context, "run", lambda *_, **__: (write(some) and 0, "."))
    result = gpu_steps.tests(context)
    assert (result.state, result.said) == ("passed", "1 passed, 0 failed, 0 skipped; without: file")


def test_a_sanitizer_that_reports_nothing_has_failed(context, monkeypatch):
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda *_, **__: "/bin/true")
    assert gpu_steps.sanitizer("memcheck")(context).state == "failed"
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda *_, **__: None)
    assert gpu_steps.sanitizer("memcheck")(context).state == "skipped"


def test_sanitizer_reads_the_summary(context, monkeypatch):
    line = "========= ERROR SUMMARY: 0 errors"
    monkeypatch.setattr(Context, "run", lambda *_, **__: (0, f"hello\n{line}\n"))
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda *_, **__: "/bin/true")
    result = gpu_steps.sanitizer("memcheck")(context)
    assert (result.state, result.said) == ("passed", "ERROR SUMMARY: 0 errors")


@pytest.mark.parametrize(
    "summary",
    [
        "ERROR SUMMARY: 5 errors",
        "RACECHECK SUMMARY: 3 hazards displayed (0 errors, 3 warnings)",
        "ERROR SUMMARY: 1 error\n========= ERROR SUMMARY: 0 errors",
    ],
)
def test_a_sanitizer_whose_summary_names_errors_has_failed(context, monkeypatch, summary):
    commands = []

    def run(self, name, command, limit, **settings):
        commands.append((command, settings))
        return 0, f"========= {summary}\n"

    monkeypatch.setattr(Context, "run", run)
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda *_, **__: "/bin/true")
    result = gpu_steps.sanitizer("memcheck")(context)
    assert (result.state, result.said) == ("failed", summary.partition("\n")[0])
    ((command, settings),) = commands
    assert command[command.index("--error-exitcode") + 1] != "0"
    assert settings["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_the_steps_cover_every_benchmark():
    assert {*BENCHMARKS, "memory", "scaling"} <= set(gpu_steps.STEPS)


def test_what_no_page_shows_comes_last():
    *_, longest, last = gpu_steps.STEPS
    assert (longest, last) == ("pretrain", "scaling")
    assert last not in BENCHMARKS


def test_a_store_that_is_not_on_the_device_is_a_failure(context, monkeypatch):
    monkeypatch.setattr(Context, "run", lambda *_, **__: (0, "trained 3 clips"))
    result = gpu_steps.train_resident(context)
    assert (result.state, result.said) == ("failed", "the frames were not held on the device")
    said = "all frames are held on cuda: 0.1 GB\ntrained 3 clips"
    monkeypatch.setattr(Context, "run", lambda *_, **__: (0, said))
    assert gpu_steps.train_resident(context).state == "passed"


@pytest.mark.parametrize(
    ("amp", "said"), [("bf16", ""), ("none", "; in fp32, as bf16 was slower here or wrong")]
)
def test_a_resident_training_says_when_it_was_not_in_bf16(context, monkeypatch, amp, said):
    commands = []

    def run(self, name, command, limit, **_):
        commands.append(command)
        out = context.tree / "train_resident"
        out.mkdir(exist_ok=True)
        (out / "summary.json").write_text(json.dumps({"options": {"amp": amp}}))
        return 0, "all frames are held on cuda: 0.1 GB\ntrained 3 clips"

    monkeypatch.setattr(Context, "run", run)
    monkeypatch.setattr(gpu_steps, "find_spec", lambda name: True)
    result = gpu_steps.train_resident(context)
    assert (result.state, result.said) == ("passed", f"trained 3 clips{said}")
    words = " ".join(commands[-1])
    assert " --data-on device --amp bf16 --graph " in words
