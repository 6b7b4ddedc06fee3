"""Fine-tuning: the validation share, the linear probe, best and last, resuming, bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pacecore.backbones import build_backbone
from pacecore.checkpoint import load_checkpoint
from pacecore.cli.finetune import _options
from pacecore.config import FinetuneOptions, TestOptions, from_mapping
from pacecore.convert import convert
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.finetune import (
    ActionModel,
    action_model,
    finetune,
    inherit_options,
    labels_and_classes,
    pretraining_of,
    validation_split,
)
from pacecore.index import recordings, write_index
from pacecore.protocol import ClipRunner
from pacecore.recognition import run_test
from pacecore.rules import OptionError
from pacecore.source import Subset
from pacecore.store import pack
from pacecore.trained import fingerprint, load_trained

from .tiny import CLASSES, SMALL, decoding, finetuned, pretrained, tiny_set, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("finetune") / "set")


def tiny_options(videos, out, **changes) -> FinetuneOptions:
    values = {
        **SMALL,
        "data": str(videos),
        "out": str(out),
        "batch": 6,
        "repeat": 1,
        "epochs": 3,
        "lr": 0.05,
        "log_every": 1,
        **changes,
    }
    return FinetuneOptions(**values).resolved()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_validation_split_is_an_even_share_of_each_class(share):
    labels = np.repeat([0, 1, 2], [40, 20, 20])
    train, validation = validation_split(labels, share, seed=3)
    assert sorted([*train, *validation]) == list(range(80))
    counts = np.bincount(labels[validation], minlength=3)
    assert counts.sum() == round(80 * share)
    assert np.abs(counts - share * np.array([40, 20, 20])).max() <= 1


def test_validation_split_is_a_function_of_labels_share_and_seed():
    labels = np.random.default_rng(0).integers(0, 5, 100)
    one, again = validation_split(labels, 0.3, 7), validation_split(labels, 0.3, 7)
    other = validation_split(labels, 0.3, 8)
    assert sorted(one[1]) == again[1].tolist()
    assert not np.array_equal(one[1], other[1])


def test_each_class_keeps_a_video_to_train_on():
    train, validation = validation_split(np.array([0, 0, 1, 2, 2, 2]), 0.9, 0)
    assert set(np.array([0, 0, 1, 2, 2, 2])[train]) == {0, 1, 2}
    assert len(validation) == 3  # 5 wanted, but a class of one video has none to give


def ucf_names(classes, groups, clips):
    """Stems of a set that is named as UCF101 is, and their labels."""
    names = [
        f"v_{name}_g{group:02}_c{clip:02}"
        for name in classes
        for group in range(1, groups + 1)
        for clip in range(1, clips + 1)
    ]
    return names, np.repeat(np.arange(len(classes)), groups * clips)


def test_clips_of_one_group_are_known_by_their_names():
    names = ["v_Punch_g01_c01", "v_Punch_g01_c02", "v_Punch_g02_c01", "v_Kick_g01_c01", "wave_f_nm"]
    found = recordings(f"set/{name}.avi" for name in names)
    assert [found.index(each) for each in found] == [0, 0, 2, 3, 4]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_no_group_is_in_both_parts_and_the_share_is_even(share):
    names, labels = ucf_names(("Punch", "Kick", "PushUps"), groups=20, clips=4)
    groups = recordings(f"set/{name}.avi" for name in names)
    train, validation = validation_split(labels, share, 3, groups)
    assert sorted([*train, *validation]) == list(range(240))
    assert not {groups[video] for video in train} & {groups[video] for video in validation}
    counts = np.bincount(labels[validation], minlength=3)
    assert abs(counts.sum() - 240 * share) <= 2  # half a group
    assert np.abs(counts - 80 * share).max() <= 4  # a group


def test_groups_of_many_sizes_come_near_the_share_and_leave_each_class_one():
    rng = np.random.default_rng(0)
    groups = [f"{label}-{group}" for label in range(4) for group in range(12)]
    names = np.repeat(groups, rng.integers(1, 8, len(groups)))
    labels = np.array([int(name[0]) for name in names])
    train, validation = validation_split(labels, 0.3, 1, names.tolist())
    assert not set(names[train]) & set(names[validation])
    assert abs(len(validation) - 0.3 * len(names)) <= 4  # half the largest group
    train, validation = validation_split(labels, 0.99, 1, names.tolist())
    assert set(labels[train]) == {0, 1, 2, 3}
    assert len(validation_split(np.zeros(5, int), 0.2, 0, ["a"] * 5)[1]) == 0


def test_groups_of_one_video_are_the_split_by_video():
    labels = np.random.default_rng(0).integers(0, 5, 100)
    by_video = validation_split(labels, 0.3, 7)
    by_group = validation_split(labels, 0.3, 7, [str(video) for video in range(100)])
    assert all(map(np.array_equal, by_video, by_group))


def test_linear_probe_moves_the_head_alone(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "pre.pt")
    before = load_trained(checkpoint)
    options = tiny_options(
        videos, tmp_path / "probe", checkpoint=str(checkpoint), freeze="backbone", max_steps=3
    )
    finetune(options)
    after = load_trained(tmp_path / "probe" / "last.pt")
    assert fingerprint(after.backbone) == fingerprint(before.backbone)  # running averages too
    assert after.pretrained["kind"] == "pretrain"
    assert after.pretrained["paces"] == "1,2,3,4"
    assert not torch.equal(after.head.weight, first_head(options).weight)


def test_of_a_network_fine_tuned_before_pre_training_and_labels_are_told(tmp_path):
    before = replace(load_trained(finetuned(tmp_path / "best.pt")), pretrained={"paces": "1,2"})
    videos = {"data": "", "held_out": "auto", "fold": "1"}
    again = replace(before, pretrained=pretraining_of(before))
    assert again.pretrained == {"paces": "1,2", "labelled": [videos]}
    assert pretraining_of(again)["labelled"] == [videos, videos]
    probe = replace(before, options=replace(before.options, freeze="backbone"))
    assert pretraining_of(probe) == {"paces": "1,2"}  # of whose backbone nothing has moved


def first_head(options):
    """The head that a run began with."""
    torch.manual_seed(options.seed)
    backbone = build_backbone(options.backbone, options.depth or None, options.width)
    return ActionModel(backbone, len(CLASSES)).head


def test_all_weights_move_and_the_start_is_the_checkpoint(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "pre.pt", seed=5)
    kept = load_trained(checkpoint).backbone.state_dict()
    options = tiny_options(
        videos, tmp_path / "run", checkpoint=str(checkpoint), lr=1e-6, max_steps=1
    )
    finetune(options)
    after = load_trained(tmp_path / "run" / "last.pt").backbone.state_dict()
    weights = [name for name in kept if name.endswith("weight")]
    for name in weights:  # one tiny step away
        torch.testing.assert_close(after[name], kept[name], rtol=0, atol=1e-4)
    assert any(not torch.equal(after[name], kept[name]) for name in weights)


def test_learns_and_keeps_the_best_by_the_validation_share(videos, tmp_path, monkeypatch):
    opened = decoding(monkeypatch)
    options = tiny_options(
        videos, tmp_path / "run", val_share=0.25, epochs=6, repeat=2, schedule="cosine"
    )
    summary = finetune(options)
    assert (summary["validation_videos"], summary["validation_by"]) == (3, "video")
    assert summary["videos"] == 9
    assert "warning" not in summary["results"]
    assert not [path for path in opened if "test" in path.parts]  # that split is never looked at
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    measured = [line["val_accuracy"] for line in lines if "val_accuracy" in line]
    assert len(measured) == 6
    best, last = (load_checkpoint(tmp_path / "run" / f"{name}.pt") for name in ("best", "last"))
    assert best["results"]["val_accuracy"] == max(measured) == summary["best"]["val_accuracy"]
    assert best["totals"]["step"] == summary["best"]["step"] == last["best"]["step"]
    assert last["totals"]["step"] == summary["steps"]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_an_accuracy_of_a_part_of_the_validation_videos_says_so(videos, tmp_path, monkeypatch):
    run = ClipRunner.run

    def failing(self, source):
        self.unreadable["a.mp4"] = "cut short"
        return run(self, Subset(source, [0, 1]), None)

    monkeypatch.setattr(ClipRunner, "run", failing)
    results = finetune(tiny_options(videos, tmp_path / "run", val_share=0.25, epochs=1))["results"]
    words = "1 of 3 validation videos cannot be read, the first is a.mp4: cut short"
    assert (results["val_videos"], results["warning"]) == (2, words)


def test_validation_takes_whole_groups_and_says_so(tmp_path, capsys):
    for label, name in enumerate(CLASSES):
        for group in range(1, 4):
            for clip in (1, 2):
                path = tmp_path / f"set/train/{name}/v_{name}_g{group:02}_c{clip:02}.mp4"
                write_tiny(path, 2 - label, 10 * label + group, frames=20)
    options = tiny_options(tmp_path / "set", tmp_path / "run", val_share=0.33, max_steps=1)
    summary = finetune(options)
    assert (summary["validation_videos"], summary["validation_by"]) == (6, "group")
    assert "6 of them to choose the best on, which are 3 whole groups" in capsys.readouterr().out


def test_a_packed_store_gives_the_names_of_its_classes_to_head_and_test(videos, tmp_path):
    index, _ = probe_all(find_videos(videos))
    pack(index, tmp_path / "store", (32, 40), workers=1)
    options = tiny_options(tmp_path / "store", tmp_path / "run", max_steps=1, val_share=0.25)
    finetune(options)
    trained = load_trained(tmp_path / "run" / "last.pt")
    assert trained.classes == CLASSES
    result = run_test(trained, TestOptions(workers=0, device="cpu", clips=2).resolved())
    assert tuple(result["per_class"]) == CLASSES


def test_frames_that_are_held_on_the_device_train_as_those_of_the_store(videos, tmp_path, capsys):
    index, _ = probe_all(find_videos(videos))
    pack(index, tmp_path / "store", (32, 40), workers=1)
    weights = []
    for place, held in (("host", 0), ("device", 1)):
        finetune(tiny_options(tmp_path / "store", tmp_path / place, max_steps=1, data_on=place))
        assert capsys.readouterr().out.count("all frames are held on cpu") == held
        weights.append(load_checkpoint(tmp_path / place / "last.pt")["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_resumed_run_ends_with_the_same_weights(videos, tmp_path):
    whole = tiny_options(videos, tmp_path / "whole", val_share=0.25, epochs=2)
    finetune(whole)
    halves = tiny_options(videos, tmp_path / "halves", val_share=0.25, epochs=2, max_steps=3)
    finetune(halves)
    finetune(replace(halves, max_steps=0), resume=True)
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "halves"))
    assert one["totals"]["step"] == other["totals"]["step"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


@pytest.mark.parametrize(("name", "value"), [("labelling", "other"), ("classes", ("a", "b"))])
def test_ranks_with_other_labels_of_the_same_videos_are_refused(
    videos, tmp_path, monkeypatch, name, value
):
    """As of lists on each machine: half of each batch would be learned with others."""

    def another(mine):
        return [mine, mine | {name: value} if name in mine else mine]

    monkeypatch.setattr("pacecore.distributed.of_all_ranks", another)
    with pytest.raises(PacecoreError, match=f"^{name} must be the same on every rank, got .*1$"):
        finetune(tiny_options(videos, tmp_path / "run"))
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_run_does_not_go_on_with_other_labels_of_its_videos(videos, tmp_path):
    index, _ = probe_all(find_videos(videos))
    listed, count = tmp_path / "listed.jsonl", len(CLASSES)
    others = [(each.label + 1) % count for each in index.entries]
    moved = tuple(
        replace(each, label=label, class_name=index.classes[label])
        for each, label in zip(index.entries, others, strict=True)
    )
    options = tiny_options(listed, tmp_path / "run", max_steps=1)
    write_index(index, listed)
    finetune(options)
    write_index(replace(index, entries=moved), listed)
    with pytest.raises(PacecoreError, match="run: the run was trained on other labels of its vid"):
        finetune(replace(options, max_steps=2), resume=True)
    write_index(index, listed)
    assert finetune(replace(options, max_steps=2), resume=True)["steps"] == 2


def test_a_run_does_not_go_on_with_other_names_of_its_classes(videos, tmp_path):
    index, _ = probe_all(find_videos(videos))
    listed = tmp_path / "listed.jsonl"
    options = tiny_options(listed, tmp_path / "run", max_steps=1)
    write_index(index, listed)
    finetune(options)
    renamed = tuple(name.lower() for name in index.classes)
    entries = tuple(replace(each, class_name=renamed[each.label]) for each in index.entries)
    write_index(replace(index, classes=renamed, entries=entries), listed)
    with pytest.raises(PacecoreError, match=r"run: the run was trained on other classes$"):
        finetune(replace(options, max_steps=2), resume=True)


@pytest.mark.parametrize(
    ("names", "unit"), [(("a",), "video"), (("v_X_g01_c01", "v_X_g01_c02"), "group of clips")]
)
def test_a_share_to_validate_on_that_would_leave_nothing_to_train_on_is_refused(
    tmp_path, names, unit
):
    for name in ("Blue", "Red"):
        for number, stem in enumerate(names):
            path = tmp_path / "set" / "train" / name / f"{stem.replace('X', name)}.mp4"
            write_tiny(path, 0, number, 20)
    with pytest.raises(PacecoreError, match=f"^val_share: each class has one {unit}, which is nee"):
        finetune(tiny_options(tmp_path / "set", tmp_path / "run", val_share=0.5))


def test_network_of_the_checkpoint_is_kept_and_another_refused_by_name(tmp_path):
    trained = load_trained(pretrained(tmp_path / "pre.pt"))
    values, notes = inherit_options({"lr": 0.1}, trained)
    options = from_mapping(FinetuneOptions, values)
    assert (options.backbone, options.width, options.crop) == ("r3d", 0.125, 32)
    assert options.normalize == "unit"
    assert not notes
    with pytest.raises(OptionError, match=r"width must be 0\.125, as in .*pre\.pt, got 0\.5"):
        inherit_options({"width": 0.5}, trained)
    values, notes = inherit_options({"depth": 10}, trained)  # as the checkpoint's 0 means
    assert not notes
    assert action_model(from_mapping(FinetuneOptions, values), 3, trained).head.out_features == 3
    with pytest.raises(OptionError, match=r"depth must be 0, as in .*pre\.pt, got 18"):
        inherit_options({"depth": 18}, trained)
    for same in ((32, 40), [32, 40]):  # given, or of a file
        _, notes = inherit_options({"normalize": "none", "resize": same}, trained)
        assert len(notes) == 1
        assert notes[0].startswith("normalize is 'none' here, 'unit' in ")
    # What a file of weights does not say is no other input than its own.
    bare = replace(trained, unsaid={"channel_order": "rgb", "normalize": "unit"})
    _, notes = inherit_options({"normalize": "none"}, bare)
    assert [note.endswith("say --channel-order, which is taken to be rgb") for note in notes] == [
        True
    ]
    said = replace(bare, unsaid={"channel_order": "rgb"})
    _, notes = inherit_options({"normalize": "none", "channel_order": "bgr"}, said)
    assert len(notes) == 1
    assert notes[0].startswith("normalize is 'none' here, 'unit' in ")
    assert inherit_options({"normalize": "none", "channel_order": "bgr"}, bare)[1] == []


def test_a_note_is_said_once_by_all_ranks(tmp_path, monkeypatch, capsys):
    given = {"checkpoint": str(pretrained(tmp_path / "pre.pt")), "normalize": "none", "data": "x"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        _options(dict(given), None, None)
        assert capsys.readouterr().err.count("note: normalize is 'none' here") == said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("checkpoint = 5", "checkpoint must be text without NUL, got 5"),
        (r'checkpoint = "a\u0000b"', r"checkpoint must be text without NUL, got 'a\\x00b'"),
        ("resize = 64", "resize must be HEIGHT"),
    ],
)
def test_a_value_of_another_kind_is_told_with_its_file(tmp_path, line, words):
    (tmp_path / "my.toml").write_text(line)
    given = {} if "checkpoint" in line else {"checkpoint": str(pretrained(tmp_path / "pre.pt"))}
    with pytest.raises(OptionError, match=rf"my\.toml: {words}"):
        _options(given, None, str(tmp_path / "my.toml"))


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [("B", None, "B"), ("auto", None, "auto"), ("none", None, "auto"), ("B", "C", "C")],
)
def test_without_data_the_videos_are_those_of_the_checkpoint(tmp_path, stored, given, expected):
    own = tmp_path / "A"
    path = str(pretrained(tmp_path / "last.pt", data=str(own), held_out=stored))
    with pytest.raises(PacecoreError, match=r"last\.pt: its videos are not .*; name with DATA"):
        _options({"checkpoint": path}, None, None)
    own.mkdir()
    options, _ = _options({"checkpoint": path, "held_out": given}, None, None)
    assert (options.data, options.held_out) == (str(own), expected)
    elsewhere, _ = _options({"checkpoint": path, "data": "D"}, None, None)
    assert (elsewhere.data, elsewhere.held_out) == ("D", "auto")


def test_scratch_wins_over_the_checkpoint_of_a_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(f'checkpoint = "{pretrained(tmp_path / "last.pt")}"\n')
    options, trained = _options({"data": "x"}, None, str(file), scratch=True)
    assert (options.checkpoint, trained) == ("", None)
    assert _options({"data": "x"}, None, str(file))[1] is not None


def test_weights_that_a_file_lacks_start_afresh_where_that_is_asked_for(tmp_path):
    trained, path = load_trained(pretrained(tmp_path / "last.pt")), tmp_path / "w.pt"
    convert(trained.path, path)
    names = ("conv1.conv.weight", "conv1.norm.weight")
    state = torch.load(path, weights_only=True)
    torch.save({name: state[name] for name in state if name[9:] not in names}, path)
    with pytest.raises(PacecoreError, match=r"w\.pt: r3d lacks 2 of .* finetune take the rest by"):
        load_trained(path)
    part = load_trained(path, partial=True)
    values, notes = inherit_options({}, part)
    assert any(note.startswith("2 weights are not in ") for note in notes)
    options = from_mapping(FinetuneOptions, values)
    found, fresh = (action_model(options, 3, start).backbone.state_dict() for start in (part, None))
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(found[name], fresh[name] if name in names else value)


def test_bare_weights_name_no_videos(tmp_path):
    convert(pretrained(tmp_path / "last.pt"), tmp_path / "weights.pt")
    with pytest.raises(OptionError, match=r"weights\.pt: bare weights name no videos; name the da"):
        _options({"checkpoint": str(tmp_path / "weights.pt")}, None, None)
    (tmp_path / "weights.json").unlink()
    with pytest.raises(PacecoreError, match=r"another width than 1; .* weights\.json, which is"):
        load_trained(tmp_path / "weights.pt")


@pytest.mark.parametrize(("backbone", "rate"), [("r21d", 3e-3), ("s3dg", 1e-2)])
def test_learning_rate_goes_with_the_network(backbone, rate):
    assert FinetuneOptions(backbone=backbone).resolved().lr == rate
    assert FinetuneOptions(backbone=backbone, lr=0.5).resolved().lr == 0.5


def test_one_class_is_refused():
    class Source:
        classes = ("a",)

        def __len__(self):
            return 3

        def label(self, video):
            return 0

    with pytest.raises(PacecoreError, match="training split: needs two classes or more, got 1"):
        labels_and_classes(Source())


def test_a_class_of_the_test_split_alone_is_told_by_name(tmp_path):
    tiny_set(tmp_path / "set", train=2, test=1)
    write_tiny(tmp_path / "set/test/Violet/t.mp4", 0, 1, 20)
    with pytest.raises(PacecoreError, match="training split: 1 of 4 classes have no video: Violet"):
        finetune(tiny_options(tmp_path / "set", tmp_path / "run"))


def test_videos_without_labels_are_refused(tmp_path):
    """By one that is in no class folder."""
    for number, place in enumerate(("a/", "b/", "")):
        write_tiny(tmp_path / f"set/{place}{number}.mp4", 0, number, 20)
    words = r"3 of 3 videos have no label, .*; 3 training .*, as 2\.mp4 is in no class folder"
    with pytest.raises(PacecoreError, match=words):
        finetune(tiny_options(tmp_path / "set", tmp_path / "run"))
