"""Layouts found by themselves, with the quirks they come with; every broken rule named."""

import os
from collections import Counter
from pathlib import Path

import pytest

from pacecore.datasets import (
    DatasetError,
    find_videos,
    probe_all,
    read_index,
    write_index,
)
from tests.video_files import write_pictures, write_video

DATA = os.environ.get("PACECORE_DATA")


def tree(root: Path, *names: str) -> Path:
    """Empty files; layouts are read without opening videos."""
    for folder in {os.path.dirname(root / name) for name in names}:
        os.makedirs(folder, exist_ok=True)
    for name in names:
        with open(root / name, "wb"):
            pass
    return root


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def names(index) -> list[str]:
    return [entry.name for entry in index.entries]


def labels(index) -> list:
    return [entry.label for entry in index.entries]


# Folders


def test_class_folders(tmp_path):
    tree(tmp_path, "walk/b.avi", "run fast/2.mp4", "walk/a.MKV", "run fast/sub/1.webm")
    tree(tmp_path, ".hidden/x.avi", "__MACOSX/walk/a.avi", "notes/readme.txt", "walk/.a.avi")
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


def test_a_folder_around_everything_is_no_class(tmp_path):
    tree(tmp_path, "set/walk/a.avi", "set/run/b.avi")
    assert find_videos(tmp_path).classes == ("run", "walk")


def test_mixed_depth_has_no_labels(tmp_path):
    tree(tmp_path, "a.avi", "walk/b.avi")
    assert labels(find_videos(tmp_path)) == [None, None]


def test_split_folders(tmp_path):
    tree(tmp_path, "train/walk/a.avi", "train/run/b.avi", "Validation/run/c.avi", "test/walk/d.avi")
    index = find_videos(tmp_path)
    assert index.splits == ("train", "val", "test")
    assert [(e.name, e.class_name) for e in find_videos(tmp_path, split="val").entries] == [
        ("Validation/run/c.avi", "run")
    ]
    assert index.classes == ("run", "walk")


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


def test_one_video_file(tmp_path):
    index = find_videos(tree(tmp_path, "a.avi") / "a.avi")
    assert names(index) == ["a.avi"]


# UCF101


def ucf101(root: Path, lists: str) -> Path:
    """Two classes, CRLF in classInd.txt, the class whose folder and files differ in case."""
    tree(
        root,
        "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi",
        "UCF-101/Punch/v_Punch_g01_c01.avi",
        "UCF-101/Punch/v_Punch_g08_c01.avi",
        "UCF-101/Stray/readme.txt",
        "UCF-101/Unlisted/v_Unlisted_g01_c01.avi",
    )
    text(root / lists / "classInd.txt", "1 HandstandPushups\r\n2 Punch\r\n\r\n")
    for fold, (train, test) in {1: ("08", "01"), 2: ("01", "08"), 3: ("01", "08")}.items():
        text(
            root / lists / f"trainlist0{fold}.txt",
            f"HandStandPushups/v_HandStandPushups_g{train}_c01.avi 1\r\n"
            f"Punch/v_Punch_g{train}_c01.avi 2\r\n",
        )
        text(
            root / lists / f"testlist0{fold}.txt",
            f"HandStandPushups/v_HandStandPushups_g{test}_c01.avi\nPunch/v_Punch_g{test}_c01.avi\n",
        )
    return root


@pytest.mark.parametrize("lists", ["ucfTrainTestlist", "UCF-101/ucfTrainTestlist"])
@pytest.mark.parametrize("source", [".", "UCF-101", "lists", "trainlist02.txt"])
def test_ucf101_lists_beside_and_inside(lists, source, tmp_path):
    ucf101(tmp_path, lists)
    path = {"lists": tmp_path / lists, "trainlist02.txt": tmp_path / lists / source}
    index = find_videos(path.get(source, tmp_path / source), split="train", fold=2)
    assert names(index) == [
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "Punch/v_Punch_g01_c01.avi",
    ]
    assert labels(index) == [0, 1]
    assert index.classes == ("HandstandPushups", "Punch")
    assert Path(index.root) == tmp_path / "UCF-101"
    test = find_videos(path.get(source, tmp_path / source), split="test", fold=2)
    assert {e.name[-10:-8] for e in test.entries} == {"08"}


