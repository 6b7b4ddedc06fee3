"""Files that are whole or not there: what a failed write leaves, and the line that it gives."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from pacecore.errors import PacecoreError
from pacecore.files import (
    aside,
    for_one_process,
    made_folder,
    safetensors,
    there,
    write_json,
    write_text,
    writing,
)

from .ranks import held_elsewhere

full_disk = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    for value in ({"one": 1}, {"where": tmp_path, "größe": [2, 3]}):
        write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == {"where": str(tmp_path), "größe": [2, 3]}
    assert path.read_text("utf-8").endswith("}\n")
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_text_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, calls = tmp_path / "a.txt", []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        assert os.fstat(handle).st_size == 4  # nothing is left in Python's own buffer
        calls.append("fsync")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or replace(*names))
    write_text(path, "text")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError, SystemExit])
def test_what_fails_leaves_the_old_file_and_nothing_beside_it(error, tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    raised = PacecoreError if isinstance(error, OSError) else error

    def broken_off(part):
        assert str(os.getpid()) in part.name
        part.write_text("half")
        raise error

    with pytest.raises(raised) as caught, aside(path) as part:
        broken_off(part)
    if raised is PacecoreError:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(PacecoreError, match=r"none/a\.txt: cannot be written: No such file"):
        write_text(path, "")
    words = r"none/a\.txt: cannot be written: Parent directory"
    with pytest.raises(PacecoreError, match=words), aside(path) as part:
        torch.save({}, part)
    (tmp_path / "none").write_text("")
    with pytest.raises(PacecoreError, match=r"none/a\.txt: cannot be written: Not a directory"):
        write_text(path, "")


@full_disk
@pytest.mark.parametrize("content", ["", torch.zeros(9999)])
def test_a_full_disk_is_named(content, tmp_path):
    path = tmp_path / "a.bin"
    path.with_name(f".{os.getpid()}.a.bin").symlink_to("/dev/full")
    words = r"a\.bin: cannot be written: No space left on device$"
    with pytest.raises(PacecoreError, match=words), aside(path) as part, open(part, "wb") as file:
        torch.save(content, file)
    assert not os.listdir(tmp_path)


def test_the_writer_of_safetensors_is_told_too(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "none" / "a.safetensors"
    words = r"a\.safetensors: cannot be written: .*No such file"
    with pytest.raises(PacecoreError, match=words), aside(path) as part:
        safetensors("torch", path).save_file({"a": torch.zeros(1)}, part)


def test_who_needs_safetensors_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)  # what an import of it then meets
    with pytest.raises(PacecoreError, match=r"^a\.st needs .*, extra pacecore\[safetensors\]$"):
        safetensors("numpy", "a.st")


def test_other_errors_are_not_of_the_file(tmp_path):
    with pytest.raises(TypeError), writing(tmp_path):
        len(3)


def test_a_device_or_a_pipe_stays_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PacecoreError, match=r"pipe: cannot be written: it is no file"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path("."), Path("/"), tmp_path):
        with pytest.raises(PacecoreError, match=rf"^{path}: cannot be written: it is a folder$"):
            write_text(path, "x")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_looked_at_is_not_taken_for_missing(tmp_path):
    (tmp_path / "leads nowhere").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert there(tmp_path)
    assert there(tmp_path / "file")
    for name in ("nothing", "leads nowhere", "file/below", "a\0b"):
        assert not there(tmp_path / name)
    with pytest.raises(OSError, match="File name too long"):
        there(tmp_path / ("x" * 300))


def test_folders_are_made_or_told(tmp_path):
    folder = made_folder(str(tmp_path / "a" / "b"))
    assert folder.is_dir()
    assert made_folder(folder) == folder
    (folder / "file").write_text("")
    with pytest.raises(PacecoreError, match=r"b/file: cannot be made: File exists"):
        made_folder(folder / "file")


def test_a_folder_that_is_there_must_take_files(tmp_path, monkeypatch):
    """As another user's, found before what would be written there is computed."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # to root all are open
    with pytest.raises(PacecoreError, match=r"cannot be written: Permission denied$"):
        made_folder(tmp_path)


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with held_elsewhere(lock) as other:
        words = rf"run: process {other} on .* is at it; wait or stop it"
        with pytest.raises(PacecoreError, match=words), for_one_process(lock, "is at it"):
            pass
    lock.write_text("process 4194304 on a host of a very long name")  # left by one that has ended
    with for_one_process(lock, "is at it"):
        assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_one_thread_at_a_time_holds_a_folder(tmp_path):
    """Nor does the one that is refused let another process in."""
    lock, words = tmp_path / ".lock", "another thread of this process is at it; wait$"
    with for_one_process(lock, "is at it"):
        (tmp_path / "link").symlink_to(tmp_path)
        for same in (lock, tmp_path / "link" / ".lock"):
            with pytest.raises(PacecoreError, match=words), for_one_process(same, "is at it"):
                pass
        with pytest.raises(AssertionError), held_elsewhere(lock):
            pass
    with held_elsewhere(lock):
        pass
    with for_one_process(lock, "is at it"):
        pass


def test_a_folder_in_the_place_of_a_lock_is_told(tmp_path):
    (tmp_path / ".lock").mkdir()
    refused = pytest.raises(PacecoreError, match=r"\.lock: cannot be written: Is a directory$")
    with refused, for_one_process(tmp_path / ".lock", ""):
        pass


def test_a_full_disk_is_told_where_the_folder_is_taken(tmp_path, largest_file):
    refused = pytest.raises(PacecoreError, match=r"\.lock: cannot be written: File too large")
    with largest_file(0), refused, for_one_process(tmp_path / ".lock", ""):
        pass
