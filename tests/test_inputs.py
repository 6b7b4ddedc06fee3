"""The videos of a run: what is said of them, and how often an epoch shows them."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pacecore import inputs, protocol
from pacecore.beginning import begin
from pacecore.cli import retrieve as retrieve_verb
from pacecore.cli import test as test_verb
from pacecore.config import MeasureOptions, TrainOptions, from_mapping
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.evaluate import PaceResult
from pacecore.finetune import pretraining_of
from pacecore.index import VideoEntry, VideoIndex, write_index
from pacecore.inputs import identity_of, learned_from, open_inputs, resident_frames, worker_count
from pacecore.protocol import decoder_count, open_measured
from pacecore.source import Subset
from pacecore.store import pack
from pacecore.train import PaceTask
from pacecore.trained import load_trained
from pacecore.video import VideoError
from tests.ranks import run_ranks
from tests.tiny import finetuned, pretrained, tiny_set, write_tiny
from tests.video_files import stacked

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
    resolved, _, _ = begin("pretrain", options, torch.device("cpu"), resume=False, fall_back=False)
    assert resolved.repeat == 1
    (tmp_path / "val.csv").write_text(f"{HEAD}waving,b,0,10,val\n")
    (tmp_path / "test.csv").write_text(f"{HEAD},c,0,10,test\n")
    for number, name in enumerate("bc"):
        write_tiny(tmp_path / f"{name}.mp4", 0, number, 20)
    data = open_inputs(options)
    assert "Kinetics, without the 1 of test, whose labels are not listed in" in data.words
    assert (data.repeat, data.held_out.path(0).name) == (1, "b.mp4")


def test_clips_of_kinetics_are_known_by_their_names_too(tmp_path):
    """As its lists and its folders without its tables have them."""
    names = ("a-b_c-d_e-f_000012_000022", "-----------_000000_000010")
    for number, name in enumerate(names):
        write_tiny(tmp_path / "train" / "waving" / f"{name}.mp4", 0, number, 20)
    assert open_inputs(options_of(tmp_path)).repeat == 1
    write_tiny(tmp_path / "train" / "waving" / "mine_000012_000022.mp4", 0, 2, 20)
    assert open_inputs(options_of(tmp_path)).repeat == 10


@pytest.mark.parametrize("kept", ["list", "index", "store"])
def test_of_a_test_split_alone_all_is_held_out_and_nothing_to_train_on(tmp_path, kept):
    for number, name in enumerate("abc"):
        write_tiny(tmp_path / "set" / name / "1.mp4", 0, number, 20)
    data = tmp_path / "list.csv"
    data.write_text("path,label,split\n" + "".join(f"set/{n}/1.mp4,{n},test\n" for n in "abc"))
    index, _ = probe_all(find_videos(data))
    if kept == "index":
        data = tmp_path / "index.jsonl"
        write_index(index, data)
    elif kept == "store":
        pack(index, tmp_path / "store", (24, 32), workers=1)
        data = tmp_path / "store"
    options = TrainOptions(data=str(data))
    with pytest.raises(PacecoreError, match=rf"^{data}: has no split 'train'; its splits: test$"):
        open_inputs(options)
    for held_out in ("auto", str(data)):
        found = open_inputs(replace(options, held_out=held_out), trains=False)
        assert (len(found.train), len(found.held_out)) == (0, 3)
        assert found.words.startswith("no training videos, ")
        assert "; 3 held out" in found.words


def test_other_videos_are_shown_ten_times_unless_told(tmp_path):
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    for wish, given in ((0, 10), (3, 3)):
        options = from_mapping(TrainOptions, {**vars(options_of(tmp_path)), "repeat": wish})
        resolved, data, _ = begin(
            "pretrain", options, torch.device("cpu"), resume=False, fall_back=False
        )
        assert "listed but not there" not in data.words
        assert resolved.repeat == given


@pytest.mark.parametrize("split", ["test", "val"])
def test_of_videos_to_measure_on_their_training_split_is_none(split, tmp_path):
    for number, name in enumerate(("train/a.mp4", f"{split}/b.mp4")):
        (tmp_path / name).parent.mkdir()
        write_tiny(tmp_path / name, 0, number, 20)
    options = replace(options_of(tmp_path), held_out=str(tmp_path))
    assert [open_inputs(options).held_out.path(0).name] == ["b.mp4"]
    pack(probe_all(find_videos(tmp_path))[0], tmp_path / "store", (16, 16), workers=1)
    found = open_inputs(replace(options, held_out=str(tmp_path / "store"))).held_out
    assert [found.path(0).name] == ["b.mp4"]
    assert found.decode(0, np.array([3])).table[0, 3:5].tolist() == [16, 16]
    assert "1 training videos" in open_inputs(options).words
    assert open_inputs(options).words.endswith("; 1 held out")


def test_of_a_set_with_val_and_test_the_test_split_is_held_out(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        write_tiny(tmp_path / split / f"{split}.mp4", 0, number, 20)
    found = open_inputs(options_of(tmp_path))
    for source, name in ((found.train, "train.mp4"), (found.held_out, "test.mp4")):
        assert [source.path(video).name for video in range(len(source))] == [name]
    assert "; 1 held out; 1 of val are not used" in found.words


def test_videos_of_the_same_names_and_other_lengths_are_others(tmp_path):
    """A run does not go on with them."""
    identities = []
    for frames in (20, 20, 21):
        write_tiny(tmp_path / "a.mp4", 0, 0, frames)
        identities.append(open_inputs(options_of(tmp_path)).identity)
    assert identities[0] == identities[1] != identities[2]


def test_videos_are_the_same_wherever_their_folder_is(tmp_path):
    one = [(tmp_path / "a" / name, 20) for name in ("Red/1.mp4", "Blue/1.mp4")]
    (tmp_path / "b").symlink_to(tmp_path / "a")
    moved = [(tmp_path / place / "Red/1.mp4", 20) for place in ("b", "c/a")]
    alike = [one, one[::-1], [(tmp_path / "c" / path.relative_to(tmp_path), 20) for path, _ in one]]
    alike.append([moved[0], one[1]])
    others = [one[:1], one[1:], [one[0], (one[1][0], 21)], [moved[1], one[1]]]
    assert len(set(map(identity_of, alike))) == 1
    assert len(set(map(identity_of, [one, *others]))) == 5
    assert identity_of(one[:1], one[1:]) != identity_of(one)  # of a gallery and of queries


def test_a_tenth_that_is_held_out_for_want_of_a_split_is_told(tmp_path):
    for number in range(10):
        write_tiny(tmp_path / f"{number}.mp4", 0, number, 20)
    (tmp_path / "train.txt").write_text("".join(f"{number}.mp4 0\n" for number in range(10)))
    for data in (tmp_path, tmp_path / "train.txt"):
        words = open_inputs(replace(options_of(tmp_path), data=str(data))).words
        assert "; 1 held out, one of each 10 as there is no test split; --held-out names" in words


@pytest.mark.parametrize(
    ("classes", "held"),
    [
        ("A" * 9 + "B" * 11, [9, 19]),  # the tenths, as of videos without labels
        ("A" * 10 + "B" * 9 + "C", [9, 18]),
        ("A" * 9 + "B" + "A" * 9 + "B", [9, 18]),
        ("AABCDEFGHIJ", [1]),
        ("ABCDEFGHIJKL", []),
    ],
)
def test_the_tenth_that_is_held_out_leaves_each_class_a_video_to_train_on(classes, held):
    entries = tuple(VideoEntry(f"{n}", f"{n}", ord(one), one) for n, one in enumerate(classes))
    kept, apart = inputs._split(VideoIndex("", "class folders", entries))
    assert [int(entry.name) for entry in (apart.entries if apart else ())] == held
    assert {entry.class_name for entry in kept.entries} == set(classes)
    assert len(kept) + len(held) == len(classes)


def test_the_recording_that_is_held_out_is_not_all_that_its_class_has():
    names = [f"v_Wave_g{group:02}_c{clip:02}" for group in range(1, 10) for clip in (1, 2)]
    names += ["v_Yawn_g01_c01", "v_Yawn_g01_c02"]
    entries = tuple(VideoEntry(name, name, int("Yawn" in name)) for name in names)
    apart = inputs._split(VideoIndex("", "class folders", entries))[1]
    assert [entry.name for entry in apart.entries] == ["v_Wave_g09_c01", "v_Wave_g09_c02"]


@pytest.mark.parametrize(("groups", "held"), [(11, {"g10"}), (4, {"g04"}), (1, set())])
def test_clips_of_one_recording_are_held_out_together(tmp_path, groups, held):
    for number in range(12):
        group = 1 + number * groups // 12
        write_tiny(tmp_path / f"v_Wave_g{group:02}_c{number:02}.mp4", 0, number, 20)
    found = open_inputs(options_of(tmp_path))
    sides = [
        {source.path(video).name.split("_")[2] for video in range(len(source))}
        for source in (found.train, found.held_out)
        if source
    ]
    every = {f"g{group:02}" for group in range(1, groups + 1)}
    assert sides == ([every - held, held] if held else [every])
    by_recordings = (
        "; 3 held out, by recordings, which their names tell (_gNN_), as there is no test split"
    )
    assert (by_recordings in found.words) == (groups == 4)


def test_what_a_network_learned_from_is_told_where_it_is_tested_on_it(tmp_path):
    videos = tiny_set(tmp_path / "set", train=1, test=1)
    (tmp_path / "link").symlink_to(videos / "train")
    words = [str(pretrained(tmp_path / "last.pt", data=str(videos))), "--clips", "1"]
    words += ["--workers", "0", "--device", "cpu", "--out", str(tmp_path), "--held-out"]
    for place, count in ((videos, 0), (tmp_path / "link", 3)):
        shown = CliRunner().invoke(test_verb.test, [*words, str(place)], catch_exceptions=False)
        assert json.loads((tmp_path / "test.json").read_text())["videos_learned_from"] == count
        told = "warning: 3 of the held-out videos are among those that the checkpoint was trained"
        assert (told in shown.output) == (count == 3)
        found = CliRunner().invoke(retrieve_verb.retrieve, [*words, str(place)])
        result = json.loads((tmp_path / "retrieve-p5-video.json").read_text())
        assert result["videos_learned_from"] == count
        told = "warning: 3 of the query videos are among those that the checkpoint was trained"
        assert (told in found.output) == (count == 3)


def test_of_a_set_without_splits_it_learned_from_all_but_every_tenth(tmp_path):
    for number in range(10):
        write_tiny(tmp_path / "set" / f"{number}.mp4", 0, number, 9)
    options = options_of(tmp_path / "set")
    data = open_inputs(options)
    by, of_all = asdict(options), asdict(replace(options, held_out="none"))
    assert [learned_from([by], source) for source in (data.train, data.held_out)] == [9, 0]
    assert learned_from([of_all], data.held_out) == 1
    assert learned_from([by, of_all], data.held_out) == 1  # by the first or by the second
    assert learned_from([{}], data.train) == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    assert learned_from([by], data.train) == 0


def test_a_video_that_cannot_be_read_in_the_place_of_the_held_out_one_ends_no_training(tmp_path):
    for number in range(9):
        write_tiny(tmp_path / "set" / f"{number}.mp4", 0, number, 9)
    (tmp_path / "set" / "9.mp4").write_bytes(b"no video")  # where one of each ten is held out
    data = open_inputs(options_of(tmp_path / "set"))
    assert (len(data.train), data.held_out, len(data.unreadable)) == (9, None, 1)
    assert "; none held out; 1 unreadable: " in data.words


def two_folds(folder):
    """Two videos, each of which the other's fold is tested on."""
    for fold, (train, test) in {"01": "ab", "02": "ba"}.items():
        (folder / f"trainlist{fold}.txt").write_text(f"{train}.mp4\n")
        (folder / f"testlist{fold}.txt").write_text(f"{test}.mp4\n")
    for number, name in enumerate("ab"):
        write_tiny(folder / f"{name}.mp4", 0, number, 20)


