"""Data sets as they are published, and lists of them, with the quirks they come with."""

import errno
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from pacecore import datasets
from pacecore.datasets import find_videos
from pacecore.index import DatasetError
from pacecore.layouts import read_source
from tests.trees import labels, names, text, tree

DATA = os.environ.get("PACECORE_DATA")


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
    assert index.missing == (("Punch/v_Punch_g08_c01.avi 2", "train"),)
    assert find_videos(root, missing="skip", split="train").missing == index.missing
    assert find_videos(root, missing="skip", split="test").missing == ()
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
    twice = (
        r"trainlist01\.txt line 2: Punch/v_Punch_g08_c01\.avi is listed twice, in test and train"
    )
    with pytest.raises(DatasetError, match=rf"{twice}; first in .*/testlist01\.txt line 1$"):
        find_videos(root)


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


def test_hmdb51_videos_may_have_another_ending_and_be_a_link(tmp_path):
    tree(tmp_path / "store", "wave/a.mp4", "run/b.mp4", "run/c/0001.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "hmdb51").symlink_to(tmp_path / "store")
    lists = tmp_path / "data" / "testTrainMulti_7030_splits"
    text(lists / "wave_test_split1.txt", "a.avi 1\n")
    text(lists / "run_test_split1.txt", "b.avi 2\nc.avi 1\n")
    index = find_videos(tmp_path / "data" / "hmdb51", fold="01")
    assert [(e.name, e.split) for e in index.entries] == [
        ("run/b.mp4", "test"), ("run/c", "train"), ("wave/a.mp4", "train"),
    ]  # fmt: skip


def test_ucf101_lists_beside_a_link_and_with_whole_paths(tmp_path):
    store, data = ucf101(tmp_path / "store", "lists"), tmp_path / "data"
    data.mkdir()
    (data / "UCF-101").symlink_to(store / "UCF-101")
    (store / "lists").rename(data / "ucfTrainTestlist")
    index = find_videos(data / "UCF-101")
    assert index.layout == "UCF101, split 01"
    for path in (data / "ucfTrainTestlist").glob("t*list01.txt"):
        lines = path.read_text().replace("HandStandPushups/", "HandstandPushups/").splitlines()
        path.write_text("".join(f"{data / 'UCF-101' / line}\n" for line in lines))
    again = find_videos(data)
    assert (labels(again), again.classes) == (labels(index), index.classes)


@pytest.mark.parametrize("around", ["", "UCF/", "set/UCF/"])
@pytest.mark.parametrize("form", ["{}", "videos_{}", "{}_256"])
@pytest.mark.parametrize("flat", [True, False])
def test_folders_of_splits(around, form, flat, tmp_path):
    folders = [""] if flat else ["run/", "walk/"]
    parts = {split: form.format(split) for split in ("train", "val")}
    tree(
        tmp_path,
        *(f"{around}{part}/{folder}{n}.mp4" for part in parts.values() for folder in folders
          for n in (1, 2)),
    )  # fmt: skip
    index = find_videos(tmp_path)
    assert index.classes == (() if flat else ("run", "walk"))
    assert index.splits == ("train", "val")
    for entry in index.entries:
        assert entry.name.startswith(f"{around}{parts[entry.split]}/")
        assert entry.class_name == (None if flat else entry.name.split("/")[-2])


def test_classes_with_a_splits_word_among_others_are_classes(tmp_path):
    tree(tmp_path, "test_drive/1.mp4", "train_ride/2.mp4", "walk/3.mp4")
    assert find_videos(tmp_path).classes == ("test_drive", "train_ride", "walk")
    tree(tmp_path / "two", "test_drive/1.mp4", "test_flight/2.mp4")
    assert find_videos(tmp_path / "two").classes == ("test_drive", "test_flight")


def test_sets_that_share_a_folder_keep_to_their_own_lists(tmp_path):
    tree(tmp_path, "UCF-101/Punch/v_Punch_g08_c01.avi", "UCF-101/Dive/v_Dive_g01_c01.avi")
    tree(tmp_path, "hmdb51/wave/a.avi", "hmdb51/run/b.avi", "mine/run/c.avi", "mine/k/d.avi")
    text(tmp_path / "ucfTrainTestlist/trainlist01.txt", "Punch/v_Punch_g08_c01.avi 1\n")
    text(tmp_path / "ucfTrainTestlist/testlist01.txt", "Dive/v_Dive_g01_c01.avi\n")
    text(tmp_path / "ucfTrainTestlist/classInd.txt", "1 Punch\n2 Dive\n")
    text(tmp_path / "testTrainMulti_7030_splits/wave_test_split1.txt", "a.avi 1\n")
    assert find_videos(tmp_path / "UCF-101").layout == "UCF101, split 01"
    assert find_videos(tmp_path / "hmdb51").layout == "HMDB51, split 1"
    assert find_videos(tmp_path / "mine").layout == "class folders"


def test_a_folder_that_may_not_be_looked_at_ends_no_search(tmp_path, monkeypatch):
    folder = tree(tmp_path / "disk", "a/1.avi", "b/2.avi", "lost+found/3.avi")

    def refused(function, what):
        def call(path, *args, **keywords):
            if what in str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **keywords)

        return call

    monkeypatch.setattr(os, "stat", refused(os.stat, "lost+found/"))
    for listing in ("listdir", "scandir"):
        monkeypatch.setattr(os, listing, refused(getattr(os, listing), "lost+found"))
    assert names(find_videos(folder)) == ["a/1.avi", "b/2.avi"]
    with pytest.raises(DatasetError, match="begins with no video"):
        find_videos(text(folder / "list.txt", "3 0\n"))


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
    assert index.missing == (("gone_000001_000002", "train"),)
    assert find_videos(tmp_path, split="val").missing == ()
    (tmp_path / "notes.csv").write_bytes("Mühe,Größe\n1,2\n".encode("latin-1"))  # beside them
    assert len(find_videos(tmp_path)) == 3
    assert len(find_videos(tmp_path / "val.csv")) == 1
    for table in ("train.csv", "val.csv"):  # as its downloaders leave them
        text(tmp_path / "annotations" / table, (tmp_path / table).read_text())
    for source in ("annotations", "annotations/val.csv"):
        expected = [e for e in index.entries if e.split == "val" or source == "annotations"]
        assert list(find_videos(tmp_path / source).entries) == expected
    flat = tree(tmp_path / "flat", "train/yyy_000005_000015.mp4", "train/aB-_1.mp4")
    text(flat / "annotations" / "train.csv", (tmp_path / "train.csv").read_text())
    assert labels(find_videos(flat)) == [1, 0]
    for start in ("one", "inf"):
        text(tmp_path / "val.csv", f"{head}abseiling,x,{start},11,val\n")
        with pytest.raises(DatasetError, match=r"val\.csv line 2: time_start and time_end"):
            find_videos(tmp_path)
    text(tmp_path / "val.csv", f"{head}abseiling,x,1,11,holdout\n")
    with pytest.raises(DatasetError, match="split must be train, val or test, got 'holdout'"):
        find_videos(tmp_path)


