import io
import json
import os
import sys
from types import SimpleNamespace

import pytest

from pacecore.errors import PacecoreError
from pacecore.runlog import Progress, RunFolder, alone_in, duration, tell


def test_metrics_are_json_lines_that_rewind(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in range(1, 5):
        folder.log(step=step, loss=0.5 * step, share=float("nan"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines][1] == {
        "step": 2, "loss": 1.0, "share": None,
    }  # fmt: skip
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # what a kill leaves
    folder.rewind(2)
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": "2"}\n[2]\n2\n\xe9{"step": 2}\n' + b"[" * 100_000 + b"\n")
    folder.rewind(2)
    assert [line["step"] for line in folder.metrics()] == [1, 2]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PacecoreError, match=r"file/run: cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run")


def test_a_folder_without_the_right_to_write_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)  # root may do anything
    words = f"run: cannot be written: no right to write in {tmp_path}$"
    with pytest.raises(PacecoreError, match=words):
        RunFolder.check(tmp_path / "new" / "run")


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    for path in (link, link / "run"):
        with pytest.raises(PacecoreError, match=f"^{path}: .* {link} is not a folder$"):
            RunFolder.check(path)


def test_a_run_that_another_process_has_ended_meanwhile_is_not_replaced(tmp_path):
    """Jobs that are started together take the same free name, and one may read for an hour."""
    (tmp_path / "last.pt").write_bytes(b"of the other")
    with alone_in(str(tmp_path), resume=True):
        pass
    words = f"^out: {tmp_path} holds a run already; name another, or --resume {tmp_path}$"
    with pytest.raises(PacecoreError, match=words), alone_in(str(tmp_path), resume=False):
        pass


def test_other_ranks_write_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.log(step=1)
    folder.write("a.txt", "b")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("step", "dropped"), [(-1, 0), (7, 8)])
def test_tensorboard_has_the_numbers_and_drops_what_a_resumed_run_writes_again(
    tmp_path, monkeypatch, step, dropped
):
    made, drawn = [], []

    def writer(folder, purge_step):
        made.append((folder, purge_step))
        return SimpleNamespace(add_scalar=lambda *values: drawn.append(values))

    monkeypatch.setattr("pacecore.runlog._summary_writer", lambda: writer)
    folder = RunFolder(tmp_path, tensorboard=True)
    folder.rewind(step)
    assert made == [(str(tmp_path / "tensorboard"), dropped)]
    folder.log(step=9, loss=0.5, share=float("nan"), clips=40, event="left out", confusion=[[1]])
    assert drawn == [("loss", 0.5, 9), ("clips", 40, 9)]


def test_durations_in_words():
    assert [duration(s) for s in (7.4, 200, 7500)] == ["7 s", "3 min 20 s", "2 h 5 min"]


def test_progress_in_a_file_is_plain_lines(capsys):
    progress = Progress("train", 100, seconds_between=0)
    for done in (0, 50, 100):
        progress.update(done, "loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"train {done}/100 loss 1.0" for done in (0, 50, 100)
    ]
    assert "\r" not in "".join(lines)


def test_time_left_is_not_counted_from_a_slow_first_step(capsys, monkeypatch):
    monkeypatch.setattr("pacecore.runlog.time.monotonic", lambda: 0.0)
    progress = Progress("train", 100, seconds_between=0)
    for now, done in ((10, 20), (70, 21), (71, 23), (72, 25), (110, 100)):
        monkeypatch.setattr("pacecore.runlog.time.monotonic", lambda now=now: now)
        progress.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("train ") for line in lines] == [
        "20/100 ",
        "21/100 1 h 19 min left",
        "23/100 38 s left",
        "25/100 38 s left",
        "100/100 0 s left",
    ]


def test_a_reader_that_has_gone_does_not_end_a_run(nobody_reads):
    with nobody_reads():
        progress = Progress("train", 2, seconds_between=0.0)
        assert progress.shows
        progress.update(1)
        assert not progress.shows
        progress.update(2)
        progress.close()
        tell("epoch 1")


class Tee:
    """As scripts have in place of stderr: it only writes."""

    def __init__(self):
        self.said = []

    def write(self, text):
        self.said.append(text)

    def flush(self):
        pass


class Console(Tee):
    """As of IDLE: seen by someone, and no file."""

    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


@pytest.mark.parametrize("kind", [Tee, Console])
def test_progress_is_written_to_what_is_no_file(monkeypatch, kind):
    monkeypatch.setattr(sys, "stderr", stream := kind())
    progress = Progress("train", 2, seconds_between=0)
    progress.update(1)
    progress.close()
    assert stream.said == ["train 1/2 \n"]


def test_without_a_stream_that_is_open_nothing_is_said(monkeypatch, tmp_path):
    with open(tmp_path / "closed", "w") as closed:
        pass
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        progress = Progress("train", 2, seconds_between=0)
        progress.update(1)
        progress.close()
        tell("epoch 1")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_printed_end_no_run(monkeypatch, tmp_path, encoding):
    with open(tmp_path / "log", "w", encoding=encoding) as log:
        monkeypatch.setattr(sys, "stdout", log)
        tell(f"left out: {os.fsdecode(bytes([0xE9]))}.mp4")
    assert (tmp_path / "log").read_bytes() == b"left out: \\udce9.mp4\n"


def test_on_a_terminal_it_is_one_line_that_fills(monkeypatch):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
        progress = Progress("train", 4)
        progress.between = 0.0
        progress.update(1, "loss 1.5, and words beyond the line's end")
        progress.update(4)
        progress.close()
        said = ""
        while "\n" not in said:  # the terminal hands on what was written when it comes to it
            said += os.read(ours, 4096).decode()
    os.close(ours)
    assert said.endswith("\r\n")  # what is printed next has a line of its own
    first, last = said.removeprefix("\r").removesuffix("\r\n").split("\r")
    assert first == "train [#####...............] 1/4 loss 1.5, and words"[:39]
    assert last == "train [####################] 4/4 0 s left"[:39]


def test_curves_that_cannot_be_drawn_fail_no_run(tmp_path, monkeypatch):
    def refuse(_, path):
        raise PacecoreError(f"{path}: cannot be written: No space left on device")

    folder = RunFolder(tmp_path)
    folder.log(step=1, epoch=1, loss=0.5)
    assert folder.curves("pretrain") == f"{tmp_path}/curves.png"
    assert (tmp_path / "curves.png").stat().st_size
    monkeypatch.setattr("pacecore.plots.draw_curves", refuse)
    said = f"none: {tmp_path}/curves.png: cannot be written: No space left on device"
    assert folder.curves("pretrain") == said
    assert RunFolder(tmp_path, writes=False).curves("pretrain") == "none"