def test_what_the_pretraining_before_learned_from_counts_too(tmp_path):
    two_folds(tmp_path)
    one, two = (replace(options_of(tmp_path), fold=fold) for fold in "12")
    trained = load_trained(finetuned(tmp_path / "last.pt", data=str(tmp_path), fold="2"))
    held_out = open_inputs(two).held_out
    assert learned_from(trained.trainings(), held_out) == 0
    before = {"kind": "pretrain", **asdict(one)}
    assert learned_from(replace(trained, pretrained=before).trainings(), held_out) == 1
    # Of weights from elsewhere nothing is known.
    other = {**before, "kind": "weights"}
    assert learned_from(replace(trained, pretrained=other).trainings(), held_out) == 0
    first = load_trained(finetuned(tmp_path / "first.pt", data=str(tmp_path)))
    of_both = replace(trained, pretrained=pretraining_of(first))
    assert learned_from(of_both.trainings(), held_out) == 1


def test_the_folder_it_was_trained_on_with_other_videos_is_told_by_name_too(tmp_path, monkeypatch):
    videos, said = tiny_set(tmp_path / "set", train=1, test=1), []
    other = tiny_set(tmp_path / "other", train=1, test=1)
    trained = load_trained(pretrained(tmp_path / "last.pt", data=str(videos)))
    monkeypatch.setattr(protocol, "tell", said.append)
    for place in (videos, other):
        options = from_mapping(MeasureOptions, {"data": str(place), "device": "cpu", "workers": 0})
        open_measured(replace(trained, identity="of others"), options)
    assert ["was trained on other videos than these" in words for words in said] == [True]


