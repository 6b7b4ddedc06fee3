"""Lists of videos as people and data sets have them: alone, and in pairs of train and test."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from pacecore import listing
from pacecore.datasets import find_videos
from pacecore.index import DatasetError, write_index
from tests.trees import labels, names, text, tree
from tests.video_files import write_pictures

# One list


def test_lists_of_a_set_with_paths_relative_to_its_root(tmp_path):
    tree(tmp_path, "hug/a.avi", "hug/b.avi", "kick/c.avi", "kick/d.avi")
    for name, (train, test) in {"byseq": ("ac", "bd"), "byset": ("bd", "ac")}.items():
        for split, letters in (("train", train), ("test", test)):
            lines = [f"{'hug' if letter in 'ab' else 'kick'}/{letter}.avi" for letter in letters]
            text(tmp_path / "splits" / f"{split}_{name}.txt", "\n".join(lines))
    assert names(find_videos(tmp_path, split="train")) == ["hug/a.avi", "kick/c.avi"]
    assert names(find_videos(tmp_path, split="train", fold=2)) == ["hug/b.avi", "kick/d.avi"]
    with pytest.raises(DatasetError, match="has no fold 3; its folds: byseq, byset"):
        find_videos(tmp_path, fold=3)
    index = find_videos(tmp_path, split="test", fold="byset")
    assert names(index) == ["hug/a.avi", "kick/c.avi"]
    assert labels(index) == [0, 1]
    alone = find_videos(tmp_path / "splits" / "test_byset.txt")
    assert (names(alone), alone.classes) == (["hug/a.avi", "kick/c.avi"], ("hug", "kick"))
    other = find_videos(tmp_path / "splits" / "test_byset.txt", split="train")
    assert names(other) == ["hug/b.avi", "kick/d.avi"]


def test_lists_named_from_where_they_lie(tmp_path, monkeypatch):
    tree(tmp_path, "a.avi", "b.avi", "lists/deeper/none.md")
    for split, name in (("train", "a"), ("test", "b")):
        text(tmp_path / "lists" / f"{split}.txt", f"{name}.avi\n")
    monkeypatch.chdir(tmp_path / "lists")
    assert names(find_videos("train.txt")) == ["a.avi"]
    assert names(find_videos(".")) == ["a.avi", "b.avi"]
    monkeypatch.chdir("deeper")
    assert names(find_videos("..")) == ["a.avi", "b.avi"]


def test_a_list_from_a_pipe_is_of_where_it_is_typed(tmp_path, monkeypatch):
    tree(tmp_path, "a.avi", "b.avi")
    monkeypatch.chdir(tmp_path)
    reads, writes = os.pipe()
    os.write(writes, b"a.avi 1\nb.avi 0\n")
    os.close(writes)
    assert labels(find_videos(f"/dev/fd/{reads}")) == [1, 0]
    os.close(reads)


def test_what_may_never_end_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.csv").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        bound.bind("socket")
    for path in ("socket", "pipe", "link.csv", "/dev/zero", "/dev/full"):
        with pytest.raises(DatasetError, match=rf"^{path}: must be .*, got a device, a socket or"):
            find_videos(path)
    monkeypatch.setattr("pacecore.listing._MOST_TEXT", 100)
    text(tmp_path / "long.txt", "a.avi\n" * 17)
    with pytest.raises(DatasetError, match=r"^long\.txt: a list must have at most 100 characters"):
        find_videos("long.txt")


def test_a_list_of_absolute_paths_that_are_gone_takes_no_file_system_for_its_root(monkeypatch):
    """As where a disk is not mounted, and the list lies one or two folders from the top."""
    listed = [("list line 1", "/dev/nowhere/a.avi", None)]
    with pytest.raises(DatasetError, match=r"list line 1: .* begins with no video under /"):
        listing._find_root(listed, [Path("/"), Path("//")], None)


def test_what_stands_beside_lists_is_none(tmp_path):
    """The hidden twins that macOS leaves on other disks, and a folder of a list's name."""
    tree(tmp_path, "a.avi", "b.avi", "other.csv/none.md")
    for split, name in (("train", "a"), ("val", "b")):
        text(tmp_path / f"k_{split}_list.txt", f"{name}.avi\n")
        (tmp_path / f"._k_{split}_list.txt").write_bytes(b"\0\5\26\7\xff")
    index = find_videos(tmp_path)
    assert [entry.split for entry in index.entries] == ["train", "val"]


