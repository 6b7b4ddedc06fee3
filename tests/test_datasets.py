"""Layouts found by themselves, with the quirks they come with; every broken rule named."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from pacecore import datasets
from pacecore.datasets import data_index, find_videos, probe_all
from pacecore.index import DatasetError, read_index, write_index
from pacecore.isolated import run_jobs
from pacecore.media import picture_files
from tests.trees import labels, names, text, tree
from tests.video_files import write_pictures, write_video

# Folders


def test_class_folders(tmp_path):
    tree(tmp_path, "walk/b.avi", "run fast/2.mp4", "walk/a.MKV", "run fast/sub/1.webm")
    tree(tmp_path, ".hidden/x.avi", "__MACOSX/walk/a.avi", "notes/readme.txt", "walk/.a.avi")
    tree(tmp_path, "cover.jpg", "walk/a.jpg")  # frames lie alone
    index = find_videos(tmp_path)
    assert index.layout == "class folders"
    assert index.classes == ("run fast", "walk")
    assert names(index) == ["run fast/2.mp4", "run fast/sub/1.webm", "walk/a.MKV", "walk/b.avi"]
    assert labels(index) == [0, 0, 1, 1]
    assert index.splits == ()
    assert find_videos(tmp_path, split="train") == index
    with pytest.raises(DatasetError, match="has no split 'test'; its splits: none"):
        find_videos(tmp_path, split="test")


def test_flat_folder(tmp_path):
    tree(tmp_path, "b.mp4", "a.avi", "c.mov", "list.json")
    index = find_videos(tmp_path)
    assert names(index) == ["a.avi", "b.mp4", "c.mov"]
    assert labels(index) == [None] * 3
    assert index.classes == ()
    assert index.layout == "videos without labels"


def test_what_is_a_video_by_its_ending(tmp_path):
    tree(tmp_path, "a.dv", "b.DivX", "c.m2v", "d.mk3d", "go.mod", "song.mod", "e.dvd")
    assert names(find_videos(tmp_path)) == ["a.dv", "b.DivX", "c.m2v", "d.mk3d"]


def test_a_home_is_meant_as_in_a_shell(tmp_path, monkeypatch):
    tree(tmp_path, "videos/a.mp4")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(find_videos("~/videos")) == ["a.mp4"]
    with pytest.raises(DatasetError, match=r"^~nobody-of-that-name/a: no such file or folder"):
        find_videos("~nobody-of-that-name/a")


def test_a_folder_around_everything_is_no_class(tmp_path):
    tree(tmp_path, "set/walk/a.avi", "set/run/b.avi")
    assert find_videos(tmp_path).classes == ("run", "walk")


def test_mixed_depth_has_no_labels(tmp_path):
    tree(tmp_path, "a.avi", "walk/b.avi")
    index = find_videos(tmp_path)
    assert labels(index) == [None, None]
    assert index.layout == "videos without labels, as a.avi is in no class folder"
    tree(tmp_path / "set", "train/walk/a.avi", "train/run/b.avi", "test/c.avi")
    whole = "split folders of videos without labels, as test/c.avi is in no class folder"
    assert find_videos(tmp_path / "set").layout == whole


def test_split_folders(tmp_path):
    tree(tmp_path, "train/walk/a.avi", "train/run/b.avi", "Validation/run/c.avi", "test/walk/d.avi")
    index = find_videos(tmp_path)
    assert index.splits == ("train", "val", "test")
    assert [(e.name, e.class_name) for e in find_videos(tmp_path, split="val").entries] == [
        ("Validation/run/c.avi", "run")
    ]
    assert index.classes == ("run", "walk")


@pytest.mark.parametrize("outside", ["intro.avi", "extra/run/e.avi"])
def test_videos_beside_split_folders_are_no_silent_part_of_the_set(outside, tmp_path):
    tree(tmp_path, "train/run/a.avi", "test/run/b.avi", outside)
    with pytest.raises(DatasetError, match=rf"folders test, train, and {outside} is in none"):
        find_videos(tmp_path)
    tree(tmp_path / "vehicles", "train/a.avi", "bus/b.avi")
    assert find_videos(tmp_path / "vehicles").classes == ("bus", "train")


def test_a_link_that_leads_back_is_not_followed(tmp_path):
    tree(tmp_path / "videos", "a/1.avi", "b/2.avi")
    tree(tmp_path / "videos2", "3.avi")
    (tmp_path / "videos" / "a" / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "b" / "here").symlink_to(".")
    (tmp_path / "videos2" / "round").symlink_to(tmp_path / "videos" / "d")
    (tmp_path / "videos" / "d").mkdir()
    (tmp_path / "videos" / "d" / "round").symlink_to(tmp_path / "videos2")
    (tmp_path / "videos" / "c").symlink_to(tmp_path / "videos2")
    assert names(find_videos(tmp_path / "videos")) == [
        "a/1.avi", "b/2.avi", "c/3.avi", "d/round/3.avi",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    tree(tmp_path, "a/1.avi", "b/2.avi", "lost+found/3.avi")
    scandir = os.scandir

    def gone(path):
        if os.path.basename(path) in ("b", "lost+found"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    with pytest.raises(DatasetError, match=r"/b: cannot be read: Stale file handle"):
        find_videos(tmp_path)


def test_a_source_that_may_not_be_looked_at_is_told():
    with pytest.raises(DatasetError, match=r"aa: cannot be read: File name too long$"):
        find_videos("a" * 300)


def test_a_folder_of_pictures_alone_is_one_video(tmp_path):
    tree(tmp_path / "wave", "img_2.jpg", "._img_2.jpg", "img_10.jpg")
    index = find_videos(tmp_path / "wave")
    assert (index.layout, names(index)) == ("one video", ["wave"])
    assert [p.name for p in picture_files(index.entries[0].path)] == ["img_2.jpg", "img_10.jpg"]


def test_what_runs_wrote_among_videos_is_no_data(tmp_path):
    tree(tmp_path, "run/a.avi", "walk/b.avi", "report/curves.png", "report/report.json")
    tree(tmp_path, "report/report.md", "run/report.json", "walk/@eaDir/b.avi/THUMB.jpg")
    run = tree(tmp_path / "runs" / "train-1", "clips.png", "attend/a.mp4", "options.toml")
    assert find_videos(tmp_path).classes == ("run", "walk")
    (run / "attend" / "a.mp4").unlink()
    (run / "attend").rmdir()
    with pytest.raises(DatasetError, match="no video in it"):
        find_videos(run)


def test_folders_of_pictures(tmp_path):
    for name in ("walk/v1", "walk/v2", "run/v3"):
        write_pictures(tmp_path / name, 3)
    index, bad = probe_all(find_videos(tmp_path), workers=1)
    assert index.layout == "class folders, as still pictures"
    assert [(e.name, e.num_frames, e.label) for e in index.entries] == [
        ("run/v3", 3, 0),
        ("walk/v1", 3, 1),
        ("walk/v2", 3, 1),
    ]
    assert not bad
    # What lies within a video's folder, optical flow for one, is no video; what a folder of a class
    # shows beside its videos is no frame.
    write_pictures(tmp_path / "run" / "v3" / "flow", 6)
    tree(tmp_path, "walk/poster.jpg")
    assert names(find_videos(tmp_path)) == ["run/v3", "walk/v1", "walk/v2"]
    tree(tmp_path, "run/clip.mp4")  # the pictures may be thumbnails
    assert find_videos(tmp_path).layout == "class folders, 3 as pictures"


def test_one_video_file(tmp_path):
    index = find_videos(tree(tmp_path, "a.avi") / "a.avi")
    assert names(index) == ["a.avi"]


# Errors, order, index


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="no such file or folder"):
        find_videos(tmp_path / "none")
    with pytest.raises(DatasetError, match="no video in it"):
        find_videos(tmp_path)
    with pytest.raises(DatasetError, match="no video in it"):
        find_videos(tree(tmp_path, "a.txt", "sub/b.pdf"))
    with pytest.raises(DatasetError, match="split must be one of"):
        find_videos(tmp_path, split="holdout")
    with pytest.raises(DatasetError, match="missing must be"):
        find_videos(tmp_path, missing="ignore")


def test_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path, monkeypatch):
    tree(tmp_path, *(f"{c}/{n}.avi" for c in "ab" for n in (10, 9, 1)))
    straight = find_videos(tmp_path)
    walk = os.walk

    def backwards(*a, **k):
        return ((p, d, f[::-1]) for p, d, f in list(walk(*a, **k))[::-1])

    monkeypatch.setattr(os, "walk", backwards)
    assert find_videos(tmp_path) == straight
    assert names(straight) == sorted(names(straight))


def test_the_index_of_videos_outside_a_linked_folder_has_their_paths(tmp_path):
    tree(tmp_path, "near/videos/a.avi", "disk/deep/data/b.avi")
    (tmp_path / "near" / "data").symlink_to(tmp_path / "disk" / "deep" / "data")
    text(tmp_path / "disk/deep/data/list.txt", f"{tmp_path}/near/videos/a.avi\nb.avi\n")
    index = find_videos(tmp_path / "near" / "data" / "list.txt")
    for home in (tmp_path, tmp_path / "near"):  # above the videos, and elsewhere
        write_index(index, home / "index.jsonl")
        again = read_index(home / "index.jsonl")
        assert names(again) == names(index) == ["../videos/a.avi", "b.avi"]
        for one, other in zip(index.entries, again.entries, strict=True):
            assert os.path.samefile(one.path, other.path)


def test_the_index_of_a_video_above_where_a_link_leads_has_its_path(tmp_path):
    tree(tmp_path, "d/x.mp4", "e/real/y.mp4", "e/x.mp4", "e/aside/z.mp4", "f/y.mp4")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "e" / "real")
    (tmp_path / "e" / "z.mp4").symlink_to("aside/z.mp4")
    (tmp_path / "f" / "down").mkdir()
    (tmp_path / "e" / "real" / "down").symlink_to(tmp_path / "f" / "down")
    text(tmp_path / "e/real/l.txt", "../x.mp4 0\n../z.mp4 0\ndown/../y.mp4 1\n")
    index = find_videos(tmp_path / "d" / "link" / "l.txt")
    write_index(index, tmp_path / "index.jsonl")
    again = read_index(tmp_path / "index.jsonl")
    assert names(again) == names(index) == ["../x.mp4", "../z.mp4", "y.mp4"]
    found = [os.path.relpath(entry.path, tmp_path) for entry in again.entries]
    assert found == ["e/x.mp4", "e/z.mp4", "f/y.mp4"]


def test_a_link_that_leads_to_itself_is_an_unreadable_video(tmp_path):
    (tmp_path / "odd").mkdir()
    write_video(tmp_path / "odd" / "b.avi", frames=7)
    (tmp_path / "odd" / "self.mp4").symlink_to("self.mp4")
    index, bad = data_index(find_videos(tmp_path / "odd"), tmp_path / "odd.jsonl")
    assert [Path(each.path).name for each in bad] == ["self.mp4"]
    assert '{"path": "self.mp4", "state": "' in (tmp_path / "odd.jsonl").read_text()
    assert read_index(tmp_path / "odd.jsonl") == index


def probe_or_die(path, real_probe=datasets._probe):
    if path.endswith("2.avi"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("3.avi"):
        time.sleep(1000)
    return real_probe(path)


def test_a_video_whose_reader_dies_or_hangs_is_left_out_by_name(tmp_path, monkeypatch):
    for number in range(1, 5):
        write_video(tmp_path / f"{number}.avi", frames=7)
    monkeypatch.setattr(datasets, "run_jobs", run_jobs)
    monkeypatch.setattr(datasets, "_probe", probe_or_die)
    index, bad = probe_all(find_videos(tmp_path), timeout_seconds=1)
    assert names(index) == ["1.avi", "4.avi"]
    assert [(Path(each.path).name, each.reason) for each in bad] == [
        ("2.avi", "the process reading it ended by signal 11"),
        ("3.avi", "took longer than 1 s"),
    ]


def test_what_an_index_has_counted_is_not_counted_again(tmp_path, monkeypatch):
    write_video(tmp_path / "1.avi", frames=7)
    counted, _ = probe_all(find_videos(tmp_path))
    monkeypatch.setattr(datasets, "_probe", None)
    seen = []
    assert probe_all(counted, 0, lambda *a: seen.append(a)) == (counted, [])
    assert seen == [(1, 1)]


def test_probe_all_and_the_index_file(tmp_path):
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    (videos / "b").mkdir()
    write_video(videos / "a" / "1.avi", frames=7)
    write_video(videos / "b" / "2.mp4", "libx264", frames=5, rate=30)
    (videos / "b" / "3.avi").write_bytes(b"no video")
    seen = []
    index, bad = probe_all(find_videos(videos), 2, lambda *a: seen.append(a))
    assert [e.num_frames for e in index.entries] == [7, 5]
    assert [(Path(b.path).name, b.reason[:14]) for b in bad] == [("3.avi", "cannot be read")]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    write_index(index, tmp_path / "index.jsonl", bad)
    assert read_index(tmp_path / "index.jsonl") == index
    with pytest.raises(DatasetError, match=r"none\.jsonl: cannot be read: No such file"):
        read_index(tmp_path / "none.jsonl")
    assert find_videos(tmp_path / "index.jsonl").entries == index.entries
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "index.jsonl").rename(moved / "index.jsonl")
    videos.rename(moved / "videos")
    again = find_videos(moved / "index.jsonl")
    assert [Path(e.path).exists() for e in again.entries] == [True, True]
    for content, message in {
        '{"pacecore_index": 1}\n': "line 1: not a line of a pacecore index",
        "{\n": "line 1: not a line",
        (moved / "index.jsonl").read_text() + '{"path": 3}\n': "line 5: not a line",
        (moved / "index.jsonl").read_text().splitlines()[0] + "\n": "without a usable video",
        "\udcff": "line 1: not a line",
        "": "without a usable video",
    }.items():
        with pytest.raises(DatasetError, match=message):
            find_videos(text(tmp_path / "broken.jsonl", content))


def test_an_edited_index_is_refused_by_line_rule_and_value(tmp_path):
    head = {"pacecore_index": 1, "root": ".", "layout": "a list", "classes": ["run", "walk"]}
    first = {"path": "a.avi", "label": 1, "class": "walk", "split": "val", "frames": 9}
    bare = {"path": "b.avi", "label": None, "class": None, "split": None, "frames": None}
    source = tmp_path / "index.jsonl"

    def write(*lines: dict) -> Path:
        lines = [line | {"state": "ok"} for line in lines]
        return text(source, "".join(json.dumps(line) + "\n" for line in lines))

    index = find_videos(write(head, first, bare))
    assert [(e.split, e.label) for e in index.entries] == [("val", 1), (None, None)]
    for name, rule, values in [
        ("split", "must be null or of train, val, test", ["trian", 1, ["val"]]),
        ("label", "must be null or a number from 0 to 1", [0.5, True, 2, -1, "a", [1]]),
        ("class", 'must be "walk", that of label 1', ["run", None, 1]),
        ("frames", "must be null or from 1 to 1000000000", [-4, 0, 2.5, True, "9", 10**30]),
        ("path", "must be a text", [3, None]),
        ("file", "must be a text", [3]),
    ]:
        for value in values:
            write(head, bare, first | {name: value})
            with pytest.raises(DatasetError) as raised:
                find_videos(source)
            assert str(raised.value) == f"{source} line 3: {name} {rule}, got {json.dumps(value)}"
    for change, words in [
        ({"label": None}, 'line 2: class must be null, that of label null, got "walk"'),
        ({"label": 0}, 'line 2: class must be "run", that of label 0, got "walk"'),
    ]:
        with pytest.raises(DatasetError, match=words):
            find_videos(write(head, first | change))
    for change, words in [
        ({"classes": "ab"}, 'classes must be a list of names, got "ab"'),
        ({"classes": ["run", 3]}, "classes must be a list of names, got "),
        ({"classes": []}, "line 2: label must be null, as there are no classes, got 1"),
        ({"root": 3}, "line 1: root must be a text, got 3"),
        ({"layout": None}, "line 1: layout must be a text, got null"),
    ]:
        with pytest.raises(DatasetError, match=words):
            find_videos(write(head | change, first))
    with pytest.raises(DatasetError, match=r"line 4: a\.avi is listed twice; first in line 2$"):
        find_videos(write(head, first, bare, first))
    with pytest.raises(DatasetError, match="line 1: not a line of a pacecore index"):
        find_videos(text(source, "[" * 99_999))