def test_a_store_and_an_index_hold_one_fold(tmp_path):
    two_folds(tmp_path)
    counted, _ = probe_all(find_videos(tmp_path, fold=2))
    write_index(counted, tmp_path / "index.jsonl")
    pack(counted, tmp_path / "store", (24, 32), workers=1)
    stored = open_inputs(TrainOptions(data=str(tmp_path / "store"), resize=(24, 32)))
    assert stored.words.endswith("; from the frame store of 24 x 32 pixels")
    stored = open_inputs(TrainOptions(data=str(tmp_path / "store"), resize=(64, 86)))
    assert stored.words.endswith(" 24 x 32 pixels, which are resized once more, to 64 x 86")
    for data in (tmp_path / "index.jsonl", tmp_path / "store"):
        for fold in ("1", "2", "02"):
            found = open_inputs(TrainOptions(data=str(data), fold=fold))
            assert found.train.path(0).name == "b.mp4"
        with pytest.raises(PacecoreError, match=f"{data}: was made of lists 02, and fold '3' is"):
            open_inputs(TrainOptions(data=str(data), fold="3"))
        assert "no folds" not in found.words


def test_a_fold_is_not_taken_in_silence_where_there_are_none(tmp_path):
    for number, name in enumerate("ab"):
        write_tiny(tmp_path / name / "1.mp4", number, 0, 20)
    for fold in ("2", "byseq"):
        words = open_inputs(TrainOptions(data=str(tmp_path), fold=fold)).words
        assert f"; there are no folds, so that fold {fold} is not used" in words
    assert "folds" not in open_inputs(TrainOptions(data=str(tmp_path))).words


