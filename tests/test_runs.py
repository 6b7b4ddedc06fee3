"""What is read back from a run's folder."""

import json
import os
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pacecore.cli import report as report_verb
from pacecore.config import RetrieveOptions, TestOptions
from pacecore.errors import PacecoreError
from pacecore.finetune import finetune
from pacecore.recognition import run_test
from pacecore.retrieve import run_retrieve
from pacecore.runlog import RunFolder
from pacecore.runs import NoResults, read_run, replaced_by
from pacecore.trained import load_trained

from .test_finetune import tiny_options
from .tiny import tiny_set


def test_folders_without_results(tmp_path):
    with pytest.raises(PacecoreError, match="nothing: no such run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(NoResults, match=r"holds no summary\.json, test\.json or"):
        read_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NoResults, match=r"notes\.txt: is a file and no run folder$"):
        read_run(tmp_path / "notes.txt")
    for name, text in (("retrieve-a", '{"top1": 1}'), ("test", '["a"]'), ("summary", "{")):
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(PacecoreError, match=rf"{name}\.json: not a record of pacecore"):
            read_run(tmp_path)


def test_records_of_wrong_types_are_named(tmp_path):
    text = '{"options": {}, "pretrained": [1]}'
    (tmp_path / "summary.json").write_text(text)
    said = r"summary\.json: not a record of pacecore: pretrained must be an object, got \[1\]"
    with pytest.raises(PacecoreError, match=said):
        read_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    path = tmp_path / "retrieve-p5-video.json"
    path.write_text('{"top": 0, "stage": "p5", "pool": "grid", "unit": "video"}')
    with pytest.raises(PacecoreError, match=r"video\.json: not a record .*: top must be an object"):
        read_run(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(NoResults):
        read_run(tmp_path)


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(PacecoreError, match=r"/summary\.json: not a record .*: it is no file$"):
        read_run(tmp_path)
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert RunFolder(tmp_path).metrics() == []


def test_what_is_replaced_tells_which_videos_it_is_of(tmp_path):
    path = tmp_path / "test.json"
    new = {"measured_with": {"data": "ucf"}, "videos_identity": "a"}
    old = {**new, "videos": 3}
    others = [
        {**old, "videos_identity": "b"},
        {"measured_with": {"data": "ucf", "fold": "2"}, "videos_identity": "c", "videos": 3},
    ]
    assert replaced_by(new, path) == ""
    for before, said in ((old, ""), (others[0], "3 of ucf"), (others[1], "3 of ucf, split 2")):
        path.write_text(json.dumps(before))
        assert replaced_by(new, path) == (said and f"the result on other videos, {said}")
    for text in ("{", "[]", "{}", '{"measured_with": 3}'):  # of other programs
        path.write_text(text)
        assert replaced_by(new, path) == ""


def test_results_of_weights_that_a_run_has_gone_on_from_are_told_and_left_out(tmp_path):
    run, measuring = tmp_path / "run", {"workers": 0, "device": "cpu", "clips": 1}
    options = tiny_options(tiny_set(tmp_path / "set", train=2, test=1), run, max_steps=1)
    finetune(options)
    trained = load_trained(run / "last.pt")
    run_test(trained, TestOptions(**measuring))
    run_retrieve(trained, RetrieveOptions(**measuring))
    found = read_run(run)
    assert (bool(found.test), len(found.retrievals), found.outdated) == (True, 1, ())
    finetune(replace(options, max_steps=3), resume=True)
    found = read_run(run)
    assert (found.test, found.retrievals) == ({}, [])
    assert found.outdated == (
        "test.json is of step 1, the run has gone on to 3: test again",
        "retrieve-p5-video.json is of step 1, the run has gone on to 3: retrieve again",
    )
    words = [str(run), "--out", str(tmp_path / "out"), "--no-pictures"]
    shown = CliRunner().invoke(report_verb.report, words, catch_exceptions=False)
    page = (tmp_path / "out" / "report.md").read_text()
    for told in found.outdated:
        assert f"left out: {run}: {told}\n" in shown.output
        assert f"; {told}" in page
    assert "top-1" not in page.partition("## Runs")[2]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"checkpoint": "last.pt", "step": 8}, ""),
        ({"checkpoint": "last.pt", "step": 9}, ""),  # of a run that was stopped since
        ({"checkpoint": "best.pt", "step": 6}, ""),  # the best is older than the last
        ({"checkpoint": "best.pt", "step": 2}, "of step 2, the run has gone on to 6: test again"),
        ({"checkpoint": "last.pt"}, ""),  # of an older version
        ({"checkpoint": "other/last.pt", "step": 2, "measured_with": {"out": "here"}}, ""),
        ({"checkpoint": "here/kept.pt", "step": 2}, ""),
    ],
)
def test_a_result_is_of_the_weights_that_its_checkpoint_has_now(tmp_path, result, said):
    summary = {"options": {}, "steps": 8, "best": {"step": 6}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "test.json").write_text(json.dumps({"trained_with": {}, **result}))
    found = read_run(tmp_path)
    assert bool(found.test) == (not said)
    assert found.outdated == ((f"test.json is {said}",) if said else ())
