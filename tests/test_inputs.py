"""The videos of a run: what is said of them, and how often an epoch shows them."""

import pytest
import torch

from pacecore.config import TrainOptions, from_mapping
from pacecore.engine import begin
from pacecore.errors import PacecoreError
from pacecore.inputs import open_inputs
from tests.tiny import write_tiny

HEAD = "label,youtube_id,time_start,time_end,split\n"


def options_of(folder):
    return from_mapping(TrainOptions, {"data": str(folder), "out": str(folder / "run")})


def test_kinetics_is_shown_once_an_epoch_and_what_is_missing_is_counted(tmp_path):
    (tmp_path / "train.csv").write_text(f"{HEAD}waving,a,0,10,train\nwaving,gone,1,2,train\n")
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    options = options_of(tmp_path)
    data = open_inputs(options)
    assert data.repeat == 1
    assert "1 training videos with 20 frames, Kinetics in" in data.words
    assert "; 1 more are listed but not there" in data.words
    resolved, _, _ = begin(options, torch.device("cpu"), resume=False, fall_back=False)
    assert resolved.repeat == 1


def test_other_videos_are_shown_ten_times_unless_told(tmp_path):
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    for wish, given in ((0, 10), (3, 3)):
        options = from_mapping(TrainOptions, {**vars(options_of(tmp_path)), "repeat": wish})
        resolved, data, _ = begin(options, torch.device("cpu"), resume=False, fall_back=False)
        assert "listed but not there" not in data.words
        assert resolved.repeat == given


def test_what_depends_on_other_options_is_filled_in(tmp_path):
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    options = TrainOptions(data=str(tmp_path), out=str(tmp_path / "run"))
    resolved, _, _ = begin(options, torch.device("cpu"), resume=False, fall_back=False)
    assert (resolved.clip_frames, resolved.resize, resolved.crop) == (16, (128, 171), 112)


def test_ranks_that_find_other_videos_are_refused(tmp_path, monkeypatch):
    """On other machines of a run the folder may hold others; a number would mean another video."""
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    monkeypatch.setattr("pacecore.inputs.merge_over_ranks", lambda found: found | {"other": ""})
    words = rf"the ranks do not find the same videos in {tmp_path}: rank 0 has 1 training videos"
    with pytest.raises(PacecoreError, match=words):
        begin(options_of(tmp_path), torch.device("cpu"), resume=False, fall_back=False)


def test_a_run_needs_a_folder(tmp_path):
    with pytest.raises(PacecoreError, match="out must name the folder of the run, got ''"):
        begin(TrainOptions(), torch.device("cpu"), resume=False, fall_back=False)