@pytest.mark.parametrize("part", [False, True])
def test_the_frames_of_a_store_are_held_where_the_options_want_them(tmp_path, part):
    """All of them, also those of videos that the run does not learn from."""
    for number, name in enumerate("ab"):
        write_tiny(tmp_path / f"{name}.mp4", 0, number, 5 + number)
    store, _ = pack(probe_all(find_videos(tmp_path))[0], tmp_path / "store", (24, 32), workers=1)
    source, cpu = Subset(store, [1]) if part else store, torch.device("cpu")
    assert [resident_frames(source, place, cpu) for place in ("host", "auto")] == [None, None]
    held = stacked(resident_frames(source, "device", cpu))
    each = [frame for n in (0, 1) for frame in stacked(store.decode(n, np.arange(5 + n)))]
    assert np.array_equal(held, each)


@pytest.mark.parametrize(("ranks", "processes"), [("1", 12), ("4", 3), ("12", 2)])
def test_ranks_share_the_cores_that_count(ranks, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(inputs, "core_count", lambda: 12)
    asked = []

    def counting(index, workers, _):
        asked.append(workers)
        return probe_all(index, workers=1)

    monkeypatch.setattr(inputs, "probe_all", counting)
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    inputs.open_index(find_videos(tmp_path), 0, str(tmp_path))
    assert asked == [processes]


def _shared_out(number, folder):
    seen = []

    def counting(index, *_):
        seen.extend(entry.name for entry in index.entries)
        return probe_all(index, workers=1)

    mine = folder / f"machine{number}"  # where this rank has the set
    mine.symlink_to(folder / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "probe_all", counting)
        data = open_inputs(replace(options_of(mine), max_bad=1))
    words = data.words.replace(f"{mine};", "-;")
    paths = [data.train.path(place) for place in range(len(data.train))]
    assert [path.parent for path in paths] == [mine] * 4
    return seen, [path.name for path in paths], words, data.identity


def test_each_rank_counts_a_share_of_the_videos(tmp_path):
    """Not all of them, which would take as long as one rank alone, whose cores they share."""
    for number, name in enumerate("acde"):
        write_tiny(tmp_path / "set" / f"{name}.mp4", 0, number, 20 + number)
    (tmp_path / "set" / "b.mp4").write_bytes(b"no video")
    ranks = run_ranks(_shared_out, 3, tmp_path)
    assert [seen for seen, *_ in ranks] == [["a.mp4", "d.mp4"], ["b.mp4", "e.mp4"], ["c.mp4"]]
    _, names, words, identity = ranks[0]
    assert names == ["a.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert words.startswith("4 training videos with 86 frames")
    assert words.endswith("; 1 unreadable: " + str(tmp_path / "machine1" / "b.mp4"))
    for _, *others in ranks[1:]:
        assert others == [names, words, identity]


def test_frame_counts_that_are_not_those_listed_are_told(tmp_path):
    """Some lists have the columns path, frames, label."""
    for number, name in enumerate("abc"):
        write_tiny(tmp_path / f"{name}.mp4", 0, number, 20)
    (tmp_path / "list.txt").write_text("a.mp4 20 1\nb.mp4 20 2\nc.mp4 20 20\n")
    data = open_inputs(TrainOptions(data=str(tmp_path / "list.txt")))
    assert "; 2 have other numbers of frames than listed" in data.words
    (tmp_path / "list.txt").write_text("a.mp4 0 20\nb.mp4 1\n")
    assert "than listed" not in open_inputs(TrainOptions(data=str(tmp_path / "list.txt"))).words


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"sync_bn": True}, "sync_bn needs CUDA devices, got cpu"),
        ({"graph": True}, "graph needs a CUDA device, got cpu"),
    ],
)
def test_what_several_ranks_of_the_cpu_cannot_do_is_told_before_videos_are_read(
    tmp_path, monkeypatch, option, words
):
    monkeypatch.setattr("pacecore.step.world_size", lambda: 2)
    monkeypatch.setattr("pacecore.beginning.open_inputs", None)
    options = TrainOptions(data=str(tmp_path), out=str(tmp_path / "run"), **option)
    with pytest.raises(PacecoreError, match=f"^{words}$"):
        begin("pretrain", options, torch.device("cpu"), resume=False, fall_back=False)