def test_kinetics_has_the_classes_of_its_tables_whichever_videos_are_there(tmp_path):
    """Or parts of it would have other numbers for the same classes."""
    tree(tmp_path, "k_000001_000011.mp4")
    head = "label,youtube_id,time_start,time_end,split\n"
    text(tmp_path / "train.csv", f"{head}zumba,k,1,11,train\narchery,gone,1,11,train\n")
    index = find_videos(tmp_path)
    assert index.classes == ("archery", "zumba")
    assert labels(index) == [1]


@pytest.mark.parametrize(
    "head", ["youtube_id,time_start,time_end", "label,youtube_id,time_start,time_end"]
)
def test_kinetics_without_the_labels_of_test_is_told_as_other_sets_are(head, tmp_path):
    tree(tmp_path, "train/a.mp4", "val/b.mp4", "test/c.mp4", "test/d.mp4")
    labelled = "label,youtube_id,time_start,time_end,split\n"
    text(tmp_path / "train.csv", f"{labelled}archery,a,1,11,train\nzumba,gone,1,11,train\n")
    rows = "".join(f"{',' * head.startswith('label')}{name},1,11,test\n" for name in "cde")
    text(tmp_path / "test.csv", f"{head},split\n{rows}")
    for table in (tmp_path, tmp_path / "test.csv"):  # with no others to measure on they are kept
        index = find_videos(table, split="test")
        assert (names(index), labels(index)) == (["test/c.mp4", "test/d.mp4"], [None, None])
    text(tmp_path / "val.csv", f"{labelled}zumba,b,1,11,val\n")
    index = find_videos(tmp_path)
    assert index.layout == "Kinetics, without the 2 of test, whose labels are not listed"
    assert (index.splits, index.missing) == (("train", "val"), (("gone_000001_000011", "train"),))
    assert index.classes == ("archery", "zumba")
    for name in "cd":
        (tmp_path / "test" / f"{name}.mp4").unlink()
    assert find_videos(tmp_path).layout == "Kinetics"


def test_a_table_with_columns_of_its_own_beside_those_of_kinetics_is_a_list(tmp_path):
    tree(tmp_path, "a.mp4", "b.mp4")
    head = "path,class,youtube_id,time_start,time_end\n"
    index = find_videos(text(tmp_path / "l.csv", f"{head}a.mp4,run,x,1,2\nb.mp4,walk,y,1,2\n"))
    assert (names(index), index.classes) == (["a.mp4", "b.mp4"], ("run", "walk"))


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


def test_finding_videos_for_long_is_told_by_one_rank(tmp_path, monkeypatch, capfd):
    others = set(threading.enumerate())

    def read_late(*arguments):
        """After what tells it has had its time."""
        for telling in set(threading.enumerate()) - others:
            telling.join()
        return read_source(*arguments)

    (tmp_path / "a.avi").touch()
    monkeypatch.setattr(datasets, "_LONG_SECONDS", 0.0)
    monkeypatch.setattr(datasets, "read_source", read_late)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        find_videos(tmp_path)
    assert capfd.readouterr().err == f"finding the videos of {tmp_path}\n"
