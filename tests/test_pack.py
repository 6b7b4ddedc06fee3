"""Packing a frame store: broken off and gone on with, on a full disk, of videos that do not fit."""

import json
import re
import resource
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pacecore.cli.data import data
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.frames import FrameFormat, Frames, concatenate
from pacecore.isolated import JobFailure, run_jobs
from pacecore.ops import pace_clip
from pacecore.resample import resample
from pacecore.store import FrameStore, StoreError, pack, store_bytes
from pacecore.video import decode_all
from tests.ranks import held_elsewhere
from tests.video_files import stacked, textured, three_kinds, write_pictures, write_video


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return probe_all(find_videos(three_kinds(tmp_path_factory.mktemp("videos"))))[0]


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    return pack(index, tmp_path_factory.mktemp("whole"), (24, 33), workers=1)[0]


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


@pytest.mark.parametrize(
    "size", [36, (36.5, 48), (36,), (36, 48, 3), (0, 8), (8, 8193), "24", None]
)
def test_a_size_that_no_frame_can_have_is_refused_before_a_folder_is_made(size, index, tmp_path):
    rule = re.escape(f"pack: size must be (height, width), each of 1 to 8192, got {size!r}")
    with pytest.raises(PacecoreError, match=rule):
        pack(index, tmp_path / "store", size, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_pack_killed_before_its_journal_had_its_name_goes_on(index, tmp_path):
    for name in (".lock", "frames.bin", ".4711.journal.jsonl", ".4711.index.json"):
        (tmp_path / name).touch()
    store, bad = pack(index, tmp_path, (8, 8), workers=1)
    assert (len(store), bad) == (len(index), [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".4711.notes").touch()
    with pytest.raises(StoreError, match=r"takes a new or an empty folder, this has \.4711\.notes"):
        pack(index, tmp_path / "other", (8, 8), workers=1)


def test_a_broken_off_pack_goes_on(index, whole, tmp_path, monkeypatch):
    import pacecore.store as module

    real = module._run

    def broken_off(jobs, workers):
        for count, item in enumerate(real(jobs, workers)):
            if count == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "_run", broken_off)
    with pytest.raises(KeyboardInterrupt):
        pack(index, tmp_path, whole.size, workers=1)
    with pytest.raises(StoreError, match="unfinished store; pack again"):
        FrameStore.open(tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"vid\xff')  # the line that was being written
    ran = []
    monkeypatch.setattr(module, "_run", lambda jobs, w: real(ran.append(len(jobs)) or jobs, w))
    with pytest.raises(StoreError, match="other videos or another size"):
        pack(index, tmp_path, (24, 34), workers=1)
    seen = []
    again, bad = pack(index, tmp_path, whole.size, workers=1, on_progress=lambda *a: seen.append(a))
    assert (ran, bad, seen) == ([2], [], [(2, 3), (3, 3)])
    assert torch.equal(again.whole().data, whole.whole().data)
    with pytest.raises(StoreError, match="finished store already"):
        pack(index, tmp_path, whole.size)


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
    spoilt = ([], {"video": "0"}, {"video": 99}, {"video": -1}, {"format": "x"}, {"format": None})
    for changes, line in zip(spoilt, lines[1:], strict=True):
        line = changes if isinstance(changes, list) else {**line, **changes}
        journal.write_text("".join(json.dumps(each) + "\n" for each in [lines[0], line]))
        assert packs_again() == [0, 1, 2, 3, 4, 5]
        journal.write_text("".join(json.dumps(each) + "\n" for each in lines))
    for line in lines[1:]:  # as it was before a line said what its file was
        del line["stamp"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert packs_again() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(module, "_run", real)
    again, bad = pack(index, tmp_path / "store", size, workers=1)
    anew, _ = pack(index, tmp_path / "anew", size, workers=1)
    assert not bad
    assert torch.equal(again.whole().data, anew.whole().data)


def test_a_kill_costs_no_video_that_was_packed(index, tmp_path):
    """Its line is in the journal when the next one is begun."""
    journal, lines = tmp_path / "journal.jsonl", []

    def noting(done, total):
        lines.append((done, len(journal.read_text().splitlines())))

    pack(index, tmp_path, (8, 8), workers=1, on_progress=noting)
    assert lines == [(1, 2), (2, 3), (3, 4)]  # and a head


def test_an_unfinished_store_whose_frames_were_cut_is_refused(index, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(index, tmp_path, (8, 8), workers=1, on_progress=stopped)
    frames = tmp_path / "frames.bin"
    frames.write_bytes(frames.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"frames\.bin of its unfinished store is gone or cut"):
        pack(index, tmp_path, (8, 8), workers=1)


def test_a_disk_that_fills_up_is_told_and_costs_no_frame(
    index, whole, tmp_path, monkeypatch, largest_file
):
    import pacecore.store as module

    real, before = module._run, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cut_the_last_frame(jobs, workers):
        limit = store_bytes(index, whole.size) - 100  # of its record, part of it would be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        yield from real(jobs, workers)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", cut_the_last_frame)
        try:
            with pytest.raises(StoreError, match="store: cannot be written: File too large"):
                pack(index, tmp_path / "store", whole.size, workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert len(journal.splitlines()) == 3  # the head, and the videos that found room
    words = "journal.jsonl: cannot be written: File too large"
    with largest_file(len(journal) - 1), pytest.raises(PacecoreError, match=words):
        pack(index, tmp_path / "store", whole.size, workers=1)
    ran = []
    monkeypatch.setattr(module, "_run", lambda jobs, w: real(ran.append(len(jobs)) or jobs, w))
    again, bad = pack(index, tmp_path / "store", whole.size, workers=1)
    assert ran == [1]
    assert (bad, again.verify()) == ([], [])
    assert torch.equal(again.whole().data, whole.whole().data)


def test_one_process_at_a_time_packs_into_a_folder(index, tmp_path):
    with held_elsewhere(tmp_path / ".lock") as other:
        words = rf"process {other} on .* is packing into it; wait or stop it"
        with pytest.raises(PacecoreError, match=words):
            pack(index, tmp_path, (24, 33), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    pack(index, tmp_path, (24, 33), workers=1)


def test_bad_videos_are_left_out_and_named(index, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one.avi", "two.avi", "zero.avi"):
        (videos / name).write_bytes((Path(index.root) / "a" / "one.avi").read_bytes())
    index, _ = probe_all(find_videos(videos))
    (videos / "two.avi").write_bytes(b"gone bad since")
    store, bad = pack(index, tmp_path / "store", (24, 32), workers=1)
    assert len(store) == 2
    # Held whole there are rows of nothing between the two.
    shown = [
        pace_clip(
            store.whole(),
            torch.from_numpy(store.rows(video, np.arange(4))[None].astype(np.int32)),
            torch.zeros(1, 3, dtype=torch.int32),
            resize=(24, 32),
            crop_size=(24, 24),
        )
        for video in range(2)
    ]
    assert torch.equal(*shown)
    assert [(Path(b.path).name, b.reason.split(":")[0]) for b in bad] == [
        ("two.avi", "cannot be read")
    ]
    (videos / "one.avi").write_bytes(b"")
    (videos / "zero.avi").write_bytes(b"")
    with pytest.raises(StoreError, match="none of the 3 videos decodes; the first, "):
        pack(index, tmp_path / "none", (24, 32), workers=1)


def test_a_video_that_ends_its_process_or_hangs_is_left_out_and_not_waited_for_again(
    index, tmp_path, monkeypatch
):
    def broken_off(*_):
        yield 1, JobFailure("took longer than 600 s")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pacecore.store.run_jobs", broken_off)
        with pytest.raises(KeyboardInterrupt):
            pack(index, tmp_path, (8, 8))
    store, bad = pack(index, tmp_path, (8, 8), workers=1)
    first, lost, last = index.entries
    assert [(each.path, each.reason) for each in bad] == [(lost.path, "took longer than 600 s")]
    assert [entry.name for entry in store.index.entries] == [first.name, last.name]


def test_of_videos_that_none_can_be_counted_the_first_is_named(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one.avi", "two.avi"):
        (videos / name).write_bytes(b"no video")
    result = CliRunner().invoke(data, ["pack", str(videos), str(tmp_path / "store")])
    said = f"{videos}: none of the 2 videos can be read; the first one: {videos / 'one.avi'}: "
    assert isinstance(result.exception, PacecoreError)
    assert str(result.exception).startswith(said)
    assert not list((tmp_path / "store").iterdir())
    empty, _ = probe_all(find_videos(videos), 1)
    with pytest.raises(PacecoreError, match=r"^pack: the index has no videos$"):
        pack(empty, tmp_path / "store", (24, 32))


@pytest.mark.parametrize(
    ("counted", "reason"),
    [(15, "has more than the 15 frames counted"), (25, "gave 20 of 25 frames")],
)
def test_a_video_of_another_length_than_counted_costs_no_other(
    index, tmp_path, monkeypatch, counted, reason
):
    """Also where the others are there when it comes."""

    def backwards(function, jobs, *_):
        yield from ((number, function(jobs[number])) for number in reversed(range(len(jobs))))

    monkeypatch.setattr("pacecore.store.run_jobs", backwards)
    first, *others = index.entries
    entries = (replace(first, num_frames=counted), *others)
    store, bad = pack(replace(index, entries=entries), tmp_path, (24, 33))
    assert [(each.path, each.reason) for each in bad] == [(first.path, reason)]
    assert [entry.name for entry in store.index.entries] == [entry.name for entry in others]
    for video, entry in enumerate(others):
        whole = concatenate(list(decode_all(entry.path, planar=True)))
        frames = stacked(store.decode(video, np.arange(entry.num_frames)))
        np.testing.assert_array_equal(frames, resample(whole, (24, 33)).numpy())


def test_a_video_whose_colours_change_their_meaning_within_is_left_out(
    index, tmp_path, monkeypatch
):
    """The store has one matrix and range for all its frames."""

    def changing(path, **how):
        for number, part in enumerate(decode_all(path, chunk=15, **how)):
            table = part.table.clone()
            table[:, 7] |= number * FrameFormat(full_range=True).code
            yield Frames(part.data, table)

    monkeypatch.setattr("pacecore.store.decode_all", changing)
    _, (bad,) = pack(index, tmp_path, (8, 8), workers=1)
    assert bad.path == index.entries[0].path  # the only one of two parts
    assert bad.reason == "changes its colour matrix, range or chroma siting within"


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
