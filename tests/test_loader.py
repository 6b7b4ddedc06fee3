import errno
import gc
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from pacecore.config import TrainOptions, from_mapping
from pacecore.device import clip_format
from pacecore.errors import PacecoreError
from pacecore.frames import concatenate
from pacecore.loader import ClipFormat, LoaderError, TrainingSchedule, load_batches, on_device
from pacecore.sampling import Sampling
from tests.sources import PacketSource

DEVICES = ("cpu", "cuda")

SAMPLING = Sampling(clip_frames=4, resize=(18, 20), crop=(16, 16), seed=5)
FORM = ClipFormat(resize=(18, 20), crop_size=(16, 16))


def schedule(counts=(30, 40, 50, 60, 70, 80, 90), **changes):
    return TrainingSchedule(SAMPLING, tuple(counts), **{"batch": 3, "repeat": 2, **changes})


def test_an_epoch_shows_every_video_as_often_as_said():
    plan = schedule()
    assert plan.steps_per_epoch == 5  # 14 videos in batches of at most 3
    for epoch in range(3):
        steps = range(epoch * 5, epoch * 5 + 5)
        shown = [each for step in steps for each in plan.videos(step)]
        assert Counter(video for _, video in shown) == dict.fromkeys(range(7), 2)
        assert {data_pass for data_pass, _ in shown} == {2 * epoch, 2 * epoch + 1}
        assert len(set(shown)) == 14
    orders = [tuple(plan.videos(step)) for step in range(0, 15, 5)]
    assert len(set(orders)) == 3
    assert [len(plan.videos(step)) for step in range(5)] == [2, 3, 3, 3, 3]


@pytest.mark.parametrize("name", ["batch", "repeat"])
def test_a_schedule_of_nothing_is_refused(name):
    with pytest.raises(PacecoreError, match=f"^{name} must be 1 or more, got 0$"):
        schedule(**{name: 0})


def test_fewer_than_no_workers_are_refused():
    """Which an option leaves open; worker_count gives a number."""
    with pytest.raises(PacecoreError, match=r"^workers must be 0 or more, got -1$"):
        next(load_batches(None, None, range(1), clip_frames=16, workers=-1))


def test_a_process_that_may_have_no_others_is_told(monkeypatch):
    monkeypatch.setattr("multiprocessing.process._current_process._config", {"daemon": True})
    words = r"^workers must be 0 in a daemonic process, as of a multiprocessing\.Pool, got 2$"
    with pytest.raises(PacecoreError, match=words):
        next(load_batches(None, None, range(1), clip_frames=16, workers=2))


