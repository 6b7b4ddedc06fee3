"""What an index keeps of counted videos, so that training from it counts them no more."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from pacecore import datasets
from pacecore.datasets import find_videos, probe_all
from pacecore.index import read_index, write_index
from pacecore.video import counted, counted_from, counted_text, holds, probe
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
    text = counted_text(info, path)
    again = counted_from(text)
    assert holds(text, path)
    assert repr(again) == repr(info)
    assert [type(value) for value in vars(again).values()] == list(map(type, vars(info).values()))


def test_fields_and_what_is_no_file(tmp_path):
    path = str(write_fields(tmp_path / "fields.mp4"))
    text = counted_text(probe(path), path)
    assert repr(counted_from(text)) == repr(probe(path))
    assert not holds(text, str(tmp_path / "gone.mp4"))
    pictures = str(write_pictures(tmp_path / "pictures", 3))
    text = counted_text(probe(pictures), pictures)
    assert repr(counted_from(text)) == repr(probe(pictures))
    assert not holds(text, pictures)


def test_another_file_or_another_way_of_counting_counts_anew(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", "libx264", frames=9))
    text = counted_text(probe(path), path)
    assert holds(text, path)
    for name in ("_FFMPEG", "_RULES"):
        with monkeypatch.context() as patch:
            patch.setattr(counted, name, "another")
            assert not holds(text, path)
    for damaged in (text[:-8], text[8:], "", "x", 3, None):
        assert not holds(damaged, path)
    date = os.stat(path).st_mtime
    os.utime(path, (date, date - 60))
    assert not holds(text, path)
    os.utime(path, (date, date))
    assert holds(text, path)
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, (date, date))
    assert not holds(text, path)


def test_training_from_an_index_counts_what_has_changed_alone(tmp_path, monkeypatch):
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", "libx264", frames=9)
    write_index(probe_all(find_videos(tmp_path))[0], tmp_path / "index.jsonl")
    write_video(tmp_path / "1.mp4", "libx264", frames=12)
    seen = []

    def probing(path):
        seen.append(Path(path).name)
        return counting(path)

    counting = datasets._probe
    monkeypatch.setattr(datasets, "_probe", probing)
    index, bad = probe_all(read_index(tmp_path / "index.jsonl"))
    assert [entry.num_frames for entry in index.entries] == [9, 12, 9]
    assert (seen, bad) == (["1.mp4"], [])


def test_a_counted_video_takes_little_memory_and_its_line_none(tmp_path):
    """Of a set of 250,000 each trainer and each of its workers holds all."""
    path = write_video(tmp_path / "a.avi", "mpeg4", frames=300, options={"bf": "2"})
    index = probe_all(find_videos(tmp_path))[0]
    for number in range(1, 300):
        os.link(path, tmp_path / f"{number}.avi")
    entries = [replace(index.entries[0], name=f"{number}.avi") for number in range(1, 300)]
    tracemalloc.start()
    try:
        write_index(replace(index, entries=tuple(entries)), tmp_path / "index.jsonl")
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        again = read_index(tmp_path / "index.jsonl")
        assert all(entry.counted for entry in again.entries)
        assert tracemalloc.get_traced_memory()[1] < 3000 * len(entries)
        assert written < 1000 * len(entries)
    finally:
        tracemalloc.stop()
