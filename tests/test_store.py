"""The frame store: the frames that were packed, and nothing that was damaged since."""

import json
import os
import resource
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.frames import Frames, concatenate
from pacecore.isolated import run_jobs
from pacecore.ops.pace_clip import pace_clip
from pacecore.resample import resample
from pacecore.source import VideoFiles
from pacecore.store import FrameStore, StoreError, pack, pixel_bytes, record_bytes, store_bytes
from pacecore.video import decode_all
from tests.ranks import held_elsewhere
from tests.trees import tree
from tests.video_files import planes_of, textured, write_pictures, write_video

DATA = os.environ.get("PACECORE_DATA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes: MPEG-4 in AVI, H.264 of an odd size, full-range JPEG."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("a", "b", "c"):
        (root / name).mkdir()
    write_video(root / "a" / "one.avi", frames=20, size=(48, 64))
    write_video(root / "b" / "two.mkv", "ffv1", frames=12, size=(37, 51))
    write_video(root / "c" / "three.avi", "mjpeg", frames=9, pixel_format="yuvj420p")
    return root


@pytest.fixture(scope="module")
def index(folder):
    return probe_all(find_videos(folder))[0]


@pytest.fixture(scope="module")
def store(index, tmp_path_factory):
    store, bad = pack(index, tmp_path_factory.mktemp("store"), (24, 33), workers=2)
    assert not bad
    return store


def stacked(frames: Frames) -> list[np.ndarray]:
    return [np.concatenate([p.ravel() for p in planes_of(frames, r)]) for r in range(len(frames))]


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


def test_index_survives(store, index):
    again = store.index
    assert again.classes == index.classes == ("a", "b", "c")
    assert [e.name for e in again.entries] == [e.name for e in index.entries]


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


@pytest.mark.parametrize(("frames", "seconds"), [(20, 600), (20_000, 2000)])
def test_a_long_video_has_longer_to_be_packed(frames, seconds, index, tmp_path, monkeypatch):
    limits = []

    def jobs(function, jobs, workers, timeout_seconds):
        limits.extend(map(timeout_seconds, jobs))
        return run_jobs(function, jobs, workers, timeout_seconds)

    monkeypatch.setattr("pacecore.store.run_jobs", jobs)
    one, *others = index.entries
    pack(replace(index, entries=(replace(one, num_frames=frames), *others)), tmp_path, (8, 8), 1)
    assert limits == [seconds, *[600] * len(others)]


def test_resample_to_the_same_size_changes_nothing(folder):
    frames = next(decode_all(folder / "b" / "two.mkv"))
    for got, expected in zip(resample(frames, (37, 51)).numpy(), stacked(frames), strict=True):
        np.testing.assert_array_equal(got, expected)


def clips(frames: Frames, size: tuple[int, int]) -> torch.Tensor:
    plan = torch.arange(len(frames), dtype=torch.int32)[None]
    crop = torch.zeros(1, 3, dtype=torch.int32)
    return pace_clip(frames, plan, crop, resize=size, crop_size=size)


@pytest.mark.skipif(not DATA, reason="PACECORE_DATA names no folder of real videos")
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


def test_a_broken_off_pack_goes_on(index, store, tmp_path, monkeypatch):
    import pacecore.store as module

    real = module._run

    def broken_off(jobs, workers):
        for count, item in enumerate(real(jobs, workers)):
            if count == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "_run", broken_off)
    with pytest.raises(KeyboardInterrupt):
        pack(index, tmp_path, store.size, workers=1)
    with pytest.raises(StoreError, match="unfinished store; pack again"):
        FrameStore.open(tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"vid')  # the line that was being written
    ran = []
    monkeypatch.setattr(module, "_run", lambda jobs, w: real(ran.append(len(jobs)) or jobs, w))
    with pytest.raises(StoreError, match="other videos or another size"):
        pack(index, tmp_path, (24, 34), workers=1)
    seen = []
    again, bad = pack(index, tmp_path, store.size, workers=1, on_progress=lambda *a: seen.append(a))
    assert (ran, bad, seen) == ([2], [], [(2, 3), (3, 3)])
    assert torch.equal(again.whole().data, store.whole().data)
    with pytest.raises(StoreError, match="finished store already"):
        pack(index, tmp_path, store.size)


def test_a_pack_goes_on_without_the_frames_of_files_that_changed(tmp_path, monkeypatch):
    import pacecore.store as module

    real, ran, size = module._run, [], (24, 32)
    videos = tmp_path / "videos"
    for number in (3, 4, 5):
        write_pictures(videos / str(number), 4)
    for number in range(3):
        write_video(videos / f"{number}.avi", frames=9)
    index = probe_all(find_videos(videos))[0]

    def broken_off(jobs, workers):
        ran[:] = [job.video for job in jobs]
        yield from islice(real(jobs, workers), 5)
        raise KeyboardInterrupt

    def packs_again() -> list[int]:
        with pytest.raises(KeyboardInterrupt):
            pack(index, tmp_path / "store", size, workers=1)
        return ran

    monkeypatch.setattr(module, "_run", broken_off)
    assert packs_again() == [0, 1, 2, 3, 4, 5]
    write_video(videos / "0.avi", pictures=[textured(30 - n, 48, 64) for n in range(9)])
    (videos / "4" / "img_1.jpg").write_bytes((videos / "4" / "img_4.jpg").read_bytes())
    assert packs_again() == [0, 4, 5]
    assert packs_again() == []
    journal = tmp_path / "store" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines[1:]:  # as it was before a line said what its file was
        del line["stamp"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert packs_again() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(module, "_run", real)
    again, bad = pack(index, tmp_path / "store", size, workers=1)
    anew, _ = pack(index, tmp_path / "anew", size, workers=1)
    assert not bad
    assert torch.equal(again.whole().data, anew.whole().data)


def test_a_store_names_its_videos_by_their_whole_paths(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    index = probe_all(find_videos(folder.name))[0]
    store, _ = pack(index, tmp_path, (8, 8), workers=1)
    monkeypatch.chdir(tmp_path)
    assert store.index.root == str(folder)
    assert store.path(0) == folder / "a" / "one.avi"
    content = json.loads((tmp_path / "index.json").read_text())
    for video in content["videos"]:  # as older ones have them
        video["path"] = os.path.relpath(video["path"], folder.parent)
    (tmp_path / "index.json").write_text(json.dumps(content | {"root": folder.name}))
    older = FrameStore.open(tmp_path)
    assert (older.index.root, str(older.path(0))) == (folder.name, f"{folder.name}/a/one.avi")
    assert torch.equal(older.whole().data, store.whole().data)


def test_a_store_whose_files_cannot_be_read_is_refused(index, tmp_path):
    pack(index, tmp_path, (8, 8), workers=1)
    frames, listed = tmp_path / "frames.bin", tmp_path / "index.json"
    content = json.loads(listed.read_text())
    content["videos"] = [content["videos"][0] | {"frames": 1}]
    listed.write_text(json.dumps(content))
    frames.unlink()
    tree(frames, *(f"what makes the folder larger than a frame {n}" for n in range(20)))
    with pytest.raises(StoreError, match=r": frames\.bin cannot be read: .*No such device"):
        FrameStore.open(tmp_path)
    listed.unlink()
    listed.mkdir()
    with pytest.raises(StoreError, match=r": index\.json cannot be read: Is a directory$"):
        FrameStore.open(tmp_path)


def test_a_disk_that_fills_up_is_told_and_costs_no_frame(
    index, store, tmp_path, monkeypatch, largest_file
):
    import pacecore.store as module

    real, before = module._run, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cut_the_last_frame(jobs, workers):
        limit = store_bytes(index, store.size) - 100  # of its record, part of it would be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        yield from real(jobs, workers)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", cut_the_last_frame)
        try:
            with pytest.raises(StoreError, match="store: cannot be written: File too large"):
                pack(index, tmp_path / "store", store.size, workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert len(journal.splitlines()) == 3  # the head, and the videos that found room
    words = "journal.jsonl: cannot be written: File too large"
    with largest_file(len(journal) - 1), pytest.raises(PacecoreError, match=words):
        pack(index, tmp_path / "store", store.size, workers=1)
    ran = []
    monkeypatch.setattr(module, "_run", lambda jobs, w: real(ran.append(len(jobs)) or jobs, w))
    again, bad = pack(index, tmp_path / "store", store.size, workers=1)
    assert ran == [1]
    assert (bad, again.verify()) == ([], [])
    assert torch.equal(again.whole().data, store.whole().data)


def test_one_process_at_a_time_packs_into_a_folder(index, tmp_path):
    with held_elsewhere(tmp_path / ".lock") as other:
        words = rf"process {other} on .* is packing into it; wait or stop it"
        with pytest.raises(PacecoreError, match=words):
            pack(index, tmp_path, (24, 33), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    pack(index, tmp_path, (24, 33), workers=1)


def test_bad_videos_are_left_out_and_named(folder, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one.avi", "two.avi"):
        (videos / name).write_bytes((folder / "a" / "one.avi").read_bytes())
    index, _ = probe_all(find_videos(videos))
    (videos / "two.avi").write_bytes(b"gone bad since")
    store, bad = pack(index, tmp_path / "store", (24, 32), workers=1)
    assert len(store) == 1
    assert [(Path(b.path).name, b.reason.split(":")[0]) for b in bad] == [
        ("two.avi", "cannot be read")
    ]
    (videos / "one.avi").write_bytes(b"")
    with pytest.raises(StoreError, match="none of the 2 videos decodes; the first, "):
        pack(index, tmp_path / "none", (24, 32), workers=1)


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
    del content["classes"]
    file.write_bytes(raw)
    for text in (json.dumps(content), json.dumps(content | {"classes": "abc"}), "{"):
        (tmp_path / "store" / "index.json").write_text(text)
        with pytest.raises(StoreError, match=r"index\.json is damaged"):
            FrameStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="no frame store"):
        FrameStore.open(tmp_path)


def test_what_cannot_be_packed(index, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="not been counted"):
        store_bytes(find_videos(index.root), (24, 33))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(StoreError, match=r"needs .* bytes, 1,000 are free"):
        pack(index, tmp_path, (24, 33))
    assert not (tmp_path / "frames.bin").exists()
    used = tmp_path / "used"
    used.mkdir()
    (used / "last.pt").touch()
    with pytest.raises(StoreError, match=r"used: a store takes a new or an empty folder.*last\.pt"):
        pack(index, used, (24, 32))
    assert [path.name for path in used.iterdir()] == ["last.pt"]


def test_frames_that_are_not_there(store):
    for wanted in ([20], [-1], []):
        with pytest.raises(StoreError, match="has 20 frames"):
            store.decode(0, np.array(wanted, dtype=np.int64))


def test_store_index_is_json(store):
    content = json.loads((store.folder / "index.json").read_text())
    assert content["size"] == [24, 33]
    assert content["bad"] == []
