"""What an index keeps of counted videos, so that training from it counts them no more."""

import os
from pathlib import Path

import pytest

from pacecore import datasets
from pacecore.datasets import find_videos, probe_all, read_index, write_index
from pacecore.video import counted, counted_from, counted_text, probe
from tests.video_files import write_fields, write_pictures, write_video


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mpeg4", {"bf": "2", "g": "5"}),  # counted by picture types
        ("a.mp4", "libx264", {"bf": "2", "g": "5"}),  # by stamps
        ("a.mkv", "libx264", {"bf": "2", "g": "5"}),
        ("a.ts", "mpeg2video", {"bf": "2", "g": "5"}),  # by decoding
        ("a.gif", "gif", {}),
    ],
)
def test_what_was_counted_is_given_back(name, codec, options, tmp_path):
    format_of = {"pixel_format": "rgb8"} if codec == "gif" else {}
    path = str(write_video(tmp_path / name, codec, options=options, **format_of))
    info = probe(path)
    again = counted_from(counted_text(info, path), path)
    assert repr(again) == repr(info)
    assert [type(value) for value in vars(again).values()] == list(map(type, vars(info).values()))


def test_fields_and_what_is_no_file(tmp_path):
    path = str(write_fields(tmp_path / "fields.mp4"))
    assert repr(counted_from(counted_text(probe(path), path), path)) == repr(probe(path))
    pictures = str(write_pictures(tmp_path / "pictures", 3))
    assert counted_text(probe(pictures), pictures) is None
    assert counted_from(counted_text(probe(path), path), str(tmp_path / "gone.mp4")) is None


def test_another_file_or_another_way_of_counting_counts_anew(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", "libx264", frames=9))
    text = counted_text(probe(path), path)
    assert counted_from(text, path).num_frames == 9
    for name in ("_FFMPEG", "_RULES"):
        with monkeypatch.context() as patch:
            patch.setattr(counted, name, "another")
            assert counted_from(text, path) is None
    for damaged in (text[:-8], text[8:], "", "x", 3):
        assert counted_from(damaged, path) is None
    date = os.stat(path).st_mtime
    os.utime(path, (date, date - 60))
    assert counted_from(text, path) is None
    os.utime(path, (date, date))
    assert counted_from(text, path).num_frames == 9
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, (date, date))
    assert counted_from(text, path) is None


def test_training_from_an_index_counts_what_has_changed_alone(tmp_path, monkeypatch):
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", "libx264", frames=9)
    write_index(probe_all(find_videos(tmp_path))[0], tmp_path / "index.jsonl")
    write_video(tmp_path / "1.mp4", "libx264", frames=12)
    seen = []

    def probing(path):
        seen.append(Path(path).name)
        return probe(path)

    monkeypatch.setattr(datasets, "_probe", probing)
    index, bad = probe_all(read_index(tmp_path / "index.jsonl"))
    assert [entry.num_frames for entry in index.entries] == [9, 12, 9]
    assert (seen, bad) == (["1.mp4"], [])
