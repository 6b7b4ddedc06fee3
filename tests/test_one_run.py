"""A run has its folder and its process for itself: what begins beside it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pacecore.beginning import in_run_folder
from pacecore.cli.train import next_lines
from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.errors import PacecoreError
from pacecore.finetune import finetune
from pacecore.runlog import alone_in_process
from pacecore.train import pretrain
from tests.ranks import held_elsewhere
from tests.test_train import call
from tests.tiny import SMALL, tiny_set

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_process_trains_one_network_at_a_time(tmp_path):
    """By the random numbers of another thread the weights would be others."""
    videos = tiny_set(tmp_path / "set", train=2)
    options = {**SMALL, "data": str(videos), "batch": 4, "max_steps": 1, "held_out": "none"}
    train, tune = TrainOptions(**options).resolved(), FinetuneOptions(**options).resolved()
    refused = pytest.raises(PacecoreError, match=r"^another thread of this process is training, ")
    with alone_in_process(CPU), refused:
        pretrain(replace(train, out=str(tmp_path / "a")))
    with alone_in_process(CPU), refused:
        finetune(replace(tune, out=str(tmp_path / "b")))
    with pytest.raises(PacecoreError, match="out must name the folder of the run that goes on"):
        pretrain(train, resume=True)
    drawn = torch.get_rng_state()
    pretrain(replace(train, out=str(tmp_path / "a")))
    finetune(replace(tune, out=str(tmp_path / "b")))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_run_goes_on_from_what_the_process_before_it_has_saved_last(tmp_path, monkeypatch):
    """What it has read while another still trains, that one saves over, and is put back by it."""
    monkeypatch.setattr("pacecore.beginning.load_resume", lambda *_, **__: pytest.fail("read"))
    trainings = [(pretrain, TrainOptions), (finetune, FinetuneOptions)]
    with held_elsewhere(tmp_path / ".lock"):
        for verb, kind in trainings:
            with pytest.raises(PacecoreError, match=r"is training into it; wait or stop it$"):
                verb(kind(device="cpu", out=str(tmp_path)), resume=True)
    for verb, kind in trainings:  # of a folder that is not there none is made
        with pytest.raises(pytest.fail.Exception):
            verb(kind(device="cpu", out=str(tmp_path / "none")), resume=True)
    assert not (tmp_path / "none").exists()


def test_runs_that_begin_together_get_a_folder_each(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Path.mkdir

    def later(path, *mode, **how):
        if path.name == "train-2":  # which another process makes between look and grasp
            os.mkdir(path)
        made(path, *mode, **how)

    monkeypatch.setattr(Path, "mkdir", later)
    nameless = TrainOptions()
    with in_run_folder("pretrain", nameless) as one, in_run_folder("pretrain", nameless) as two:
        assert (one.out, two.out) == ("runs/train-1", "runs/train-3")
        with in_run_folder("pretrain", two) as named:
            assert named is two
        Path("runs/train-3/last.pt").touch()
    assert sorted(path.name for path in Path("runs").iterdir()) == ["train-2", "train-3"]


def test_ranks_find_one_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "runs/train-1").mkdir(parents=True)
    for _ in range(2):
        with in_run_folder("pretrain", TrainOptions()) as options:
            assert options.out == "runs/train-2"


@pytest.mark.parametrize("words", [["train", "none"], ["finetune", "--scratch", "none"]])
def test_a_run_that_does_not_begin_leaves_no_folder(monkeypatch, capsys, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, err) == (2, "pacecore: none: no such file or folder\n")
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").touch()
    code, _, err = call(monkeypatch, capsys, *words)
    verb = words[0]
    assert err == f"pacecore: runs/{verb}-1: cannot be written: runs is not a folder\n"


def test_a_training_without_a_folder_makes_one_by_python_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    videos = tiny_set(tmp_path / "set", train=2)
    options = TrainOptions(**SMALL, data=str(videos), batch=4, max_steps=1, held_out="none")
    summary = pretrain(options)  # not resolved either
    assert summary["options"]["out"] == "runs/train-1"
    assert Path("runs/train-1/last.pt").is_file()


@pytest.mark.parametrize("verb", [pretrain, finetune], ids=["pretrain", "finetune"])
def test_options_of_another_verb_are_refused_at_once(tmp_path, verb):
    wanted = {pretrain: "TrainOptions", finetune: "FinetuneOptions"}[verb]
    other = FinetuneOptions if verb is pretrain else TrainOptions
    with pytest.raises(PacecoreError, match=f"options must be {wanted}, got {other.__name__}"):
        verb(other(data=str(tmp_path / "none"), out=str(tmp_path / "run")))
    with pytest.raises(PacecoreError, match=f"options must be {wanted}, got dict"):
        verb({"data": str(tmp_path / "none")})
    with pytest.raises(PacecoreError, match=r"^device must be text, got device"):
        verb({pretrain: TrainOptions, finetune: FinetuneOptions}[verb](device=torch.device("cpu")))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_own_setting_by_python_too(monkeypatch, tmp_path):
    videos = tiny_set(tmp_path / "set", train=2)
    common = {**SMALL, "batch": 4, "max_steps": 1, "held_out": "none"}
    common |= {"data": str(videos), "out": str(tmp_path / "run")}
    options = TrainOptions(**common)
    pretrain(options)
    first = (tmp_path / "run" / "options.toml").read_text()
    changed = {"lr": 0.5, "seed": 9, "paces": "1,2,3,7", "normalize": "none", "data": "elsewhere"}
    for name, value in changed.items():
        was = getattr(options, name)
        with pytest.raises(PacecoreError, match=f"^{name} must stay {was!r} .*, got {value!r}"):
            pretrain(replace(options, **{name: value}), resume=True)
    with pytest.raises(PacecoreError, match="a run of pacecore train; resume it with that"):
        finetune(FinetuneOptions(**common), resume=True)
    assert (tmp_path / "run" / "options.toml").read_text() == first
    # The end, how often it logs, and where the same videos lie may be said anew.
    monkeypatch.chdir(tmp_path)
    longer = replace(options, max_steps=2, log_every=1, data="set", repeat=0)
    assert pretrain(longer, resume=True)["steps"] == 2


def test_a_run_goes_on_where_its_videos_were_moved_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tiny_set(Path("set"), train=2, test=1)
    options = TrainOptions(**SMALL, data="set", out="run", batch=4, max_steps=1, held_out="none")
    pretrain(options)
    Path("set").rename("moved")
    tiny_set(Path("other"), train=3)
    with pytest.raises(PacecoreError, match=r"^run: its videos are not .*, 'set'; name with DATA "):
        pretrain(options, resume=True)
    with pytest.raises(PacecoreError, match=r"^run: its videos are not there any more, 'gone'; "):
        pretrain(replace(options, data="gone"), resume=True)
    with pytest.raises(
        PacecoreError, match=r"^run: the run was trained .* other videos than other"
    ):
        pretrain(replace(options, data="other"), resume=True)
    with pytest.raises(
        PacecoreError, match=r"^data must stay 'set' in the resumed run run, got ''"
    ):
        pretrain(replace(options, data=""), resume=True)
    longer = replace(options, data="moved", max_steps=2)
    assert pretrain(longer, resume=True)["options"]["data"] == "moved"
    with pytest.raises(PacecoreError, match=r"^held_out must stay 'none' .*, got 'moved'"):
        pretrain(replace(longer, held_out="moved"), resume=True)


def test_the_next_commands_name_a_folder_that_looks_like_an_option():
    (line,) = next_lines(Path("-dash/last.pt"), ["test"])[1:]
    assert line.startswith("  pacecore test ./-dash/last.pt ")
