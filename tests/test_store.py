"""The frame store: the frames that were packed, and nothing that was damaged since."""

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pacecore.datasets import find_videos, probe_all
from pacecore.frames import Frames, concatenate
from pacecore.isolated import run_jobs
from pacecore.ops.pace_clip import pace_clip
from pacecore.resample import resample
from pacecore.source import VideoFiles
from pacecore.store import FrameStore, StoreError, pack, pixel_bytes, record_bytes, store_bytes
from pacecore.video import decode_all
from tests.trees import tree
from tests.video_files import stacked, three_kinds

DATA = os.environ.get("PACECORE_DATA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return three_kinds(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def index(folder):
    return probe_all(find_videos(folder))[0]


@pytest.fixture(scope="module")
def store(index, tmp_path_factory):
    store, bad = pack(index, tmp_path_factory.mktemp("store"), (24, 33), workers=2)
    assert not bad
    return store


def torch_threads(_):
    return torch.get_num_threads()


@pytest.mark.parametrize("workers", [0, 1], ids=["its own process", "this process"])
def test_a_job_takes_one_core(workers):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert list(run_jobs(torch_threads, ["a job"], workers)) == [(0, 1)]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_serves_what_was_decoded_and_resampled(store, index):
    assert store.size == (24, 33)
    assert len(store) == 3
    for video, entry in enumerate(index.entries):
        assert store.num_frames(video) == entry.num_frames
        assert (str(store.path(video)), store.label(video)) == (entry.path, entry.label)
        whole = concatenate(list(decode_all(entry.path, planar=True)))
        expected = resample(whole, store.size).numpy()
        wanted = np.array([0, 1, 2, 5, entry.num_frames - 1])
        frames = store.decode(video, wanted)
        for got, number in zip(stacked(frames), wanted, strict=True):
            np.testing.assert_array_equal(got, expected[number])
        assert (frames.table[:, 7] == whole.table[0, 7]).all()


def test_whole_and_on_device_have_the_same_rows(store):
    on_device = store.to_device("cpu")
    whole = store.whole()
    for video in range(len(store)):
        (row,) = store.rows(video, np.array([4]))
        expected = stacked(store.decode(video, np.array([4])))[0]
        for frames in (whole, on_device):
            one = Frames(frames.data, frames.table[row : row + 1])
            np.testing.assert_array_equal(stacked(one)[0], expected)


def test_frames_are_served_in_any_order(store):
    whole = stacked(store.decode(0, np.arange(20)))
    for wanted in ([7, 6, 5, 8, 9, 0], [3, 3, 4]):
        frames = stacked(store.decode(0, np.array(wanted)))
        for got, number in zip(frames, wanted, strict=True):
            np.testing.assert_array_equal(got, whole[number])


def test_index_survives(store, index):
    again = store.index
    assert again.classes == index.classes == ("a", "b", "c")
    assert [e.name for e in again.entries] == [e.name for e in index.entries]


def test_a_store_is_found_in_the_home(store, monkeypatch):
    monkeypatch.setenv("HOME", str(store.folder.parent))
    place = f"~/{store.folder.name}"
    assert FrameStore.is_at(place)
    assert FrameStore.open(place).folder == store.folder


def write_listed(folder: Path, content: dict) -> None:
    """The index.json of a store, with the checksum that goes with it."""
    content.pop("checksum")
    whole = content | {"checksum": zlib.crc32(json.dumps(content).encode())}
    (folder / "index.json").write_text(json.dumps(whole))


def test_a_store_of_more_than_memory_opens(store, tmp_path):
    """Of which the frames file is one hole here, but for its length."""
    record = record_bytes(store.size)
    total = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // record
    content = json.loads((store.folder / "index.json").read_text())
    content["videos"] = [content["videos"][0] | {"first": total - 1, "frames": 1}]
    write_listed(tmp_path, content)
    with open(tmp_path / "frames.bin", "wb") as file:
        file.truncate(total * record)
    assert FrameStore.open(tmp_path).num_frames(0) == 1


def test_splits_survive(index, tmp_path):
    splits = ("train", "test", "train")
    entries = [replace(e, split=s) for e, s in zip(index.entries, splits, strict=True)]
    store, _ = pack(replace(index, entries=tuple(entries)), tmp_path, (8, 8), workers=1)
    assert tuple(entry.split for entry in store.index.entries) == splits


def test_size_is_told_beforehand(store, index):
    assert record_bytes((24, 33)) % 64 == 0
    assert record_bytes((24, 33)) >= pixel_bytes((24, 33)) + 4 == 24 * 33 + 2 * 12 * 17 + 4
    size = (store.folder / "frames.bin").stat().st_size
    assert size == store_bytes(index, (24, 33)) == 41 * record_bytes((24, 33))


def test_resample_by_hand():
    """4 x 4 to 2 x 2: luma at 0.5 and 2.5; chroma of the one sample left in each plane."""
    luma = np.arange(0, 160, 10, dtype=np.uint8)
    chroma = np.array([0, 100, 20, 120], dtype=np.uint8)
    data = torch.from_numpy(np.concatenate([luma, chroma, chroma]))

    def planes(centred: bool) -> list[int]:
        table = torch.tensor([[0, 16, 20, 4, 4, 4, 2, 1 | 16 * centred]])
        return resample(Frames(data, table), (2, 2))[0].tolist()

    # Rows of chroma: output lies at luma 1.5, chroma (1.5 - 0.5) / 2 = 0.5. Columns: the sample
    # belongs to column 0 of 2, luma 0.5 of 4, chroma 0.25 if on even ones; if centred, 0.5.
    assert planes(False) == [25, 45, 105, 125, 35, 35]
    assert planes(True) == [25, 45, 105, 125, 60, 60]
    # 2 x 2 to 4 x 4, beyond whose outermost samples there are none.
    small = Frames(
        torch.tensor([0, 100, 20, 120, 50, 60], dtype=torch.uint8),
        torch.tensor([[0, 4, 5, 2, 2, 2, 1, 1]]),
    )
    enlarged = [
        20 * row + 100 * column for row in (0, 0.25, 0.75, 1) for column in (0, 0.25, 0.75, 1)
    ]
    assert resample(small, (4, 4))[0].tolist() == enlarged + 4 * [50] + 4 * [60]


def test_resample_to_the_same_size_changes_nothing(folder):
    frames = next(decode_all(folder / "b" / "two.mkv"))
    for got, expected in zip(resample(frames, (37, 51)).numpy(), stacked(frames), strict=True):
        np.testing.assert_array_equal(got, expected)


def clips(frames: Frames, size: tuple[int, int]) -> torch.Tensor:
    plan = torch.arange(len(frames), dtype=torch.int32)[None]
    crop = torch.zeros(1, 3, dtype=torch.int32)
    return pace_clip(frames, plan, crop, resize=size, crop_size=size)


@pytest.mark.skipif(not DATA, reason="PACECORE_DATA names no folder of real videos")
def test_frames_are_resampled_alike_wherever_their_bytes_lie(folder):
    frames = next(decode_all(folder / "b" / "two.mkv"))
    expected = resample(frames, (18, 24))
    later = torch.cat([torch.full((999,), 255, dtype=torch.uint8), frames.data])[999:]
    apart = torch.stack([frames.data, 255 - frames.data], dim=1)[:, 0]
    for data in (later, apart):
        assert torch.equal(resample(Frames(data, frames.table), (18, 24)), expected)


def test_clips_from_the_store_are_those_from_the_files(tmp_path):
    """Up to the rounding of the samples that the store keeps, and chroma at half the new size."""
    paths = sorted(Path(DATA).glob("ut_interaction/kick/*.avi"))[:2]
    for number, path in enumerate(paths):
        os.symlink(path, tmp_path / f"{number}.avi")
    index, _ = probe_all(find_videos(tmp_path))
    size = (64, 86)
    store, _ = pack(index, tmp_path / "store", size, workers=1)
    files = VideoFiles(index)
    for video in range(len(index)):
        wanted = np.arange(0, 32, 2)
        from_store = clips(store.decode(video, wanted), size)
        from_files = clips(files.decode(video, wanted), size)
        apart = (from_store - from_files).abs()
        grey = (from_store - from_files).mul(
            torch.tensor([0.299, 0.587, 0.114])[:, None, None, None]
        )
        assert apart.mean() < 1.5
        assert grey.sum(1).abs().quantile(0.99) < 1.0


def test_a_store_names_its_videos_by_their_whole_paths(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    index = probe_all(find_videos(folder.name))[0]
    store, _ = pack(index, tmp_path, (8, 8), workers=1)
    monkeypatch.chdir(tmp_path)
    assert store.index.root == str(folder)
    assert store.path(0) == folder / "a" / "one.avi"


def test_a_store_whose_files_cannot_be_read_is_refused(index, tmp_path):
    pack(index, tmp_path, (8, 8), workers=1)
    frames, listed = tmp_path / "frames.bin", tmp_path / "index.json"
    content = json.loads(listed.read_text())
    content["videos"] = [content["videos"][0] | {"frames": 1}]
    write_listed(tmp_path, content)
    frames.unlink()
    tree(frames, *(f"what makes the folder larger than a frame {n}" for n in range(20)))
    with pytest.raises(StoreError, match=r": frames\.bin cannot be read: Is a directory"):
        FrameStore.open(tmp_path)
    listed.unlink()
    listed.mkdir()
    with pytest.raises(StoreError, match=r": index\.json cannot be read: Is a directory$"):
        FrameStore.open(tmp_path)
    listed.rmdir()
    os.mkfifo(listed)
    with pytest.raises(StoreError, match=r": index\.json cannot be read: it is no file$"):
        FrameStore.open(tmp_path)


def test_damage_is_refused(index, tmp_path):
    store, _ = pack(index, tmp_path / "store", (24, 33), workers=1)
    file = tmp_path / "store" / "frames.bin"
    raw = bytearray(file.read_bytes())
    (row,) = store.rows(1, np.array([3]))
    raw[row * record_bytes((24, 33)) + 77] ^= 1
    file.write_bytes(raw)
    store = FrameStore.open(tmp_path / "store")
    store.decode(1, np.array([0, 1, 2, 4]))
    with pytest.raises(StoreError, match=r"frame 3 of .*two\.mkv is damaged"):
        store.decode(1, np.array([2, 3]))
    assert [Path(bad.path).name for bad in store.verify()] == ["two.mkv"]
    held = store.to_device("cpu")
    with pytest.raises(StoreError, match=r"frame 3 of .*two\.mkv is damaged"):
        store.rows(1, np.array([2, 3]))
    (row,) = store.rows(1, np.array([4]))  # those beside it are held and given
    one = Frames(held.data, held.table[row : row + 1])
    np.testing.assert_array_equal(stacked(one), stacked(store.decode(1, np.array([4]))))
    file.write_bytes(raw[:-1])
    with pytest.raises(StoreError, match="bytes of"):
        FrameStore.open(tmp_path / "store")
    content = json.loads((tmp_path / "store" / "index.json").read_text())
    file.write_bytes(raw)
    later = json.dumps(content | {"pacecore_store": 2})
    del content["checksum"]
    for text in (json.dumps(content), later, "{", "[]", "[" * 100_000):
        (tmp_path / "store" / "index.json").write_text(text)
        with pytest.raises(StoreError, match=r"index\.json is damaged"):
            FrameStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="no frame store"):
        FrameStore.open(tmp_path)


def test_an_index_with_another_digit_is_refused(index, tmp_path):
    """Of a place a digit would give the frames of another video, whose checksums hold."""
    pack(index, tmp_path, (8, 8), workers=1)
    listed = tmp_path / "index.json"
    text = listed.read_text()
    for said, other in (('"first": 20', '"first": 10'), ('"label": 0', '"label": 1')):
        assert said in text
        listed.write_text(text.replace(said, other, 1))
        with pytest.raises(StoreError, match=r"index\.json is damaged \(it has a wrong checksum\)"):
            FrameStore.open(tmp_path)


def test_frames_that_are_not_there(store):
    for wanted in ([20], [-1], []):
        with pytest.raises(StoreError, match="has 20 frames"):
            store.decode(0, np.array(wanted, dtype=np.int64))


def test_frames_are_asked_for_by_whole_numbers(store):
    for wanted in (np.array([1.7]), [True], ["1"], []):
        with pytest.raises(StoreError, match="wanted frames must be whole numbers, got "):
            store.decode(0, wanted)
    assert len(store.decode(0, [3, 1])) == 2


def test_store_index_is_json(store):
    content = json.loads((store.folder / "index.json").read_text())
    assert content["size"] == [24, 33]
    assert content["bad"] == []