def test_path_label_frames_list_over_folders_of_pictures(tmp_path):
    for name in ("ApplyLipstick/v 1", "Archery/v2"):
        write_pictures(tmp_path / "frames" / name, 4)
    listed = text(tmp_path / "train.list.txt", "ApplyLipstick/v 1 0 4\nArchery/v2 1 4\n")
    index = find_videos(listed, root=tmp_path / "frames")
    assert [(e.name, e.label, e.num_frames) for e in index.entries] == [
        ("ApplyLipstick/v 1", 0, 4),
        ("Archery/v2", 1, 4),
    ]
    assert find_videos(listed).entries == index.entries  # the root is found next to the list
    # As TSN and MMAction2 write them; what was extracted since may differ from what was listed.
    text(listed, "ApplyLipstick/v 1 4 1\nArchery/v2 5 2\n")
    assert [(e.label, e.class_name, e.num_frames) for e in find_videos(listed).entries] == [
        (0, "ApplyLipstick", 4),
        (1, "Archery", 5),
    ]


def test_names_and_classes_of_a_csv_may_hold_commas_and_spaces(tmp_path):
    tree(tmp_path, "a b/c, d.avi", "e/f.avi")
    source = text(tmp_path / "all.csv", '"a b/c, d.avi",0\n"e/f.avi",1\n')
    assert names(find_videos(source)) == ["a b/c, d.avi", "e/f.avi"]
    source = text(tmp_path / "all.csv", '"a b/c, d.avi","sit, stand up"\ne/f.avi,jump\n')
    assert find_videos(source).classes == ("jump", "sit, stand up")
    source = text(tmp_path / "all.tsv", "a b/c, d.avi\ttwo words\ne/f.avi\tand three more\n")
    assert find_videos(source).classes == ("and three more", "two words")


def test_classes_of_a_csv_are_as_its_quotes_have_them(tmp_path):
    tree(tmp_path, "a b.avi", "c.avi", "d.avi", "e.avi")
    lines = 'a b.avi,phase; 1\nc.avi,phase; 2\nd.avi,"cut ""1"""\ne.avi,"x\ty"\n'
    index = find_videos(text(tmp_path / "all.csv", lines))
    classes = ["phase; 1", "phase; 2", 'cut "1"', "x\ty"]
    assert [entry.class_name for entry in index.entries] == classes
    assert {entry.num_frames for entry in index.entries} == {None}