def test_what_depends_on_other_options_is_filled_in(tmp_path):
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    options = TrainOptions(data=str(tmp_path), out=str(tmp_path / "run"))
    resolved, _, _ = begin("pretrain", options, torch.device("cpu"), resume=False, fall_back=False)
    assert (resolved.clip_frames, resolved.resize, resolved.crop) == (16, (128, 171), 112)


def test_ranks_that_find_other_videos_are_refused(tmp_path, monkeypatch):
    """On other machines of a run the folder may hold others; a number would mean another video."""
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    monkeypatch.setattr("pacecore.inputs.merge_over_ranks", lambda found: found | {"other": ""})
    words = rf"the ranks do not find the same videos in {tmp_path}: rank 0 has 1 training videos"
    with pytest.raises(PacecoreError, match=words):
        begin("pretrain", options_of(tmp_path), torch.device("cpu"), resume=False, fall_back=False)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 7, "data": "there", "workers": 3}, "seed .* got 0 on rank 0 and 7 on rank 1"),
        ({"last.pt": {"step": 2}}, "last.pt .* got {'step': 3} on rank 0 and {'step': 2} on rank"),
    ],
)
def test_ranks_that_were_given_other_options_or_checkpoints_are_refused(
    tmp_path, monkeypatch, other, words
):
    """Of other seeds or rates nobody would be told, of other batches ranks wait for each other."""
    monkeypatch.setattr("pacecore.beginning.load_resume", lambda *_, **__: {"totals": {"step": 3}})
    monkeypatch.setattr("pacecore.distributed.of_all_ranks", lambda mine: [mine, mine | other])
    with pytest.raises(PacecoreError, match=words):
        begin("pretrain", options_of(tmp_path), torch.device("cpu"), resume=True, fall_back=False)


