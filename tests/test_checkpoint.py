import errno
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from pacecore.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_resume,
    previous,
    save_checkpoint,
)
from pacecore.convert import convert, read_weights
from pacecore.errors import PacecoreError
from pacecore.trained import fingerprint, load_trained

from .tiny import pretrained


def test_round_trip_keeps_the_file_before(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"kind": "pretrain", "model": {"w": torch.arange(5)}})
    save_checkpoint(path, {"kind": "pretrain", "model": {"w": torch.arange(6)}})
    assert load_checkpoint(path)["model"]["w"].numel() == 6
    assert load_checkpoint(previous(path))["model"]["w"].numel() == 5
    assert sorted(os.listdir(tmp_path)) == ["last.previous.pt", "last.pt"]


def test_a_file_system_without_links_keeps_the_file_before_too(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path)["step"] == 3
    assert load_checkpoint(previous(path))["step"] == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"last\.pt: checkpoint cannot be written: No space"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a full disk of Linux")
def test_a_full_disk_is_told(tmp_path):
    path = tmp_path / "last.pt"
    path.with_name("last.pt.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="checkpoint cannot be written"):
        save_checkpoint(path, {"model": torch.zeros(100_000)})
    assert not path.exists()


def test_a_disk_that_has_become_read_only_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pacecore.checkpoint.torch.save", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CheckpointError, match=r"last.pt: .* cannot be written: Read-only file"):
        save_checkpoint(tmp_path / "last.pt", {})


def test_a_folder_is_no_name_for_a_checkpoint():
    with pytest.raises(CheckpointError, match=r"^\.: checkpoint cannot be written: it is a folder"):
        save_checkpoint(".", {})


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save_checkpoint(tmp_path / "none" / "last.pt", {})


def test_damage_is_told(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"model": torch.arange(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a checkpoint, or cut short"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint; beside it is last"):
        load_checkpoint(tmp_path / "best.pt")
    middle = whole.index(torch.arange(1000).numpy().tobytes()[800:1600])
    path.write_bytes(whole[:middle] + b"\xff" + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("fall_back", [False, True])
def test_what_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch, fall_back):
    """As another user's file: the weights before it are not what is wanted."""
    for number in range(2):
        save_checkpoint(tmp_path / "last.pt", {"model": number})

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        words = r"last\.pt: checkpoint cannot be read: Permission denied$"
        with pytest.raises(CheckpointError, match=words):
            load_resume(str(tmp_path), fall_back=fall_back)
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").mkdir()
    words = r"last\.pt: checkpoint cannot be read: Is a directory$"
    with pytest.raises(CheckpointError, match=words):
        load_resume(str(tmp_path), fall_back=fall_back)


def test_a_checkpoint_of_another_kind_is_not_measured(tmp_path):
    path = pretrained(tmp_path / "last.pt")
    save_checkpoint(path, {**load_checkpoint(path), "kind": "other"})
    with pytest.raises(CheckpointError, match=r"last\.pt: kind must be one of .*, got 'other'"):
        load_trained(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": ["pretrain"]}, r"kind must be one of .*, got \['pretrain'\]"),
        ({"model": None}, "not as pacecore writes it: AttributeError"),
        ({"model": {"backbone.x": None}}, "not as pacecore writes it: AttributeError"),
        ({"options": {"normalize": "1"}}, "normalize must be one of .*, got '1'"),
        ({"options": 3}, "not as pacecore writes it: AttributeError"),
    ],
)
def test_a_checkpoint_of_other_content_is_named(tmp_path, changes, said):
    path = pretrained(tmp_path / "last.pt")
    content = load_checkpoint(path)
    save_checkpoint(path, content | changes)
    with pytest.raises(CheckpointError, match=rf"last\.pt: {said}"):
        load_trained(path)
    del content["model"]
    save_checkpoint(path, content)
    with pytest.raises(CheckpointError, match=r"last\.pt: not as pacecore .*KeyError\('model'\)"):
        load_trained(path)


def test_weights_of_another_width_than_the_options_say_are_told(tmp_path):
    path = pretrained(tmp_path / "last.pt")
    content = load_checkpoint(path)
    content["options"]["width"] = 0.25
    save_checkpoint(path, content)
    said = r"last\.pt: its weights do not fit r3d of depth 10 and width 0\.25: "
    with pytest.raises(CheckpointError, match=said):
        load_trained(path)


def test_what_is_damaged_is_no_bare_weights_either(tmp_path):
    path = pretrained(tmp_path / "last.pt")
    values = torch.load(path, weights_only=True)["model"]["head.weight"].numpy().tobytes()
    whole = bytearray(path.read_bytes())
    whole[whole.index(values)] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged, .* has a wrong checksum"):
        load_trained(path)
    with pytest.raises(PacecoreError, match=r"last\.pt: damaged, .* has a wrong checksum"):
        read_weights(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a pacecore checkpoint of format 1"):
        load_checkpoint(path)

    class Runs:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"pacecore": 1, "model": Runs()}, path)
    with pytest.raises(
        CheckpointError, match=r"cannot be read: reading it would run code \(.*system\)"
    ):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.save({"pacecore": 1, "model": {}}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[:-1] if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"cut\.pt: .*its pickle is broken"):
        load_checkpoint(tmp_path / "cut.pt")
    path.write_bytes(pickle.dumps({"pacecore": 1}))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)


def test_bare_weights_that_no_network_can_take_are_named(tmp_path):
    path, beside = tmp_path / "w.pt", tmp_path / "w.json"
    convert(pretrained(tmp_path / "run" / "last.pt"), path)
    said = json.loads(beside.read_text())
    beside.write_text(json.dumps(said | {"input": {"clip_frames": -1}}))
    with pytest.raises(CheckpointError, match=r"w\.pt: clip_frames must be at least 0, got -1"):
        load_trained(path)
    beside.write_text(json.dumps(said))
    weights = torch.load(path, weights_only=True)
    weights["head.bias"] = torch.full((4,), 1e300, dtype=torch.float64)  # infinite in float32
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"weights are not finite, the first head\.bias"):
        load_trained(path)


def test_a_later_format_is_not_taken_for_bare_weights(tmp_path):
    path = pretrained(tmp_path / "run")
    torch.save({**torch.load(path, weights_only=True), "pacecore": 2}, path)
    for read in (read_weights, load_trained):
        with pytest.raises(PacecoreError, match="format 1 is read, and this has format 2"):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_comes_ready_for_use_and_its_weights_have_a_name_in_any_type(tmp_path, dtype):
    trained = load_trained(pretrained(tmp_path / "last.pt"))
    assert not trained.backbone.training
    clips = torch.rand(2, 3, 4, 16, 16)
    before = fingerprint(trained.backbone)
    with torch.no_grad():
        alone, both = trained.backbone(clips[:1]), trained.backbone(clips)
    torch.testing.assert_close(alone, both[:1])
    assert fingerprint(trained.backbone) == before
    other = trained.backbone.to(dtype)
    assert len({before, fingerprint(other), fingerprint(other)}) == 2