def test_ucf101_folds_and_whole(tmp_path):
    root = ucf101(tmp_path, "ucfTrainTestlist")
    assert Counter(e.split for e in find_videos(root).entries) == {"train": 2, "test": 2}
    for fold in (4, "²"):
        with pytest.raises(DatasetError, match=f"has no fold '?{fold}'?; its folds: 01, 02, 03"):
            find_videos(root, fold=fold)


def test_ucf101_errors(tmp_path):
    root = ucf101(tmp_path, "ucfTrainTestlist")
    lists = root / "ucfTrainTestlist"
    (root / "UCF-101/Punch/v_Punch_g08_c01.avi").unlink()
    with pytest.raises(DatasetError, match=r"trainlist01\.txt line 2: no video Punch/v_Punch_g08"):
        find_videos(root)
    index = find_videos(root, missing="skip")
    assert len(index) == 3
    assert index.missing == ("Punch/v_Punch_g08_c01.avi 2",)
    wrong = "HandStandPushups/v_HandStandPushups_g08_c01.avi 2\n"
    text(lists / "trainlist01.txt", wrong)
    with pytest.raises(DatasetError, match="label 2 is not that of class HandstandPushups"):
        find_videos(root)
    text(lists / "trainlist01.txt", "Unlisted/v_Unlisted_g01_c01.avi 1\n")
    with pytest.raises(DatasetError, match="folder Unlisted is no class"):
        find_videos(root)
    text(lists / "classInd.txt", "1 HandstandPushups\n3 Punch\n")
    with pytest.raises(DatasetError, match=r'classInd\.txt line 2: must be "2 ClassName"'):
        find_videos(root)


def test_a_video_in_train_and_test_is_an_error(tmp_path):
    root = ucf101(tmp_path, "ucfTrainTestlist")
    text(root / "ucfTrainTestlist" / "testlist01.txt", "Punch/v_Punch_g08_c01.avi\n")
    with pytest.raises(DatasetError, match=r"g08_c01\.avi is listed twice \(in test and train\)"):
        find_videos(root)


# Lists


def test_lists_of_a_set_with_paths_relative_to_its_root(tmp_path):
    tree(tmp_path, "hug/a.avi", "hug/b.avi", "kick/c.avi", "kick/d.avi")
    for name, (train, test) in {"byseq": ("ac", "bd"), "byset": ("bd", "ac")}.items():
        for split, letters in (("train", train), ("test", test)):
            lines = [f"{'hug' if letter in 'ab' else 'kick'}/{letter}.avi" for letter in letters]
            text(tmp_path / "splits" / f"{split}_{name}.txt", "\n".join(lines))
    assert names(find_videos(tmp_path, split="train")) == ["hug/a.avi", "kick/c.avi"]
    assert names(find_videos(tmp_path, split="train", fold=2)) == ["hug/b.avi", "kick/d.avi"]
    index = find_videos(tmp_path, split="test", fold="byset")
    assert names(index) == ["hug/a.avi", "kick/c.avi"]
    assert labels(index) == [0, 1]
    alone = find_videos(tmp_path / "splits" / "test_byset.txt")
    assert (names(alone), alone.classes) == (["hug/a.avi", "kick/c.avi"], ("hug", "kick"))
    other = find_videos(tmp_path / "splits" / "test_byset.txt", split="train")
    assert names(other) == ["hug/b.avi", "kick/d.avi"]


@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_path_label_lists_count_from_0_or_1(base, separator, tmp_path):
    tree(tmp_path, "a b.avi", "c.avi", "d, e.avi")
    lines = [f"{n}{separator}{k + base}" for k, n in enumerate(("a b.avi", "c.avi", "d, e.avi"))]
    listed = text(tmp_path / "list.csv", "\ufeff" + "\r\n".join(lines))
    index = find_videos(listed)
    assert names(index) == ["a b.avi", "c.avi", "d, e.avi"]
    assert labels(index) == [0, 1, 2]