def begun(folder, monkeypatch):
    """A run on the videos in train/ and test/ of `folder`, and what begins it again."""
    for number, name in enumerate(("train/a.mp4", "train/d.mp4", "test/b.mp4", "test/c.mp4")):
        (folder / name).parent.mkdir(exist_ok=True)
        write_tiny(folder / name, 0, number, 20 + number)
    options = options_of(folder)
    content = {"kind": "pretrain", "options": asdict(options)}
    content |= {name: {} for name in ("totals", "model", "optimizer", "results", "best", "bad")}
    content |= {"unmeasured": False}
    monkeypatch.setattr("pacecore.beginning.load_resume", lambda *_, **__: content)
    go_on = partial(begin, "pretrain", options, torch.device("cpu"), resume=True, fall_back=False)
    return options, content, go_on


def test_a_resumed_run_has_the_same_held_out_videos(tmp_path, monkeypatch):
    """Else its curve of accuracies would be of two sets, and nobody told."""
    options, content, go_on = begun(tmp_path, monkeypatch)
    content |= open_inputs(options).stored
    assert go_on()[2] is content
    (tmp_path / "test" / "c.mp4").unlink()
    with pytest.raises(PacecoreError, match=r"trained or measured on other videos than .*; 1 held"):
        go_on()


def test_a_run_goes_on_where_videos_cannot_be_read_any_more_or_now_can(tmp_path, monkeypatch):
    """Its steps draw from the videos that it began with, else they would be other steps."""
    options, content, go_on = begun(tmp_path, monkeypatch)
    lost, found = tmp_path / "train" / "a.mp4", tmp_path / "train" / "d.mp4"
    whole = found.read_bytes()
    found.write_bytes(whole[:100])
    content |= open_inputs(options).stored
    assert content["listed"]["frames"].tolist() == [20, 0, 22, 23]
    found.write_bytes(whole)
    (tmp_path / "test" / "b.mp4").write_bytes(b"no video")
    data = go_on()[1]
    assert [data.train.path(0), len(data.train), len(data.held_out)] == [lost, 1, 2]
    assert [data.held_out.num_frames(video) for video in (0, 1)] == [22, 23]
    assert [path for path, _ in data.unreadable] == [str(tmp_path / "test" / "b.mp4")]
    assert data.stored["listed"]["frames"].tolist() == [20, 0, 22, 23]
    with pytest.raises(VideoError, match=r"test/b\.mp4"):
        data.held_out.decode(0, np.arange(4))
    write_tiny(lost, 0, 0, 21)  # another video in its place
    with pytest.raises(PacecoreError, match="trained or measured on other videos than"):
        go_on()


