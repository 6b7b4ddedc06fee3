"""gpu_check: its machinery, without a GPU; and that without one it says so and exits 2."""

import json
import sys
from collections import Counter

import pytest
import torch

from benchmarks import gpu_check, gpu_exercise, gpu_rates
from benchmarks.gpu_check import Context, Result


@pytest.fixture
def context(tmp_path):
    (tmp_path / "tree").mkdir()
    return Context(tmp_path / "tree", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_exits_2(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no GPU" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_step_past_its_limit_is_killed_and_keeps_what_it_said(context):
    script = "import time; print('so far', flush=True); time.sleep(60)"
    code, output = context.run("slow", [sys.executable, "-c", script], 2)
    result = gpu_check._judged("slow", code, output, 2)
    assert (result.state, result.said) == ("failed", "not done after 2 s")
    assert result.output.strip() == "so far"
    assert (context.out / "slow.log").read_text().strip() == "so far"


def test_later_steps_run_after_a_failed_one_and_each_is_kept(tmp_path, monkeypatch):
    def broken(context):
        raise RuntimeError("no such kernel")

    steps = {
        "first": broken,
        "second": lambda context: Result("second", values={"cases": [{"n": 3}]}),
        "third": lambda context: Result("third", "skipped", "not here"),
    }
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"gpu": "Card"})
    assert gpu_check.main(["--out", str(tmp_path), "--only", "first,second,third"]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["state"] for step in record["steps"]] == ["failed", "passed", "skipped"]
    assert record["steps"][0]["said"] == "RuntimeError: no such kernel"
    assert record["steps"][1]["values"] == {"cases": [{"n": 3}]}
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| first | failed |" in page
    assert "- gpu: Card" in page
    assert '{"n": 3}' in page
    assert not list(tmp_path.glob("*.partial"))


def test_no_step_begins_after_the_limit_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "STEPS", {"a": lambda context: pytest.fail("begun")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", dict)
    assert gpu_check.main(["--out", str(tmp_path), "--only", "a", "--limit", "-1"]) == 1
    assert "not begun" in (tmp_path / "gpu_check.json").read_text()


def test_unknown_step_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--out", str(tmp_path), "--only", "nothing"])


def test_the_copied_tree_imports_the_command_line(tmp_path):
    tree = gpu_check.copy_tree(tmp_path)
    assert (tree / "pacecore" / "cli" / "__init__.py").is_file()
    assert (tree / "setup.py").is_file()
    assert not list(tree.rglob("*.so"))
    assert not (tree / ".git").exists()


XML = """<testsuites><testsuite>
<testcase name="good"/>
<testcase name="bad"><failure message="x">y</failure></testcase>
<testcase name="left out"><skipped message="no"/></testcase>
<testcase name="tests.test_video"><error message="collection failure">{}</error></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("has_av", "text", "where"),
    [
        (False, "ModuleNotFoundError: No module named 'av'", "needs_av"),
        (True, "ModuleNotFoundError: No module named 'av'", "not_collected"),
        (False, "SyntaxError", "not_collected"),
    ],
)
def test_counts_of_tests_by_outcome(tmp_path, monkeypatch, has_av, text, where):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: has_av)
    report = tmp_path / "tests.xml"
    report.write_text(XML.format(text))
    counts = gpu_check._counts(report)
    assert Counter({k: counts[k] for k in ("passed", "failed", "skipped")}) == Counter(
        passed=1, failed=1, skipped=1
    )
    assert counts[where] == ["tests.test_video"]


def test_a_sanitizer_that_reports_nothing_has_failed(context, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "/bin/true")
    assert gpu_check.sanitizer("memcheck")(context).state == "failed"
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    assert gpu_check.sanitizer("memcheck")(context).state == "skipped"


def test_sanitizer_reads_the_summary(context, monkeypatch):
    line = "========= ERROR SUMMARY: 0 errors"
    monkeypatch.setattr(Context, "run", lambda *_, **__: (0, f"hello\n{line}\n"))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "/bin/true")
    result = gpu_check.sanitizer("memcheck")(context)
    assert (result.state, result.said) == ("passed", "ERROR SUMMARY: 0 errors")


def test_exercise_agrees_on_the_cpu_and_sees_a_difference(monkeypatch):
    for cases in (gpu_exercise.pace_clip_cases, gpu_exercise.info_nce_cases):
        wrong = [(name, error) for name, error, bound in cases("cpu") if not error <= bound]
        assert not wrong
    true = gpu_exercise.pace_clip
    monkeypatch.setattr(gpu_exercise, "pace_clip", lambda *a, **k: true(*a, **k) * 1.5)
    assert all(error > bound for _, error, bound in gpu_exercise.pace_clip_cases("cpu"))


def test_rates_count_bytes_both_ways_and_two_operations_a_term(monkeypatch):
    monkeypatch.setattr(gpu_rates, "time_function", lambda function, device: (function(), _Half)[1])
    found = gpu_rates.measure("cpu", copy_bytes=10**6, side=100)
    assert found["copy_gigabytes_per_second"] == pytest.approx(0.004)
    assert found["bf16_teraflops"] == pytest.approx(4e-6)


class _Half:
    p50 = 0.5