def test_a_list_without_the_first_class_names_the_others_as_listed(tmp_path):
    """A test list of its own: by their names its classes are matched with those of training."""
    tree(tmp_path, *(f"{name}.avi" for name in "abcde"))
    whole = text(tmp_path / "whole.csv", "a.avi 0\nb.avi 1\nc.avi 2\n")
    rest = text(tmp_path / "rest.csv", "d.avi 1\ne.avi 2\n")
    assert find_videos(whole).classes == ("0", "1", "2")
    index = find_videos(rest)
    assert [index.classes[label] for label in labels(index)] == ["1", "2"]


def test_path_class_list_and_path_only_list(tmp_path):
    tree(tmp_path, "x/a.avi", "x/b c.avi", "y/d.avi")
    listed = text(tmp_path / "list.txt", "x/a.avi jump\nx/b c.avi sit\ny/d.avi jump\n")
    index = find_videos(listed)
    assert (index.classes, labels(index)) == (("jump", "sit"), [0, 1, 0])
    listed = text(tmp_path / "list.txt", "# mine\nx/a.avi\n\nx/b c.avi\ny/d.avi\n")
    index = find_videos(listed)
    assert (index.classes, labels(index)) == (("x", "y"), [0, 0, 1])
    inside = text(tmp_path / "x" / "list.txt", f"a.avi\n{tmp_path}/y/d.avi\n")
    assert labels(find_videos(inside)) == [None, None] or len(find_videos(inside)) == 2


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


def test_lists_leave_the_ending_out(tmp_path):
    tree(tmp_path, "walk/a.avi", "walk/b.avi", "run/c.avi")
    listed = text(tmp_path / "l.txt", "walk/a 1\nwalk/b 1\nrun/c 0\n")
    assert names(find_videos(listed)) == ["run/c.avi", "walk/a.avi", "walk/b.avi"]


def test_list_errors_name_file_line_rule_and_value(tmp_path):
    folder = tree(tmp_path / "set" / "lists", "a.avi", "b.avi")  # two folders up a root is sought
    for content, message in {
        "": "is empty",
        "none/x.avi 1\n": "line 1: .*begins with no video under",
        "a.avi 0\nc.avi 1\n": "line 2: no video c.avi 1 under",
        "a.avi 0\nb.avi -1\n": "line 2: label must be from 0 to 1000000, got -1$",
        "a.avi 0\nb.avi 1000001\n": "line 2: label must be from 0 to 1000000, got 1000001$",
        f"a.avi 0\nb.avi {'9' * 5000}\n": "line 2: label must be from 0 to 1000000, got 9999",
        "a.avi 0 x\n": "line 1: frames must be from 1 to 1000000000, got x$",
        "a.avi 0 0\n": "line 1: frames must be from 1 to 1000000000, got 0$",
        "a.avi 0 ²\n": "line 1: frames must be from 1 to 1000000000, got ²$",
        "a.avi 0\nb.avi\n": "line 2: has no number for a label",
        "a.avi 0\na.avi 0\n": "a.avi is listed twice",
    }.items():
        with pytest.raises(DatasetError, match=message):
            find_videos(text(folder / "list.txt", content))
    (folder / "list.txt").write_bytes(b"a\xff.avi\n")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        find_videos(folder / "list.txt")


# HMDB51 and Kinetics


@pytest.mark.parametrize("inside", [True, False])
def test_hmdb51(inside, tmp_path):
    root = tmp_path / "hmdb51"
    odd = "Pirates_(1)_#wave;_f_cm_np1_fr_med_0.avi"
    tree(root, f"wave/{odd}", "wave/b.avi", "wave/c.avi", "shake_hands/b.avi")
    lists = (root if inside else tmp_path) / "testTrainMulti_7030_splits"
    for fold in (1, 2, 3):
        text(lists / f"wave_test_split{fold}.txt", f"{odd} 1 \nb.avi 2 \nc.avi 0 \n")
        text(lists / f"shake_hands_test_split{fold}.txt", "b.avi 1 \n")
    index = find_videos(root, fold=3)
    assert index.classes == ("shake_hands", "wave")
    assert [(e.name, e.label, e.split) for e in index.entries] == [
        ("shake_hands/b.avi", 0, "train"),
        (f"wave/{odd}", 1, "train"),
        ("wave/b.avi", 1, "test"),
    ]
    with pytest.raises(DatasetError, match="has no fold 4"):
        find_videos(root, fold=4)
    text(lists / "wave_test_split1.txt", "b.avi 3\n")
    with pytest.raises(DatasetError, match='line 1: must be "video 0", 1 or 2'):
        find_videos(root)
    text(lists / "wave_test_split1.txt", "gone.avi 1\n")
    with pytest.raises(DatasetError, match=r"line 1: no video wave/gone\.avi"):
        find_videos(root)


