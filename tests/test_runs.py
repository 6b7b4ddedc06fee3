"""What is read back from a run's folder."""

import json

import pytest

from pacecore.errors import PacecoreError
from pacecore.runs import NoResults, read_run, replaced_by


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


def test_of_older_results_the_words_tell_which_videos_they_are_of(tmp_path):
    path = tmp_path / "test.json"
    new = {"measured_with": {"data": "ucf"}, "videos_identity": "a", "data_words": "9 videos"}
    old = {"measured_with": {"data": "ucf"}, "videos": 3, "data_words": "9 videos"}
    others = [
        {**old, "data_words": "8 videos"},
        {**old, "measured_with": {"data": "ucf", "fold": "2"}},
    ]
    assert replaced_by(new, path) == ""
    for before, said in ((old, ""), (others[0], "3 of ucf"), (others[1], "3 of ucf, split 2")):
        path.write_text(json.dumps(before))
        assert replaced_by(new, path) == (said and f"the result on other videos, {said}")
    for text in ("{", "[]", "{}", '{"measured_with": 3}'):  # of other programs
        path.write_text(text)
        assert replaced_by(new, path) == ""
