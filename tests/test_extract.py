"""Features to files: the rows, their order, going on after a stop, reuse, other formats."""

import errno
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pacecore.extract as extract_module
from pacecore.backbones import build_backbone, stage_features
from pacecore.cli.extract import extract
from pacecore.config import ExtractOptions, from_mapping
from pacecore.convert import convert
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.extract import _identity, _mapped, load_features, run_extract
from pacecore.index import VideoEntry, VideoIndex, write_index
from pacecore.source import VideoFiles
from pacecore.store import pack
from pacecore.trained import fingerprint, load_trained
from pacecore.video import probe

from .ranks import held_elsewhere, run_ranks
from .tiny import CLASSES, decoding, plain_clips, pretrained, tiny_set, write_tiny
from .video_files import write_pictures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("extract") / "set", train=2, test=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, videos):
    return pretrained(tmp_path_factory.mktemp("run") / "last.pt", data=str(videos))


def options_of(out, **changes) -> ExtractOptions:
    return from_mapping(
        ExtractOptions,
        {"workers": 0, "device": "cpu", "out": str(out), "clips": 4, "batch_clips": 8, **changes},
    )


def plain_features(trained, path, stage, pool="max", clips=4) -> np.ndarray:
    """(clips, D): clip after clip by the definition."""
    backbone, rows = trained.backbone.eval(), []
    for clip in plain_clips(path, clips):
        with torch.no_grad():
            if (stage, pool) == ("p4", "gap"):
                features = backbone.maps(clip, ["conv4"])["conv4"].mean(dim=(2, 3, 4))
            else:
                features = stage_features(backbone, clip, stage)
        rows.append(features[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("stage", "pool", "unit"),
    [
        ("gap", "max", "video"),
        ("p4", "max", "clip"),
        ("p4", "gap", "clip"),
        ("p5", "max", "video"),
    ],
)
def test_rows_are_the_features_of_the_videos_in_the_json(checkpoint, tmp_path, stage, pool, unit):
    trained = load_trained(checkpoint)
    if stage == "p5":  # the last map of these clips is 1 x 2 x 2, which pools to one place
        assert trained.options.crop == 32
    train, test = run_extract(trained, options_of(tmp_path, stage=stage, pool=pool, unit=unit))
    assert (len(train.values), len(test.values)) == (6, 3)
    assert train.order["network"] == fingerprint(trained.backbone)
    assert train.order["classes"] == list(CLASSES)
    for features in (train, test):
        for row, video in zip(features.values, features.order["videos"], strict=True):
            assert f"/{video['class']}/" in video["path"]
            assert CLASSES[video["label"]] == video["class"]
            expected = plain_features(trained, video["path"], stage, pool)
            expected = expected if unit == "clip" else expected.mean(axis=0)
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def counting(monkeypatch, stop_after=None):
    opened = []
    decode_one = VideoFiles.decode

    def noting(self, video, wanted):
        if stop_after is not None and len(opened) == stop_after:
            raise KeyboardInterrupt
        opened.append(self.path(video).name + self.path(video).parent.name)
        return decode_one(self, video, wanted)

    monkeypatch.setattr(VideoFiles, "decode", noting)
    return opened


def test_a_stopped_run_goes_on_and_a_whole_one_is_not_made_again(checkpoint, tmp_path, monkeypatch):
    trained = load_trained(checkpoint)
    options = options_of(tmp_path / "stopped", stage="gap", split="train", batch_clips=4)
    with monkeypatch.context() as patch:
        counting(patch, stop_after=4)
        patch.setattr(extract_module, "_SECONDS_BETWEEN_FLUSHES", 0)
        run = extract_module.ClipRunner.run

        def to_the_end(*given):
            try:
                yield from run(*given)
            except KeyboardInterrupt:  # as much stands there of a kill, which nothing follows
                assert np.load(tmp_path / "stopped" / "features-gap-video-train.state.part").any()
                raise

        patch.setattr(extract_module.ClipRunner, "run", to_the_end)
        with pytest.raises(KeyboardInterrupt):
            run_extract(trained, options)

    def full(*_):
        raise PacecoreError("No space left on device")

    with monkeypatch.context() as patch:
        opened = counting(patch)
        patch.setattr(extract_module, "write_json", full)
        with pytest.raises(PacecoreError, match="No space left"):
            run_extract(trained, options)
        assert 0 < len(opened) <= 3  # of six; what was written is not made again
    with monkeypatch.context() as patch:
        opened = counting(patch)
        (resumed,) = run_extract(trained, options)
        assert not opened  # the rows were whole, and but the JSON had found no room
    with monkeypatch.context() as patch:
        opened = counting(patch)
        (again,) = run_extract(trained, options)
        assert not opened
    (whole,) = run_extract(trained, options_of(tmp_path / "whole", stage="gap", split="train"))
    assert np.array_equal(resumed.values, whole.values)
    assert np.array_equal(again.values, whole.values)
    assert resumed.order == whole.order
    assert not list((tmp_path / "stopped").glob("*.part"))


def test_one_process_at_a_time_writes_a_file(checkpoint, tmp_path):
    trained, options = load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test")
    with held_elsewhere(tmp_path / ".features-gap-video-test.lock") as other:
        words = rf"process {other} on .* is writing features-gap-video-test.npy; wait or stop it"
        with pytest.raises(PacecoreError, match=words):
            run_extract(trained, options)
    run_extract(trained, options)


def test_a_rank_that_has_not_the_folder_of_the_first_is_told(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("pacecore.extract.is_main", lambda: False)  # the first makes the file
    with pytest.raises(PacecoreError, match=r"opened: No such .*; ranks need a folder in common"):
        run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap"))


@pytest.mark.parametrize("when", ["_fill", "_finish"])
def test_a_folder_that_is_gone_at_the_end_is_told(checkpoint, tmp_path, monkeypatch, when):
    out = tmp_path / "out"
    before = getattr(extract_module._Writer, when)

    def gone(writer):
        if when == "_fill":
            before(writer)
        shutil.rmtree(out)
        if when == "_finish":
            before(writer)

    monkeypatch.setattr(extract_module._Writer, when, gone)
    words = r"features-gap-video-test\.npy: cannot be written: No such file or directory$"
    with pytest.raises(PacecoreError, match=words):
        run_extract(load_trained(checkpoint), options_of(out, stage="gap", split="test"))


@pytest.mark.parametrize(("name", "value"), [("clips", 3), ("weights", "others")])
def test_ranks_with_other_options_or_weights_are_refused(
    checkpoint, tmp_path, monkeypatch, name, value
):
    """Rows of two networks would lie in one file."""
    monkeypatch.setattr("pacecore.protocol.world_size", lambda: 2)
    alike = {"out": "there", "workers": 5}
    monkeypatch.setattr(
        "pacecore.distributed.of_all_ranks", lambda mine: [mine, mine | alike | {name: value}]
    )
    with pytest.raises(PacecoreError, match=f"^{name} must be the same on every rank, got .*1$"):
        run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap"))


def test_rows_that_a_shared_disk_has_lost_are_told(checkpoint, tmp_path, monkeypatch):
    """Over NFS each machine writes whole pages back, with its own view of what others wrote."""

    def written_over(unreadable):
        np.load(next(tmp_path.glob("*.state.part")), mmap_mode="r+")[1] = 0
        return unreadable

    monkeypatch.setattr(extract_module, "merge_over_ranks", written_over)
    with pytest.raises(PacecoreError, match="1 rows are lost that ranks have written: into a file"):
        run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test"))
    assert not (tmp_path / "features-gap-video-test.npy").exists()


def test_other_weights_are_computed_anew(checkpoint, videos, tmp_path):
    options = options_of(tmp_path, stage="gap", split="test")
    (one,) = run_extract(load_trained(checkpoint), options)
    before = np.array(one.values)
    other = load_trained(pretrained(tmp_path / "other.pt", data=str(videos), seed=9))
    (two,) = run_extract(other, options)
    assert one.order["network"] != two.order["network"]
    assert not np.allclose(before, two.values)


def test_features_of_other_videos_that_are_replaced_are_named(checkpoint, videos, tmp_path):
    words = [str(checkpoint), "--stage", "gap", "--clips", "1", "--workers", "0", "--device", "cpu"]
    words += ["--out", str(tmp_path), "--split", "test"]
    others = ["--held-out", str(videos / "train")]
    told = []
    for more in ([], ["--clips", "2"], others, others, ["--format", "safetensors"]):
        shown = CliRunner().invoke(extract, [*words, *more], catch_exceptions=False)
        told.append([line for line in shown.output.splitlines() if "replaced" in line])
    paths = [videos / split / "Blue" / f"{split}0.mp4" for split in ("test", "train")]
    mine, theirs = (
        [f"replaced: features of other videos, {count}, the first {path}; another --out keeps both"]
        for count, path in zip((3, 6), paths, strict=True)
    )
    assert told == [[], [], mine, [], theirs]


def test_a_file_of_the_other_format_that_gives_way_is_named(checkpoint, tmp_path):
    pytest.importorskip("safetensors")
    trained, how = load_trained(checkpoint), {"stage": "gap", "split": "test"}
    told = []
    for more in ({}, {}, {"format": "safetensors"}, {"clips": 2}, {"clips": 2}):
        told += [run_extract(trained, options_of(tmp_path, **how, **more))[0].replaced]
    npy, other = (f"features-gap-video-test.{kind}" for kind in ("npy", "safetensors"))
    assert told == ["", "", npy, other, ""]
    (tmp_path / other).touch()  # another program's, which stays
    assert not run_extract(trained, options_of(tmp_path, clips=2, **how))[0].replaced


def test_videos_that_were_changed_in_place_are_computed_anew(checkpoint, videos, tmp_path):
    """As after a repair, or a set made anew: the same names with the same numbers of frames."""
    data = shutil.copytree(videos, tmp_path / "set")
    store, _ = pack(probe_all(find_videos(data))[0], tmp_path / "store", (16, 20), workers=1)
    trained, how = load_trained(checkpoint), {"stage": "gap", "split": "test"}

    def rows(place) -> np.ndarray:
        options = options_of(tmp_path / "out", data=str(place), **how)
        return np.array(run_extract(trained, options)[0].values)

    files, stored = rows(data), rows(store.folder)
    one = data / "test" / "Red" / "test0.mp4"
    write_tiny(one, 1, 99, probe(one).num_frames)
    changed = rows(data)
    assert not np.array_equal(changed[2], files[2])
    assert np.array_equal(changed[:2], files[:2])
    assert np.array_equal(rows(store.folder), stored)
    shutil.rmtree(store.folder)
    pack(probe_all(find_videos(data))[0], store.folder, (16, 20), workers=1)
    assert not np.array_equal(rows(store.folder), stored)


def test_a_picture_changed_in_place_makes_another_video(tmp_path):
    write_pictures(tmp_path / "film", 4)
    entry = VideoEntry(str(tmp_path / "film"), "film", num_frames=4)
    source = VideoFiles(VideoIndex(str(tmp_path), "", (entry,)))
    before, film = _identity(source), tmp_path / "film"
    assert _identity(source) == before
    (film / "img_1.jpg").write_bytes((film / "img_4.jpg").read_bytes())
    assert _identity(source) != before


def test_a_file_that_is_gone_is_told_where_it_is_read(tmp_path):
    gone = os.fsdecode(os.fsencode(tmp_path) + b"/gone-\xff.mp4")
    index = VideoIndex(str(tmp_path), "", (VideoEntry(gone, "gone.mp4", num_frames=9),))
    assert _identity(VideoFiles(index)) == _identity(VideoFiles(index))


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A folder with features of the test split."""
    folder = tmp_path_factory.mktemp("features")
    run_extract(load_trained(checkpoint), options_of(folder, stage="gap", split="test"))
    return folder


@pytest.mark.parametrize(
    ("given", "trained_with"),
    [
        ({"clips": 3}, {}),
        ({"amp": "bf16"}, {}),
        ({}, {"clip_frames": 16}),
        ({}, {"resize": (36, 40)}),
        ({}, {"crop": 28}),
        ({}, {"normalize": "none"}),
        ({}, {"channel_order": "bgr"}),
    ],
    ids=str,
)
def test_of_another_input_features_are_made_anew(
    checkpoint, made, tmp_path, monkeypatch, given, trained_with
):
    out = shutil.copytree(made, tmp_path / "out")
    trained = load_trained(checkpoint)
    trained = replace(trained, options=replace(trained.options, **trained_with))
    counting(monkeypatch, stop_after=0)
    monkeypatch.setattr("pacecore.device.errors_of_layers", lambda *_, gradients: {})
    with pytest.raises(KeyboardInterrupt):
        run_extract(trained, options_of(out, stage="gap", split="test", **given))


def test_features_are_of_fp32_where_bf16_is_wrong(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("pacecore.device.errors_of_layers", lambda *_, gradients: {"conv1": 1.0})
    (features,) = run_extract(
        load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test", amp="bf16")
    )
    assert features.order["input"]["amp"] == "none"


def test_of_other_labels_features_are_made_anew(checkpoint, videos, tmp_path, monkeypatch):
    trained, listed = load_trained(checkpoint), tmp_path / "listed.jsonl"
    how = {"data": str(listed), "stage": "gap", "split": "test"}
    index, _ = probe_all(find_videos(videos))
    names = index.classes
    following = [(each.label + 1) % len(names) for each in index.entries]
    moved = [
        replace(each, label=label, class_name=names[label])
        for each, label in zip(index.entries, following, strict=True)
    ]
    opened = counting(monkeypatch)
    for entries, count in ((index.entries, 3), (index.entries, 3), (tuple(moved), 6)):
        write_index(replace(index, entries=entries), listed)
        (found,) = run_extract(trained, options_of(tmp_path, **how))
        assert len(opened) == count
        of_test = [entry.label for entry in entries if entry.split == "test"]
        assert found.labels.tolist() == of_test


def test_an_unreadable_video_leaves_no_row(checkpoint, made, tmp_path, monkeypatch):
    decoding(monkeypatch, lambda path: path.parent.name == "Green")
    (test,) = run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test"))
    assert test.values.shape[0] == 2
    assert [video["class"] for video in test.order["videos"]] == ["Blue", "Red"]
    assert [video["number"] for video in test.order["videos"]] == [0, 2]
    whole = load_features(made / "features-gap-video-test.npy")
    np.testing.assert_allclose(test.values, whole.values[[0, 2]], rtol=1e-4, atol=1e-5)
    assert list(test.order["unreadable"].values()) == ["cut short"]
    assert test.labels.tolist() == [0, 2]


def test_a_video_that_cannot_be_counted_is_named_too(checkpoint, videos, tmp_path):
    data = shutil.copytree(videos, tmp_path / "set")
    (data / "test" / "Green" / "test0.mp4").write_bytes(b"no video")
    words = [str(checkpoint), str(data), "--stage", "gap", "--clips", "2", "--workers", "0"]
    said = CliRunner().invoke(extract, [*words, "--out", str(tmp_path)], catch_exceptions=False)
    assert said.output.count("test0.mp4: ") == 1
    order = json.loads((tmp_path / "features-gap-video-test.json").read_text())
    assert len(order["videos"]) == 2
    assert list(order["unreadable"]) == [str(data / "test" / "Green" / "test0.mp4")]


def test_features_of_files_are_not_taken_for_those_of_a_store(checkpoint, videos, tmp_path):
    store, _ = pack(probe_all(find_videos(videos))[0], tmp_path / "store", (16, 20), workers=1)
    trained, how = load_trained(checkpoint), {"stage": "gap", "split": "test"}
    before = [np.array(f.values) for f in run_extract(trained, options_of(tmp_path, **how))]
    how["data"] = str(store.folder)
    shared = run_extract(trained, options_of(tmp_path, **how))
    alone = run_extract(trained, options_of(tmp_path / "alone", **how))
    assert np.array_equal(shared[0].values, alone[0].values)
    assert not np.array_equal(shared[0].values, before[0])


def test_a_full_disk_is_told_before_the_work(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    _mapped(path, np.float32, (1000, 1000))
    assert 512 * path.stat().st_blocks >= path.stat().st_size  # else written rows may find no room

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PacecoreError, match=r"No space left on device; it takes [\d,]+ bytes$"):
        run_extract(load_trained(checkpoint), options_of(tmp_path / "out", split="test"))
    assert not list((tmp_path / "out").glob("features-*"))


def test_either_format_is_kept_and_gives_way_to_other_features(
    checkpoint, videos, tmp_path, monkeypatch
):
    pytest.importorskip("safetensors")
    trained, how = load_trained(checkpoint), {"stage": "gap", "split": "test"}
    (made,) = run_extract(trained, options_of(tmp_path, format="safetensors", **how))
    with monkeypatch.context() as patch:
        opened = counting(patch)
        (again,) = run_extract(trained, options_of(tmp_path, format="safetensors", **how))
        (plain,) = run_extract(trained, options_of(tmp_path, **how))
        assert not opened
    assert (again.path, plain.path) == (made.path, made.path.with_suffix(".npy"))
    assert np.array_equal(load_features(plain.path).values, again.values)
    run_extract(trained, options_of(tmp_path, format="safetensors", **how))
    other = load_trained(pretrained(tmp_path / "other.pt", data=str(videos), seed=9))
    (new,) = run_extract(other, options_of(tmp_path, **how))
    assert not made.path.exists()  # whose JSON would be that of the other network
    assert new.order["network"] == fingerprint(other.backbone)


def extracted_by_rank(rank, checkpoint, out):
    if rank == 1:  # it reads when the first has long gone on
        load = extract_module.load_features
        extract_module.load_features = lambda path: (time.sleep(1), load(path))[1]
    options = options_of(out, stage="gap", split="test", format="safetensors")
    (found,) = run_extract(load_trained(checkpoint), options)
    return torch.from_numpy(np.array(found.values))


def test_a_file_is_there_until_every_rank_has_read_it(checkpoint, tmp_path):
    pytest.importorskip("safetensors")
    first, second = run_ranks(extracted_by_rank, 2, str(checkpoint), str(tmp_path))
    assert torch.equal(first, second)
    assert {path.suffix for path in tmp_path.glob("features-*")} == {".json", ".safetensors"}


def test_safetensors_hold_the_same(checkpoint, tmp_path):
    pytest.importorskip("safetensors")
    trained = load_trained(checkpoint)
    (plain,) = run_extract(trained, options_of(tmp_path / "a", stage="gap", split="test"))
    (other,) = run_extract(
        trained, options_of(tmp_path / "b", stage="gap", split="test", format="safetensors")
    )
    assert other.path.suffix == ".safetensors"
    assert np.array_equal(load_features(other.path).values, plain.values)
    assert load_features(other.path).order == plain.order
    other.path.write_bytes(b"no rows of numbers")
    with pytest.raises(PacecoreError, match="not features of pacecore extract"):
        load_features(other.path)


def test_files_that_are_no_features(checkpoint, tmp_path):
    with pytest.raises(PacecoreError, match=r"none\.npy: features cannot be read: No such file"):
        load_features(tmp_path / "none.npy")
    np.save(tmp_path / "alone.npy", np.zeros((3, 64), np.float32))
    with pytest.raises(PacecoreError, match=r"alone\.json: features cannot be read: No such file"):
        load_features(tmp_path / "alone.npy")
    with pytest.raises(PacecoreError, match=r"a\.json: holds no rows; name the \.npy or \.safet"):
        load_features(tmp_path / "a.json")
    (test,) = run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test"))
    path = test.path
    path.with_suffix(".json").write_text(json.dumps({**test.order, "shape": [9, 9]}))
    with pytest.raises(PacecoreError, match=r"\[3, 64\] values, but the JSON says \[9, 9\]"):
        load_features(path)
    first, *others = test.order["videos"]
    changed = [
        {"videos": [{**first, "label": label}, *others]} for label in (1.5, True, 99, -1, "a")
    ]
    changed += [{"videos": [each, *others]} for each in ("a", {"label": 0}, {**first, "path": 3})]
    changed += [{"classes": each} for each in ("abc", {"a": 1}, [1], None, -1)]
    changed += [{"identity": None}, {"clips": "2"}, {"unreadable": []}]
    texts = [json.dumps({**test.order, **each}).encode() for each in changed]
    texts += [b"", b"[]", b"\xff", b"[" * 100_000]
    without = {name: value for name, value in test.order.items() if name != "videos"}
    texts += [json.dumps(without).encode()]
    for text in texts:
        path.with_suffix(".json").write_bytes(text)
        with pytest.raises(PacecoreError, match=rf"{path.stem}\.json: not of pacecore extract: "):
            load_features(path)
    for values in (np.zeros(()), np.zeros(3), np.zeros((3, 1, 64)), np.zeros((3, 64), np.int64)):
        np.save(path, values)
        shape = list(values.shape)
        path.with_suffix(".json").write_text(json.dumps({**test.order, "shape": shape}))
        with pytest.raises(PacecoreError, match=rf"{path.stem}\.npy: must be .*, of 2 axes, got "):
            load_features(path)
    for content in (path.read_bytes()[:-40], b"", b"no rows of numbers", checkpoint.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(PacecoreError, match="not features of pacecore extract"):
            load_features(path)


def test_a_folder_where_the_unfinished_rows_belong_is_told(checkpoint, tmp_path):
    (tmp_path / "features-gap-video-test.npy.part").mkdir()
    with pytest.raises(PacecoreError, match=r"test\.npy\.part: cannot be made: Is a directory"):
        run_extract(load_trained(checkpoint), options_of(tmp_path, stage="gap", split="test"))


def test_of_data_without_held_out_videos_all_is_the_training_videos(checkpoint, tmp_path):
    write_tiny(tmp_path / "set" / "one.mp4", 0, 1, 20)
    how = {"data": str(tmp_path / "set"), "held_out": "none"}
    made = run_extract(load_trained(checkpoint), options_of(tmp_path / "out", split="all", **how))
    assert [each.path.name for each in made] == ["features-p5-video-train.npy"]
    with pytest.raises(PacecoreError, match=r"set: no test video$"):
        run_extract(load_trained(checkpoint), options_of(tmp_path / "out", split="test", **how))


def test_of_a_test_split_alone_all_is_the_held_out_videos(checkpoint, tmp_path, videos):
    shutil.copytree(videos / "test", tmp_path / "set" / "test")
    options = options_of(tmp_path / "out", data=str(tmp_path / "set"))
    (features,) = run_extract(load_trained(checkpoint), options)
    assert features.path.name == "features-p5-video-test.npy"
    assert len(features.rows) == 3
    with pytest.raises(PacecoreError, match="set: no train video"):
        run_extract(load_trained(checkpoint), replace(options, split="train"))


def test_features_of_no_video_are_refused(checkpoint, tmp_path, monkeypatch):
    decoding(monkeypatch, lambda _: True)
    said = r"video-train\.npy: none of the 6 videos can be read; the first one: .*: cut short$"
    with pytest.raises(PacecoreError, match=said):
        run_extract(load_trained(checkpoint), options_of(tmp_path, split="train"))
    assert not list(tmp_path.glob("*.npy"))


def test_of_bare_weights_it_is_told_what_their_input_is_taken_for(videos, tmp_path, capsys):
    torch.save(build_backbone("r3d").state_dict(), tmp_path / "bare.pt")
    for path, input in (
        ("bare.pt", {}),
        ("told.pt", {"normalize": "unit", "channel_order": "bgr"}),
    ):
        convert(tmp_path / "bare.pt", tmp_path / "told.pt", input=input)
        options = options_of(tmp_path / "out", data=str(videos), split="test", clips=1, stage="gap")
        run_extract(load_trained(tmp_path / path), options)
        told = "bare.pt does not say --channel-order and --normalize" in capsys.readouterr().out
        assert told == (path == "bare.pt")


def test_bare_weights_name_no_videos(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "bare.pt")
    with pytest.raises(PacecoreError, match=r"bare\.pt: bare weights name no videos; name the dat"):
        run_extract(load_trained(tmp_path / "bare.pt"), options_of(tmp_path))