def test_each_pass_over_the_videos_has_an_order_and_clips_of_its_own():
    plan = schedule((300,) * 12, batch=12)  # each step is a pass, each epoch two of them
    orders = [tuple(video for _, video in plan.videos(step)) for step in range(4)]
    assert len(set(orders)) == 4
    clips = [{each.video: each.plans for each in plan(step)} for step in range(4)]
    for one, other in combinations(clips, 2):
        for video in range(12):
            for a, b in zip(one[video], other[video], strict=True):
                alike = np.array_equal(a.frame_numbers, b.frame_numbers)
                assert not (alike and np.array_equal(a.crop, b.crop))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_batch_out(world):
    whole = schedule(batch=4)
    for step in range(8):
        parts = [schedule(batch=4, rank=rank, world=world).share(step) for rank in range(world)]
        assert [each for part in parts for each in part] == whole.videos(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(parts)
    with pytest.raises(PacecoreError, match=r"each of 9 ranks a video, .* has 3"):
        schedule(batch=4, world=9)


def equal(one, other):
    names = ("plan", "crop", "jitter", "jitter_order", "labels", "videos")
    return torch.equal(one.frames.data, other.frames.data) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in names
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(workers):
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    alone = list(load_batches(source, plan, range(6), clip_frames=4, workers=0))
    spread = list(load_batches(source, plan, range(2, 6), clip_frames=4, workers=workers))
    assert [batch.number for batch in spread] == [2, 3, 4, 5]
    assert all(equal(a, b) for a, b in zip(alone[2:], spread, strict=True))
    assert alone[0].labels.numel() == 4  # two videos, two views


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_may_be_asked_for_again_and_by_any_whole_number(workers):
    """Also where a process has made it twice before it is asked for once."""
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    (alone,) = load_batches(source, plan, [1], clip_frames=4, workers=0)
    for numbers in ([1] * 4, np.ones(3, dtype=np.int64)):
        again = load_batches(
            source, plan, numbers, clip_frames=4, workers=workers, timeout_seconds=20
        )
        first = next(again)
        time.sleep(0.5)
        found = [first, *again]
        assert len(found) == len(numbers)
        assert all(equal(alone, batch) for batch in found)


def test_batches_on_a_device_are_the_same(device):
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    here = list(load_batches(source, plan, range(6), clip_frames=4, workers=0))
    pinned = device.type == "cuda"
    there = load_batches(source, plan, range(6), clip_frames=4, workers=1, pin_memory=pinned)
    count = 0
    for one, other in zip(here, on_device(there, device), strict=True):
        assert other.frames.data.device.type == device.type
        assert equal(one, other._map(torch.Tensor.cpu))
        count += 1
    assert count == 6


def test_rows_show_the_frames_that_were_planned():
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    (batch,) = load_batches(source, plan, [1], clip_frames=4, workers=0)
    index = 0
    for request in plan(1):
        for each in request.plans:
            bars = [(frame + request.video) % 24 for frame in each.frame_numbers]
            for row, bar in zip(batch.plan[index].tolist(), bars, strict=True):
                start = int(batch.frames.table[row, 0])
                pixels = batch.frames.data[start : start + 20 * 24 * 3].view(20, 24, 3)
                assert pixels[0, :, 0].argmax() == bar
            assert batch.labels[index] == each.label
            index += 1
    assert batch.clips(FORM).shape == (6, 3, 4, 16, 16)


def test_the_options_scale_and_order_of_channels_reach_the_clips():
    plain_sampling = replace(SAMPLING, jitter=None)
    plan = TrainingSchedule(plain_sampling, (30, 40), batch=2, repeat=1)
    (batch,) = load_batches(PacketSource((30, 40)), plan, [0], clip_frames=4, workers=0)

    def clips(**changes):
        size = {"resize": (18, 20), "crop": 16, "clip_frames": 4}
        options = from_mapping(TrainOptions, {**size, **changes})
        return batch.clips(clip_format(options, torch.device("cpu")))

    plain = clips()
    assert plain.max() > 200
    assert torch.allclose(clips(normalize="unit"), plain / 255)
    assert torch.equal(clips(channel_order="bgr"), plain.flip(1))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1, 1)
    normal = (plain / 255 - mean) / std
    assert torch.allclose(clips(normalize="imagenet"), normal, atol=1e-4)
    turned = clips(normalize="imagenet", channel_order="bgr")
    assert torch.allclose(turned, normal.flip(1), atol=1e-4)


def test_an_unreadable_video_is_left_out_and_named():
    plan = schedule()
    source = PacketSource(plan.frame_counts, bad={3})
    batches = list(load_batches(source, plan, range(5), clip_frames=4, workers=1))
    assert sum(len(batch) for batch in batches) == 2 * 2 * 6
    bad = [each for batch in batches for each in batch.bad]
    assert bad == [("video-3.avi", "cut short")] * 2


class SlowSource(PacketSource):
    def decode(self, video, wanted):
        time.sleep(60)


class DyingSource(PacketSource):
    def decode(self, video, wanted):
        if video == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(video, wanted)


def test_a_worker_that_hangs_or_dies_ends_with_its_file_named():
    plan = schedule()
    slow = SlowSource(plan.frame_counts)
    with pytest.raises(LoaderError, match=r"timed out after 1.*reading video-\d\.avi"):
        next(load_batches(slow, plan, range(5), clip_frames=4, workers=1, timeout_seconds=1))
    dying = DyingSource(plan.frame_counts)
    with pytest.raises(LoaderError, match=r"(killed by|exited unexp).*reading video-3\.avi"):
        list(load_batches(dying, plan, range(5), clip_frames=4, workers=1))


