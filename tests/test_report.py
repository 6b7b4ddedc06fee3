"""The page of a report: pictures, names, what is left out, and what cannot be read."""

import json
import os
import re
import struct
import sys
import warnings
from dataclasses import asdict
from types import SimpleNamespace
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from click.testing import CliRunner

from pacecore.cli import report as report_verb
from pacecore.errors import PacecoreError
from pacecore.paper import paper_figures
from pacecore.report import make_report
from pacecore.video_writer import write_png
from tests.report_runs import finetuning, pretraining


def test_pictures_are_drawn_and_copied(tmp_path):
    pytest.importorskip("matplotlib")
    finetuning(tmp_path / "a" / "run", 0.7, {})
    finetuning(tmp_path / "b" / "run", 0.6, {}, seed=1)
    finetuning(tmp_path / "c" / "run", 0.5, {}, batch=8)
    grey = np.full((8, 8, 3), 99, np.uint8)
    for name in ("gallery-p5-video.png", "attend-v1.png", "attend-v2.png"):
        write_png(tmp_path / "a" / "run" / name, grey)
    folders = [tmp_path / name / "run" for name in "abc"]
    result = make_report(folders, tmp_path / "out")
    files = {picture["file"] for picture in result["pictures"]}
    assert files == {
        "curves-finetune.png", "a-run-confusion.png", "c-run-confusion.png", "a-run-attend-v1.png",
        "a-run-gallery-p5-video.png",
    }  # fmt: skip
    what = [picture["what"] for picture in result["pictures"]]
    assert "from scratch, all (2 runs): confusion, summed, rows true, columns predicted" in what
    assert "c-run: confusion, rows true, columns predicted" in what
    page = (tmp_path / "out" / "report.md").read_text()
    for file in files:
        assert (tmp_path / "out" / file).read_bytes()[:4] == b"\x89PNG"
        assert f"]({file})" in page


def test_a_full_disk_is_told_by_the_picture_that_did_not_fit(tmp_path, largest_file):
    pytest.importorskip("matplotlib")
    finetuning(tmp_path / "run", 0.7, {})
    write_png(tmp_path / "run" / "gallery-p5.png", np.zeros((200, 300, 3), np.uint8))
    for picture, options in (("curves-finetune", {}), ("run-gallery-p5", {"pictures": False})):
        words = rf"{picture}\.png: cannot be written: File too"
        with largest_file(100), pytest.raises(PacecoreError, match=words):
            make_report([tmp_path / "run"], tmp_path / "out", **options)
    assert not os.listdir(tmp_path / "out")


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    # As a user's matplotlibrc may say, whether there is a TeX or not.
    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "text.usetex", True)
    shown, save = [], figure.savefig

    def noting(self, *arguments, **options):
        texts = self.legends[0].get_texts() if self.legends else self.axes[0].get_yticklabels()
        shown.extend(text.get_text().strip() for text in texts)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", noting)
    finetuning(tmp_path / "_a $x^$", 0.5, {}, classes=["$x^$", "_b" + "c" * 50])
    make_report([tmp_path / "_a $x^$"], tmp_path / "out")
    assert shown == ["_a $x^$", "$x^$", "_b" + "c" * 27 + "…"]
    assert "](_a%20%24x%5E%24-confusion.png)" in (tmp_path / "out" / "report.md").read_text()


def test_names_that_are_no_utf8_are_shown_by_their_bytes(tmp_path):
    """As the other verbs take them, of files and folders alike."""
    name = os.fsdecode(b"caf\xe9")
    folder = tmp_path / f"run-{name}"
    finetuning(folder, 0.7, pretraining(tmp_path / "one", 0.5), classes=[name, "b"])
    (folder / f"attend-{name}.png").write_bytes(b"picture")
    result = make_report([folder], tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert r"run-caf\udce9" in page
    linked = [unquote_to_bytes(link) for link in re.findall(r"\]\((.*\.png)\)", page)]
    files = sorted(os.listdir(os.fsencode(tmp_path / "out")))
    assert len(linked) == len(result["pictures"]) == 3
    assert sorted(linked) == [each for each in files if each.endswith(b".png")]


def test_a_stroke_or_a_new_line_in_a_name_does_not_end_its_cell(tmp_path):
    finetuning(tmp_path / "run", 0.5, {}, data="/data/a|b\nc")
    make_report([tmp_path / "run"], tmp_path / "out", pictures=False)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    (row,) = [line for line in lines if "a\\|b c" in line]
    assert row.replace("\\|", "").count("|") == 12  # around eleven columns


def test_a_new_line_in_a_folders_name_ends_no_line_of_the_page(tmp_path):
    finetuning(tmp_path / "a\nrun", 0.5, {})
    (tmp_path / "a\nrun" / "gallery-p5.png").write_bytes(b"picture")
    (tmp_path / "no\nresults").mkdir()
    folders = [tmp_path / "a\nrun", tmp_path / "no\nresults"]
    make_report(folders, tmp_path / "out", pictures=False)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    what = "a run: queries and neighbours"
    assert {f"### {what}", f"![{what}](a%0Arun-gallery-p5.png)"} <= set(lines)
    said = [line for line in lines if line.startswith("- ")]
    assert len(said) == 2
    assert "a run`: finetune" in said[0]
    assert said[1].startswith("- left out: ")
    assert "no results: " in said[1]
    assert not [line for line in lines if line.startswith(("run", "results"))]


@pytest.mark.parametrize(("kind", "dots"), [("pretrain", "held out"), ("finetune", "validation")])
def test_the_axis_says_what_the_dots_were_measured_on(tmp_path, monkeypatch, kind, dots):
    pytest.importorskip("matplotlib")
    from pacecore import plots

    labels = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: labels.append(figure.axes[1]))
    run = SimpleNamespace(name="", kind=kind, metrics=[], test={})
    plots.draw_curves([("a", [run])], tmp_path / "curves.png")
    assert labels[0].get_ylabel() == f"accuracy (dots: {dots})"