@pytest.mark.parametrize("head", ["path, label\n", ""])
def test_columns_of_a_csv_may_be_parted_by_a_comma_and_a_space(head, tmp_path):
    tree(tmp_path, "a.mp4", "b.mp4", "c, d.mp4")
    lines = '"a.mp4", "jump, high"\n"b.mp4", "jump, low"\n"c, d.mp4", sit\n'
    index = find_videos(text(tmp_path / "all.csv", head + lines))
    assert [e.class_name for e in index.entries] == ["jump, high", "jump, low", "sit"]
    table = 'label, youtube_id, time_start, time_end, split\n"jump, high", a, 0, 10, train\n'
    index = find_videos(text(tmp_path / "kinetics.csv", table))
    assert (index.layout, index.classes, names(index)) == ("Kinetics", ("jump, high",), ["a.mp4"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_the_end_of_a_line_ends_it(end, tmp_path):
    odd = [f"a{sign}b.mp4" for sign in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    tree(tmp_path, *odd)
    listed = text(tmp_path / "l.txt", "".join(f"{name} 0{end}" for name in [*odd, "gone.mp4"]))
    assert names(find_videos(listed, missing="skip")) == sorted(odd)
    with pytest.raises(DatasetError, match=r"l\.txt line 9: no video gone\.mp4 0 under"):
        find_videos(listed)


def test_the_first_line_of_a_csv_may_name_its_columns(tmp_path):
    """As tables that programs write have it, in whichever order, and with other columns."""
    tree(tmp_path, "a long name of six words.avi", "e/f.avi", "e/g.avi")
    source = text(
        tmp_path / "all.csv",
        ",Num_Frames,label,video path,subset\n"
        '0,80,"sit, stand up",a long name of six words.avi,train\n'
        f"1,70,jump,{tmp_path}/e/f.avi,training\n2,,jump,e/g,val\n",
    )
    index = find_videos(source)
    assert names(index) == ["a long name of six words.avi", "e/f.avi", "e/g.avi"]
    assert [entry.class_name for entry in index.entries] == ["sit, stand up", "jump", "jump"]
    assert [entry.num_frames for entry in index.entries] == [80, 70, None]
    assert [entry.split for entry in index.entries] == ["train", "train", "val"]
    source = text(tmp_path / "test.tsv", "class\tfilename\n1\te/f.avi\n0\te/g.avi\n")
    assert [entry.label for entry in find_videos(source).entries] == [1, 0]
    source = text(tmp_path / "test.csv", "class;filename\nsit, stand up;e/f.avi\njump;e/g.avi\n")
    assert [entry.class_name for entry in find_videos(source).entries] == ["sit, stand up", "jump"]
    source = text(tmp_path / "ids.csv", "video_name,tag,label_id\ne/f.avi,jump,0\ne/g,sit,1\n")
    assert [entry.class_name for entry in find_videos(source).entries] == ["jump", "sit"]
    table = 'path,caption,tag\ne/f.avi,"two, and\n\nmore ""lines""",jump\ne/g.avi,"a\nb",sit\n'
    source = text(tmp_path / "lines.csv", table)
    assert [entry.class_name for entry in find_videos(source).entries] == ["jump", "sit"]
    for content, message in {
        "path,split\ne/f.avi,dev\n": "line 2: split must be train, val or test, got 'dev'$",
        "path,split\n,train\n": "line 2: names no video, got ',train'$",
        "path,frames\ne/f.avi,x\n": "line 2: frames must be from 1 to 1000000000, got x$",
        "path,label\ne/h.avi,x\n": "line 2: no video e/h.avi under",
        "path,label\n": "is empty$",
        'path,a\ne/f.avi,"x\ne/g.avi,y\n': 'line 2: a cell .* quotes end nowhere, got e/f.avi,"x$',
        f"path,a\ne/f.avi,{'x' * 200_000}\n": r"line 2: a cell is too long, .*xx \.\.\.$",
        'path,a\ne/f.avi,"x\ny"\ne/h.avi,z\n': "line 4: no video e/h.avi under",
        "path,label\ne/f.avi,jump\ne/g.avi,\n": "line 3: has no class, as other lines have$",
        "x" * 200_000 + "\n": "line 1: .* begins with no video under",
    }.items():
        with pytest.raises(DatasetError, match=message):
            find_videos(text(tmp_path / "wrong.csv", content))


def test_lists_leave_the_ending_out_or_have_another(tmp_path):
    tree(tmp_path, "walk/a.avi", "walk/b.avi", "run/c.avi")
    listed = text(tmp_path / "l.txt", "walk/a 1\nwalk/b.mp4 1\nrun/c 0\n")
    assert names(find_videos(listed)) == ["run/c.avi", "walk/a.avi", "walk/b.avi"]
    tree(tmp_path / "flat", "one a.avi", "one_b.avi")
    tree(tmp_path, "one/d.avi")  # what the line begins with, but no video
    for flat in (tmp_path / "flat", tmp_path):  # beside the list, and in a folder beside it
        assert len(find_videos(text(flat / "l.txt", "one a 1\none_b 0\n"))) == 2


def test_files_that_differ_in_case_alone_are_told_apart(tmp_path):
    tree(tmp_path, "v/a.mp4", "v/A.mp4", "v/b/C.MP4")
    assert names(find_videos(text(tmp_path / "l.txt", "v/a 0\n"))) == ["v/a.mp4"]
    index = find_videos(text(tmp_path / "l.txt", "v/a 0\nv/A 1\nV/B/c 2\n"))
    assert [(e.name, e.label) for e in index.entries] == [
        ("v/A.mp4", 1),
        ("v/a.mp4", 0),
        ("v/b/C.MP4", 2),
    ]
    ids = '[{"id": "a", "label": 0}, {"id": "A", "label": 1}]'
    index = find_videos(text(tmp_path / "l.json", ids), root=tmp_path / "v")
    assert [(e.name, e.label) for e in index.entries] == [("A.mp4", 1), ("a.mp4", 0)]


def test_a_root_is_found_where_the_first_videos_listed_are_missing(tmp_path):
    tree(tmp_path, "train_videos/a.mp4", "train_videos/b.mp4", "val_videos/c.mp4")
    tree(tmp_path, "others/a.mp4")  # with less of them
    one = text(tmp_path / "one.txt", "gone.mp4 0\na.mp4 0\nb.mp4 1\n")
    index = find_videos(one, missing="skip")
    assert (names(index), index.missing) == (["a.mp4", "b.mp4"], (("gone.mp4 0", None),))
    with pytest.raises(DatasetError, match=r"one\.txt line 1: no video gone\.mp4 0 .*missing skip"):
        find_videos(one)
    gone = [f"gone_{number}.mp4 0" for number in range(300)]
    for place in (300, 150, 201):  # wherever in a long list
        rare = [*gone[:place], "a.mp4 1", *gone[place:]]
        assert names(find_videos(text(one, "\n".join(rare)), missing="skip")) == ["a.mp4"]
    with pytest.raises(DatasetError, match=r"line 1: 'gone_0\.mp4 0' begins with no video"):
        find_videos(text(one, "\n".join(gone)), missing="skip")
    text(tmp_path / "train.txt", "gone.mp4 0\na.mp4 0\nb.mp4 1\n")
    text(tmp_path / "test.txt", "lost.mp4 0\nc.mp4 1\n")
    found = find_videos(tmp_path, missing="skip")
    assert [(e.name, e.split) for e in found.entries] == [
        ("train_videos/a.mp4", "train"),
        ("train_videos/b.mp4", "train"),
        ("val_videos/c.mp4", "test"),
    ]
    assert set(found.missing) == {("gone.mp4 0", "train"), ("lost.mp4 0", "test")}


def test_list_errors_name_file_line_rule_and_value(tmp_path):
    folder = tree(tmp_path / "set" / "lists", "a.avi", "b.avi")  # two folders up a root is sought
    for content, message in {
        "": "is empty",
        "none/x.avi 1\n": "line 1: .*begins with no video under .* another root by --root, and the",
        f"none {'x' * 999}\n": r"line 1: .*x \.\.\.' begins with no video under",
        f"a.avi 0\nc {',' * 200_000}\n": r"line 2: no video c ,*, \.\.\. under",
        "a.avi 0\nc.avi 1\n": "line 2: no video c.avi 1 under",
        "a.avi 0\nb.avi -1\n": "line 2: label must be from 0 to 1000000, got -1$",
        "a.avi 0\nb.avi 1000001\n": "line 2: label must be from 0 to 1000000, got 1000001$",
        f"a.avi 0\nb.avi {'9' * 5000}\n": "line 2: label must be from 0 to 1000000, got 9999",
        "a.avi 0 train\n": "line 1: a third column is the number of frames, got train; the first "
        "line of a .csv may name its columns: path, label, split$",
        "a.avi 0 0\n": "line 1: frames must be from 1 to 1000000000, got 0$",
        "a.avi 0 ²\n": "line 1: frames must be from 1 to 1000000000, got ²$",
        "a.avi 0\nb.avi\n": "line 2: has no number for a label",
        "a.avi 0\nb.avi 0\nA.avi 0\n": "line 3: a.avi is listed twice; first in .*list.txt line 1",
    }.items():
        with pytest.raises(DatasetError, match=message):
            find_videos(text(folder / "list.txt", content))
    (folder / "list.txt").write_bytes(b"a\xff.avi\n")
    with pytest.raises(DatasetError, match="is no video, nor a list in UTF-8 text"):
        find_videos(folder / "list.txt")


# Lists of train and test


def test_lists_in_a_folder_of_their_own_take_the_root(tmp_path):
    lists, videos = tmp_path / "deep" / "down" / "lists", tmp_path / "elsewhere" / "videos"
    tree(videos, "a/1.avi", "b/2.avi", "wave/3.avi")
    for split, line in (("train", "a/1.avi"), ("test", "b/2.avi")):
        text(lists / f"{split}.txt", line + "\n")
    with pytest.raises(DatasetError, match="takes another root by --root"):
        find_videos(lists)
    assert names(find_videos(lists, root=videos)) == ["a/1.avi", "b/2.avi"]
    hmdb = lists / "testTrainMulti_7030_splits"
    text(hmdb / "wave_test_split1.txt", "3.avi 1\n")
    assert names(find_videos(hmdb, root=videos)) == ["wave/3.avi"]
    kinetics = "label,youtube_id,time_start,time_end\n"
    text(tmp_path / "tables" / "train.csv", kinetics + "x,3,0,10\n")
    for tables in (tmp_path / "tables", tmp_path / "tables" / "train.csv"):
        assert names(find_videos(tables, root=videos)) == ["wave/3.avi"]


def test_lists_whose_names_begin_with_that_of_the_set(tmp_path):
    tree(tmp_path, "videos/a/1.avi", "videos/a/2.avi", "videos/b/3.avi")  # as MMAction2 has them
    lists = [("a/1.avi 0", "b/3.avi 1"), ("b/3.avi 1", "a/2.avi 0")]
    for fold, (train, val) in enumerate(lists, 1):
        text(tmp_path / f"ucf101_train_split_{fold}_videos.txt", train)
        text(tmp_path / f"ucf101_val_split_{fold}_videos.txt", val)
    splits = [
        [("a/1.avi", "train"), ("b/3.avi", "val")],
        [("a/2.avi", "val"), ("b/3.avi", "train")],
    ]
    for fold, expected in enumerate(splits, 1):
        index = find_videos(tmp_path, fold=fold)
        assert [(e.name, e.split) for e in index.entries] == expected
        assert index.classes == ("a", "b")
    one = find_videos(tmp_path / "ucf101_train_split_2_videos.txt")
    assert [(e.name, e.split) for e in one.entries] == [("b/3.avi", "train")]
    text(tmp_path / "other_train.txt", "a/1.avi 0\n")
    text(tmp_path / "other_test.txt", "a/2.avi 0\n")
    of_either = "class folders, not by the lists of other or ucf101: name one of them"
    assert find_videos(tmp_path).layout == of_either


def test_lists_of_train_and_test_with_a_root_each(tmp_path):
    tree(tmp_path, "videos_train/a b/1.mp4", "videos_train/c/2.mp4")  # as MMAction2 has Kinetics
    tree(tmp_path, "videos_val/a b/3.mp4", "videos_val/c/4.mp4")
    text(tmp_path / "kinetics400_train_list_videos.txt", "a b/1.mp4 0\nc/2.mp4 1\n")
    val = text(tmp_path / "kinetics400_val_list_videos.txt", "a b/3.mp4 0\nc/4.mp4 1\n")
    named = [
        ("videos_train/a b/1.mp4", "train", "a b"),
        ("videos_train/c/2.mp4", "train", "c"),
        ("videos_val/a b/3.mp4", "val", "a b"),
        ("videos_val/c/4.mp4", "val", "c"),
    ]
    found = find_videos(tmp_path).entries
    assert [(e.name, e.split, e.class_name) for e in found] == named
    assert find_videos(val, split="val").entries == found[2:]


@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_splits_that_are_each_numbered_anew_keep_to_their_own_folders(kind, tmp_path):
    tree(tmp_path, *(f"{split}/{n}.mp4" for split in ("train", "val") for n in (1, 2, 3, 4)))
    part = "," if kind == "csv" else " "
    train = text(tmp_path / f"train.{kind}", f"2.mp4{part}0\n4.mp4{part}1\n")
    val = text(tmp_path / f"val.{kind}", f"1.mp4{part}1\n3.mp4{part}0\n2.mp4{part}0\n")
    wanted = {"train": ["2", "4"], "val": ["1", "3", "2"]}
    for split, listed in (("train", train), ("val", val)):
        own = [str(tmp_path / split / f"{name}.mp4") for name in wanted[split]]
        assert sorted(e.path for e in find_videos(listed).entries) == sorted(own)
        found = find_videos(tmp_path, split=split)
        assert sorted(e.path for e in found.entries) == sorted(own)
    assert labels(find_videos(tmp_path, split="val")) == [1, 0, 0]


def test_names_without_endings_are_found_in_folders_of_splits_and_from_the_top(tmp_path):
    tree(tmp_path, *(f"{split}/run/{n}.mp4" for split in ("train", "val") for n in (1, 2)))
    tree(tmp_path, "val/run/3.webm")
    text(tmp_path / "train.csv", "run/1,0\nrun/2,1\n")
    text(tmp_path / "val.csv", "run/3,1\nrun/1,0\n")
    index = find_videos(tmp_path)
    assert {(e.name, e.split) for e in index.entries} == {
        ("train/run/1.mp4", "train"), ("train/run/2.mp4", "train"),
        ("val/run/3.webm", "val"), ("val/run/1.mp4", "val"),
    }  # fmt: skip
    (tmp_path / "lists").mkdir()
    for begin in ("../", f"{tmp_path}/"):
        listed = text(tmp_path / "lists" / "l.csv", f"{begin}val/run/3,1\n{begin}train/run/1,0\n")
        found = find_videos(listed)
        assert {(Path(e.path).resolve(), e.label) for e in found.entries} == {
            ((tmp_path / "val/run/3.webm").resolve(), 1),
            ((tmp_path / "train/run/1.mp4").resolve(), 0),
        }
        text(listed, f"{begin}val/run/3,1\n{begin}train/run/4,0\n")
        with pytest.raises(DatasetError, match=r"line 2: no video .*run/4"):
            find_videos(listed)


def test_the_first_video_of_a_csv_is_no_header(tmp_path):
    """As video_001, which is one of the words for a path but for its number."""
    for name in ("video_001", "file_12", "path1", "video/0001"):
        tree(tmp_path, f"{name}.mp4", "other.mp4")
        index = find_videos(text(tmp_path / "list.csv", f"{name},0\nother,1\n"))
        assert sorted(zip(labels(index), names(index), strict=True)) == [
            (0, f"{name}.mp4"), (1, "other.mp4"),
        ]  # fmt: skip
    for head in ("Video_Path,Label", "video-path, class", "#File Name,label"):
        index = find_videos(text(tmp_path / "list.csv", f"{head}\nother,run\n"))
        assert (names(index), index.classes) == (["other.mp4"], ("run",))


def test_a_row_of_a_csv_that_ends_before_its_split_is_no_row_without_one(tmp_path):
    tree(tmp_path, "a.mp4", "b.mp4")
    listed = text(tmp_path / "l.csv", "path,label,split\na.mp4,x,train\nb.mp4,y\n")
    with pytest.raises(DatasetError, match=r"l\.csv line 3: split must be .* got ''"):
        find_videos(listed)


def test_a_number_in_a_lists_name_comes_before_its_rank(tmp_path):
    tree(tmp_path, *(f"{n}.avi" for n in range(12)))
    for n in (1, 2, 10, 11):
        text(tmp_path / f"train_split{n}.txt", f"{n}.avi\n")
        text(tmp_path / f"test_split{n}.txt", "0.avi\n")
    assert find_videos(tmp_path, fold=2, split="train").entries[0].name == "2.avi"
    assert find_videos(tmp_path, fold="split10", split="train").entries[0].name == "10.avi"
    with pytest.raises(DatasetError, match="has no fold 3; its folds: split1, split10, split11, s"):
        find_videos(tmp_path, fold=3)


def test_lists_made_on_windows_part_folders_by_backslashes(tmp_path):
    tree(tmp_path, "videos/walk/a b.avi", "videos/run/c.avi")
    for listed in ("walk\\a b.avi 1\r\nrun\\c.avi 0\r\n", "path;label\r\n.\\run\\c.avi;0\r\n"):
        index = find_videos(text(tmp_path / "list.csv", "\ufeff" + listed))
        assert names(index) == ["run/c.avi", "walk/a b.avi"][: len(index)]


def test_lists_of_jester_part_columns_by_semicolons(tmp_path):
    for number in "123":
        tree(tmp_path, f"20bn-jester-v1/{number}/00001.jpg")
    text(tmp_path / "jester-v1-train.csv", "1;Swiping Left\n3;Doing other things\n")
    text(tmp_path / "jester-v1-validation.csv", "2;Swiping Left\n")
    text(tmp_path / "jester-v1-labels.csv", "Swiping Left\nDoing other things\n")
    assert [(e.name, e.split, e.class_name) for e in find_videos(tmp_path).entries] == [
        ("1", "train", "Swiping Left"),
        ("2", "val", "Swiping Left"),
        ("3", "train", "Doing other things"),
    ]
    tree(tmp_path, "20bn-jester-v1/4/00001.jpg")
    text(tmp_path / "jester-v1-test.csv", "4\n")
    index = find_videos(tmp_path)
    assert (
        index.layout
        == "lists of train and test, without the 1 of test, whose labels are not listed"
    )
    assert Counter(e.split for e in index.entries) == {"train": 2, "val": 1}
    text(tmp_path / "jester-v1-test.csv", "4;Swiping Left\n")
    assert names(find_videos(tmp_path, split="test")) == ["4"]


def test_lists_of_train_and_test_as_csv(tmp_path):
    tree(tmp_path, "a/1.avi", "a/2.avi", "b/1.avi", "b/2.avi")
    text(tmp_path / "train.csv", "a/1.avi 0\nb/1.avi 1\n")  # as SlowFast has them
    text(tmp_path / "test.csv", "a/2.avi 0\nb/2.avi 1\n")
    named = [("a/1.avi", "train"), ("a/2.avi", "test"), ("b/1.avi", "train"), ("b/2.avi", "test")]
    assert [(e.name, e.split) for e in find_videos(tmp_path).entries] == named
    text(tmp_path / "test.csv", "clip_name,clip_path,label\n2,/a/2.avi,a\n2,/b/2.avi,b\n")
    text(tmp_path / "train.csv", "clip_name,clip_path,label\n1,/a/1.avi,a\n1,/b/1.avi,b\n")
    index = find_videos(tmp_path)
    assert [(e.name, e.split) for e in index.entries] == named
    assert [e.class_name for e in index.entries] == ["a", "a", "b", "b"]


def test_a_list_of_val_that_is_that_of_test_too_is_read_once(tmp_path):
    tree(tmp_path, "a/1.avi", "b/1.avi", "b/2.avi")  # as Kinetics for SlowFast and VideoMAE
    text(tmp_path / "train.csv", "a/1.avi 0\nb/1.avi 1\n")
    for split in ("val", "test"):
        text(tmp_path / f"{split}.csv", "b/2.avi 1\n")
    assert [(e.split, e.label) for e in find_videos(tmp_path).entries] == [
        ("train", 0),
        ("train", 1),
        ("test", 1),
    ]
    (tmp_path / "test.csv").unlink()
    (tmp_path / "val.csv").rename(tmp_path / "valid.csv")
    assert [e.split for e in find_videos(tmp_path).entries] == ["train", "train", "val"]


def test_lists_of_something_something_and_diving48(tmp_path):
    folder = tree(tmp_path / "videos", "1.webm", "2.webm")
    some = '[{"id": "2", "label": "Holding a cup", "template": "Holding [something]"}, {"id": "1"}]'
    with pytest.raises(DatasetError, match="row 2: has no class, as other lines have"):
        find_videos(text(tmp_path / "some.json", some))  # the root is found
    diving = '[{"vid_name": "1", "label": 3, "end_frame": 9}, {"vid_name": "2", "label": 0}]'
    index = find_videos(text(tmp_path / "diving.json", diving), root=folder)
    assert [(e.name, e.label) for e in index.entries] == [("1.webm", 3), ("2.webm", 0)]
    for other in ("{}", "[1]", "[[]]", "[" * 99999, '[{"url": "2.webm"}]', "x"):
        with pytest.raises(DatasetError, match=r"must be an array of objects|is empty"):
            find_videos(text(tmp_path / "other.json", other))


@pytest.mark.parametrize("begin", ["labels/", "something-something-v2-"])
def test_the_official_folder_of_something_something(tmp_path, begin):
    """Videos in one folder, lists in another or beside it, those of test without a label."""
    tree(tmp_path, *(f"20bn-something-something-v2/{number}.webm" for number in "1234"))
    cup = '{"id": "1", "label": "holding a cup", "template": "Holding [something]"}'
    pen = '{"id": "2", "label": "moving a pen up", "template": "Moving [something] up"}'
    lists = {
        "train": f"[{cup}, {pen}]",
        "validation": f"[{pen.replace('2', '4')}]",
        "test": '[{"id": "3"}]',
        "labels": '{"Holding something": "0", "Moving something up": "1"}',
    }
    for name, content in lists.items():
        text(tmp_path / f"{begin}{name}.json", content)
    index = find_videos(tmp_path)
    assert index.classes == ("Holding [something]", "Moving [something] up")
    found = [(e.name, e.label, e.split) for e in index.entries]
    assert found == [("1.webm", 0, "train"), ("2.webm", 1, "train"), ("4.webm", 1, "val")]
    assert index.layout.endswith("without the 1 of test, whose labels are not listed")
    assert names(find_videos(tmp_path / f"{begin}train.json", split="val")) == ["4.webm"]


def test_an_index_of_one_of_several_lists_is_no_other(tmp_path):
    tree(tmp_path, *(f"{number}.avi" for number in "123"))
    for name in ("1", "2"):
        text(tmp_path / f"train_{name}.txt", "1.avi wave\n")
        text(tmp_path / f"val_{name}.txt", "2.avi wave\n")
        text(tmp_path / f"test_{name}.txt", "3.avi\n")
    index = find_videos(tmp_path, fold=2)
    assert index.layout == "lists 2, without the 1 of test, whose labels are not listed"
    listed = tmp_path / "i.jsonl"
    write_index(index, listed)
    assert names(find_videos(listed, fold="2")) == names(index)
    with pytest.raises(DatasetError, match=r"i\.jsonl: was made of lists 2, .*, and fold '3' is"):
        find_videos(listed, fold="3")


def test_an_index_of_fold_0_is_no_other(tmp_path):
    tree(tmp_path, "1.avi", "2.avi")
    for fold in ("0", "2"):
        text(tmp_path / f"train{fold}.txt", "1.avi wave\n")
        text(tmp_path / f"test{fold}.txt", "2.avi wave\n")
    listed = tmp_path / "i.jsonl"
    write_index(find_videos(tmp_path, fold="0"), listed)
    assert len(find_videos(listed, fold="0")) == len(find_videos(listed, fold="00")) == 2
    with pytest.raises(DatasetError, match="was made of lists 0, and fold '2' is wanted"):
        find_videos(listed, fold="2")


def test_lists_in_annotations_say_the_splits_of_class_folders(tmp_path):
    tree(tmp_path, "videos/run/a.mp4", "videos/run/b.mp4", "videos/walk/c.mp4", "videos/walk/d.mp4")
    text(tmp_path / "annotations/train.txt", "run/a.mp4 0\nwalk/c.mp4 1\n")
    text(tmp_path / "annotations/val.txt", "run/b.mp4 0\nwalk/d.mp4 1\n")
    index = find_videos(tmp_path)
    assert index.classes == ("run", "walk")
    assert [e.split for e in index.entries] == ["train", "val", "train", "val"]
    text(tmp_path / "annotations/val.txt", "run/b.mp4 0\nwalk/gone.mp4 1\n")
    index = find_videos(tmp_path)
    assert (index.classes, index.splits) == (("run", "walk"), ())
    assert "class folders, not by its lists: " in index.layout


def test_lists_in_annotations_that_name_no_videos_are_told(tmp_path):
    tree(tmp_path, "001YG.mp4", "004QE.mp4")
    for name in ("Charades_v1_train.csv", "Charades_v1_test.csv"):
        text(tmp_path / "annotations" / name, "id,subject,scene\nAAAAA,HR43,Kitchen\n")
    index = find_videos(tmp_path)
    assert names(index) == ["001YG.mp4", "004QE.mp4"]
    assert index.layout.startswith("videos without labels, not by its lists: ")
    assert "Charades_v1_train.csv line 1: 'id,subject,scene' begins with no video" in index.layout


def test_lists_in_annotations_that_name_a_video_twice_are_not_passed_over(tmp_path):
    tree(tmp_path, "1.mp4", "2.mp4")
    for split, lines in (("train", "1.mp4 0\n2.mp4 1\n"), ("test", "2.mp4 1\n")):
        text(tmp_path / "annotations" / f"{split}.txt", lines)
    said = (
        r"train\.txt line 2: 2\.mp4 is listed twice, in test and train; first in .*test\.txt line 1"
    )
    with pytest.raises(DatasetError, match=said):
        find_videos(tmp_path)


def test_the_official_folder_of_diving48(tmp_path):
    tree(tmp_path, "rgb/a_00001.mp4", "rgb/a_00002.mp4")
    row = '[{{"vid_name": "a_0000{}", "label": {}, "start_frame": 0, "end_frame": 9}}]'
    text(tmp_path / "Diving48_V2_train.json", row.format(2, 1))
    text(tmp_path / "Diving48_V2_test.json", row.format(1, 0))
    text(tmp_path / "Diving48_vocab.json", '[["Back", "15som"], ["Inward", "25som"]]')
    found = [(e.name, e.label, e.split) for e in find_videos(tmp_path).entries]
    assert found == [("a_00001.mp4", 0, "test"), ("a_00002.mp4", 1, "train")]


def test_json_files_that_are_no_lists_are_left_alone(tmp_path):
    tree(tmp_path, "walk/a.mp4", "run/b.mp4")
    for name in ("train.json", "annotations/train.json"):
        for other in ('{"images": []}', "[]", "[3]", "x"):
            text(tmp_path / name, other)
            text(tmp_path / name.replace("train", "test"), other)
            assert find_videos(tmp_path).layout == "class folders"


def test_of_a_list_whose_videos_are_all_missing_nothing_is_indexed(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("a.mp4,0\nb.mp4,1\n")
    said = rf"list\.txt line 1: no video a\.mp4.* under {tmp_path} .* leaves such out by --missing"
    with pytest.raises(DatasetError, match=said):
        find_videos(listed, root=tmp_path)
    with pytest.raises(DatasetError, match=r"none of the 2 listed videos is there$"):
        find_videos(listed, root=tmp_path, missing="skip")