def test_workers_end_with_their_batches():
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    others = set(_children())
    batches = load_batches(source, plan, range(100), clip_frames=4, workers=2)
    next(batches)
    children = set(_children()) - others
    assert len(children) >= 2
    batches.close()
    deadline = time.monotonic() + 60
    while set(_children()) & children and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(_children()) & children


def _children():
    mine = os.getpid()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == mine and fields[0] != "Z":
            yield name


def test_numpy_frame_numbers_need_not_be_sorted():
    backwards = Sampling(clip_frames=4, resize=(18, 20), crop=(16, 16), reverse="label")
    plan = TrainingSchedule(backwards, (60, 70), batch=2, repeat=1)
    (batch,) = load_batches(PacketSource((60, 70)), plan, [0], clip_frames=4, workers=0)
    for row, each in zip(batch.plan, [p for r in plan(0) for p in r.plans], strict=True):
        order = np.argsort(np.argsort(each.frame_numbers, kind="stable"), kind="stable")
        assert np.array_equal(np.argsort(np.argsort(row.numpy(), kind="stable")), order)


def test_where_no_process_can_start_this_one_can_decode(monkeypatch, capfd):
    """As with a full /dev/shm, where processes have their locks."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    plan = schedule()
    source = PacketSource(plan.frame_counts)
    words = r"^decoding cannot begin, .*: No space left on device; workers 0 decodes in this one$"
    with pytest.raises(LoaderError, match=words):
        next(load_batches(source, plan, [0], clip_frames=4, workers=2))
    (batch,) = load_batches(source, plan, [0], clip_frames=4, workers=0)
    assert len(batch) == 4
    gc.collect()
    assert capfd.readouterr().err == ""


def test_frames_without_an_arena_travel_by_value(monkeypatch):
    """As where a system gives no address space for one; /dev/shm may be full."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = schedule()
    source = PacketSource(plan.frame_counts)
    (here,) = load_batches(source, plan, [0], clip_frames=4, workers=0)
    monkeypatch.setattr("pacecore.loader.Arena.make", lambda *_: None)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    (there,) = load_batches(source, plan, [0], clip_frames=4, workers=1)
    assert equal(here, there)


@pytest.mark.parametrize("damaged", [0, 1])
def test_resident_batches_name_rows_of_the_whole_source(damaged):
    """And leave out a video whose frames are damaged, as do those that decode it."""
    plan = schedule()
    whole = PacketSource(plan.frame_counts)
    parts = [whole.decode(video, np.arange(n)) for video, n in enumerate(whole.lengths)]

    class Held(PacketSource):
        def rows(self, video, wanted):
            self.decode(video, wanted)
            return sum(self.lengths[:video]) + wanted

    source = Held(plan.frame_counts, bad=[plan(2)[0].video] * damaged)
    (decoded,) = load_batches(source, plan, [2], clip_frames=4, workers=0)
    (rows,) = load_batches(source, plan, [2], clip_frames=4, workers=1, resident=True)
    assert rows.frames.data.numel() == 0
    assert rows.bad == decoded.bad
    assert len(rows.bad) == damaged
    assert rows.videos.tolist() == decoded.videos.tolist()
    assert torch.equal(rows.clips(FORM, concatenate(parts)), decoded.clips(FORM))


class Telling(PacketSource):
    """Leaves how its decoding process is scheduled in a file."""

    def decode(self, video, frames):
        words = f"{os.nice(0)} {os.sched_getscheduler(0)}\n"
        Path(os.environ["PACECORE_TEST_TOLD"]).write_text(words)
        return super().decode(video, frames)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="scheduling classes are Linux's")
@pytest.mark.parametrize("give_way", [False, True])
def test_decoders_that_give_way_are_scheduled_below_the_network(give_way, tmp_path, monkeypatch):
    told = tmp_path / "told"
    monkeypatch.setenv("PACECORE_TEST_TOLD", str(told))
    plan = schedule()
    batches = load_batches(
        Telling(plan.frame_counts), plan, [0], clip_frames=4, workers=1, give_way=give_way
    )
    assert len(list(batches)) == 1
    mine = [os.nice(0), os.sched_getscheduler(0)]
    wanted = [19, os.SCHED_BATCH] if give_way else mine
    assert list(map(int, told.read_text().split())) == wanted
    assert [os.nice(0), os.sched_getscheduler(0)] == mine