def test_curves_of_many_settings_keep_their_size(tmp_path):
    pytest.importorskip("matplotlib")
    from pacecore.plots import draw_curves

    lines = [{"step": n, "epoch": n / 4, "loss": 1 / n, "accuracy": 0.5} for n in (1, 9)]
    runs = [SimpleNamespace(name="", kind="finetune", metrics=lines, test={})] * 2
    heights = []
    for settings in (1, 40):
        groups = [(f"a setting with rather many words, number {n}", runs) for n in range(settings)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns where the legend leaves no room
            draw_curves(groups, tmp_path / f"{settings}.png")
        header = (tmp_path / f"{settings}.png").read_bytes()[16:24]
        width, height = struct.unpack(">II", header)
        assert width == 1200
        heights.append(height)
    assert heights[1] > heights[0] + 200


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    finetuning(tmp_path / "run", 0.7, {})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "pacecore.plots", raising=False)
    with pytest.raises(PacecoreError, match=r"matplotlib is not installed; install pacecore.plots"):
        make_report([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_report([tmp_path / "run"], tmp_path / "out", pictures=False)


def test_folders_without_results_are_left_out(tmp_path):
    (tmp_path / "begun").mkdir()
    with pytest.raises(PacecoreError, match=r"begun: holds no summary\.json"):
        make_report([tmp_path / "begun"], tmp_path / "out")
    finetuning(tmp_path / "run", 0.7, {})
    result = make_report([tmp_path / "begun", tmp_path / "run"], tmp_path / "out", pictures=False)
    assert len(result["runs"]) == 1
    assert [words.split(": ")[0] for words in result["left_out"]] == [str(tmp_path / "begun")]
    assert f"- left out: {tmp_path / 'begun'}: holds no" in (tmp_path / "out/report.md").read_text()
    words = [str(tmp_path / name) for name in ("begun", "run")]
    words += ["--out", str(tmp_path / "out"), "--no-pictures"]
    shown = CliRunner().invoke(report_verb.report, words, catch_exceptions=False)
    assert f"\nleft out: {tmp_path / 'begun'}: holds no summary.json" in shown.output
    with pytest.raises(PacecoreError, match="named twice"):
        make_report([tmp_path / "run", tmp_path / "run"], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "it must have options"),
        ('{"results": {}}', "it must have options"),
        ("{", "Expecting"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, text, said):
    with pytest.raises(PacecoreError, match=r"none: no such run folder$"):
        make_report([tmp_path / "none"], tmp_path / "out")
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(PacecoreError, match=rf"summary\.json: not a record of pacecore: {said}"):
        make_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_tables(tmp_path):
    finetuning(tmp_path / "run", 0.7, {})
    arguments = [str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--no-pictures"]
    shown = CliRunner().invoke(report_verb.report, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Action recognition" in shown.output
    assert "70.0" in shown.output
    assert "left out" not in shown.output


def test_of_runs_that_nothing_was_measured_of_yet_the_page_says_so(tmp_path):
    finetuning(tmp_path / "run", 0.7, {})
    (tmp_path / "run" / "test.json").unlink()
    make_report([tmp_path / "run"], tmp_path / "out", pictures=False)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "No run has been tested or used for retrieval yet." in page


def test_figures_of_the_paper_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(PacecoreError, match=f"{tmp_path}: figures cannot be read: Is a directory"):
        paper_figures(tmp_path)
    figure = asdict(paper_figures()[0])
    listed = tmp_path / "figures.json"
    for change, said in (
        ({"table": 4}, "table must be a text, got 4"),
        ({"percent": "nan"}, "percent must be from 0 to 100, got nan"),
        ({"percent": 101}, "percent must be from 0 to 100, got 101"),
        ({"percent": 10**400}, "int too large to convert to float"),
    ):
        listed.write_text(json.dumps([figure | change]))
        with pytest.raises(
            PacecoreError, match=rf"json: not a list of the paper's figures: {said}"
        ):
            paper_figures(listed)