def test_kinetics(tmp_path):
    tree(
        tmp_path, "train/riding a bike/aB-_1_000010_000020.mp4", "val/abseiling/x_000001_000011.mp4"
    )
    tree(tmp_path, "train/abseiling/yyy.mp4")
    head = "label,youtube_id,time_start,time_end,split\n"
    text(
        tmp_path / "train.csv",
        f'{head}"riding a bike",aB-_1,10,20,train\nabseiling,yyy,5,15,train\n'
        "abseiling,gone,1,2,train\n",
    )
    text(tmp_path / "val.csv", f"{head}abseiling,x,1,11,val\n")
    index = find_videos(tmp_path)
    assert index.classes == ("abseiling", "riding a bike")
    assert [(e.name.split("/")[-1], e.class_name, e.split) for e in index.entries] == [
        ("yyy.mp4", "abseiling", "train"),
        ("aB-_1_000010_000020.mp4", "riding a bike", "train"),
        ("x_000001_000011.mp4", "abseiling", "val"),
    ]
    assert index.missing == ("gone_000001_000002",)
    (tmp_path / "notes.csv").write_bytes("Mühe,Größe\n1,2\n".encode("latin-1"))  # beside them
    assert len(find_videos(tmp_path)) == 3
    assert len(find_videos(tmp_path / "val.csv")) == 1
    for start in ("one", "inf"):
        text(tmp_path / "val.csv", f"{head}abseiling,x,{start},11,val\n")
        with pytest.raises(DatasetError, match=r"val\.csv line 2: time_start and time_end"):
            find_videos(tmp_path)
    text(tmp_path / "val.csv", f"{head}abseiling,x,1,11,holdout\n")
    with pytest.raises(DatasetError, match="split must be train, val or test, got 'holdout'"):
        find_videos(tmp_path)


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
        "": "without a usable video",
    }.items():
        with pytest.raises(DatasetError, match=message):
            find_videos(text(tmp_path / "broken.jsonl", content))


real = pytest.mark.skipif(not DATA, reason="PACECORE_DATA names no folder of real videos")


@real
def test_the_official_lists_give_the_published_totals(tmp_path):
    """All of UCF101 and HMDB51 as empty files: 9,537 / 3,783 and 3,570 / 1,530."""
    lists = Path(DATA) / "lists"
    for listed in (lists / "ucfTrainTestlist").glob("t*list01.txt"):
        tree(tmp_path / "UCF-101", *(line.split()[0] for line in listed.read_text().splitlines()))
    (tmp_path / "ucfTrainTestlist").symlink_to(lists / "ucfTrainTestlist")
    for fold, expected in {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}.items():
        index = find_videos(tmp_path, fold=fold)
        counts = Counter(e.split for e in index.entries)
        assert (counts["train"], counts["test"], len(index.classes)) == (*expected, 101)
    hmdb = lists / "testTrainMulti_7030_splits"
    for listed in hmdb.glob("*_test_split1.txt"):
        folder = tmp_path / "hmdb" / listed.name.removesuffix("_test_split1.txt")
        tree(folder, *(line.split()[0] for line in listed.read_text().splitlines()))
    (tmp_path / "hmdb" / hmdb.name).symlink_to(hmdb)
    counts = Counter(e.split for e in find_videos(tmp_path / "hmdb").entries)
    assert counts == {"train": 3570, "test": 1530}


@real
def test_real_sets():
    ucf = find_videos(Path(DATA) / "ucf101", split="train")
    assert (len(ucf), ucf.classes) == (108, ("BabyCrawling", "Punch", "PushUps"))
    assert len(find_videos(Path(DATA) / "ucf101" / "UCF-101", split="test", fold=3)) == 42
    assert len(find_videos(Path(DATA) / "ut_interaction", split="train")) == 84
    assert len(find_videos(Path(DATA) / "ut_interaction", split="test", fold="byset")) == 60
    assert len(find_videos(Path(DATA) / "clips")) == 24