def test_ranks_of_a_machine_share_its_cores_for_decoding(monkeypatch):
    monkeypatch.setattr("pacecore.inputs.core_count", lambda: 64)
    places = [torch.device(name) for name in ("cuda", "cpu")]
    assert [worker_count(-1, place) for place in places] == [16, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [worker_count(-1, place) for place in places] == [7, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # none decodes between its steps
    assert [worker_count(-1, place) for place in places] == [1, 1]
    assert worker_count(3, places[0]) == 3
    # Where there may be no processes, as in a Pool's worker, this one decodes.
    monkeypatch.setattr("multiprocessing.process._current_process._config", {"daemon": True})
    assert [count(-1, place) for count in (worker_count, decoder_count) for place in places] == [
        0, 0, 0, 0,
    ]  # fmt: skip


def test_as_many_processes_measure_within_training_as_after_it(monkeypatch):
    monkeypatch.setattr("pacecore.inputs.core_count", lambda: 1)
    runners, nothing = [], PaceResult(("1", "2"), [[0, 0], [0, 0]])
    monkeypatch.setattr(
        "pacecore.train.pace_accuracy", lambda runner, _: runners.append(runner) or nothing
    )
    options, cpu = from_mapping(TrainOptions, {"paces": "1,2", "views": 2}), torch.device("cpu")
    PaceTask(options, torch.nn.Identity(), [], cpu).evaluate(lambda: None)
    assert [runner.workers for runner in runners] == [decoder_count(-1, cpu)] == [2]


def test_of_videos_none_of_which_can_be_read_the_first_is_told_with_the_reason(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    reason = f"{tmp_path}/a.mp4: cannot be read: Invalid data found when processing input"
    for named in (tmp_path, tmp_path / "list.txt"):
        words = f"{named}: none of the 2 videos can be read; the first one: {reason}$"
        with pytest.raises(PacecoreError, match=words):
            open_inputs(replace(options_of(tmp_path), data=str(named)))
    with pytest.raises(PacecoreError, match=f"^{reason}$"):
        open_inputs(replace(options_of(tmp_path), data=str(tmp_path / "a.mp4")))
    write_tiny(tmp_path / "good.mp4", 0, 0, 20)
    options = replace(options_of(tmp_path / "good.mp4"), held_out=str(tmp_path / "list.txt"))
    with pytest.raises(
        PacecoreError, match=r"list\.txt: none of the 2 .*; the first one: .*a\.mp4"
    ):
        open_inputs(options)


def test_with_no_data_named_it_is_the_demo_set_which_is_made_once(tmp_path, monkeypatch, capsys):
    made = []

    def make(folder):
        if not made:
            tiny_set(folder, train=2, test=1)
        made.append(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "make_demo", make)
    options = replace(options_of(tmp_path), data="")
    assert "6 training videos" in open_inputs(options).words
    said = f"no data named: making the demo set in {tmp_path}/pacecore-demo\n"
    assert said in capsys.readouterr().out
    assert "6 training videos" in open_inputs(options).words
    assert said not in capsys.readouterr().out
    assert len(made) == 2  # the second time it says whether the set is whole
