"""What the rows show of a record: figures, times, shares and units, by hand."""

import pytest

from benchmarks.rows import rows_of

LIMITS = [{"threads": 1, "copy_bytes_per_second": 5e9}]


def test_a_clip_s_share_is_of_the_copy_in_the_processor_s_time():
    cases = [
        {"case": "copy", "threads": 1, "bytes_a_second": 8e9, "processor_bytes_a_second": 1e10},
        {"case": "paper", "contender": "pace_clip", "threads": 1, "ms_a_clip": 4.0},
        {"case": "paper", "contender": "kornia", "threads": 1, "ms_a_clip": 6.0},
    ]
    # 4 MB in each clip: 1 GB/s by the clock, 2 GB/s by the processor's time.
    cases[1] |= {"processor_ms_a_clip": 2.0, "bytes_a_second": 1e9}
    cases[2] |= {"processor_ms_a_clip": 5.0, "bytes_a_second": 4e6 / 6e-3}
    ours, other = rows_of("pace_clip", cases, [])
    assert (ours.value, ours.unit, ours.limit) == (2.0, "ms of a core a clip", "copy of 10.0 GB/s")
    assert (ours.share, other.share) == (pytest.approx(0.2), pytest.approx(0.08))
    assert (ours.times, other.times) == (1.0, 2.5)


def test_a_clip_s_share_without_the_processor_s_time_is_of_the_clock_s():
    ours = {"case": "paper", "contender": "pace_clip", "threads": 2, "ms_a_clip": 4.0}
    cases = [
        {"case": "copy", "threads": 2, "bytes_a_second": 8e9, "processor_bytes_a_second": 1e10},
        ours | {"processor_ms_a_clip": 7.0, "bytes_a_second": 1e9},
    ]
    (row,) = rows_of("pace_clip", cases, [])
    assert (row.value, row.unit, row.share) == (4.0, "ms a clip", 0.125)


def test_clips_from_a_store_are_held_against_what_they_read_and_write():
    rates = {"the authors' way": 50.0, "files": 100.0, "store": 500.0}
    rates |= {"files, decoding alone": 125.0}
    cases = [{"way": way, "clips_per_core_second": rate} for way, rate in rates.items()]
    rows = rows_of("data", cases, LIMITS)
    files, store = (next(row for row in rows if row.way == way) for way in ("files", "store"))
    assert (files.share, files.limit) == (0.8, "decoding alone, 125 clips/s")
    # Of a frame 12,544 places: one byte and half a one read, three float32 written.
    assert store.share == pytest.approx(500 * 16 * (18_816 + 150_528) / 5e9)
    assert store.limit == "copy of 5.00 GB/s"
    theirs = [row.times for row in rows if row.way == "the authors' way"]
    assert theirs == [2.0, 10.0]


def test_a_training_step_is_beside_the_bare_loop_with_what_it_waits_for():
    each = [(0.3, 0.5, 0.002), (0.4, 0.6, 0.005), (0.9, 0.9, 0.3)]
    names = ("bare_step_seconds", "step_seconds", "waiting_seconds")
    case = {"case": "overhead", "data": "files", "preset": "small", "batch_clips": 32}
    case |= {"overhead_share": 0.25, "rounds": [dict(zip(names, r, strict=True)) for r in each]}
    (row,) = rows_of("train_step", [case], [])
    assert (row.value, row.unit, row.limit) == (600.0, "ms", "bare loop, 400 ms")
    assert row.share == 0.8  # the bare loop takes 1 where ours takes 1.25
    assert "waiting for data 5.00 ms" in row.note


def test_the_10_clip_test_is_ours_and_the_network_alone_its_limit():
    case = {"backbone": "r21d", "preset": "small", "from": "files", "share_of_network_rate": 0.6}
    case["clips_per_second"] = {"test": 30.0, "network_alone": 50.0, "without_network": 90.0}
    (row,) = rows_of("evaluate", [case], [])
    assert (row.way, row.value, row.unit) == ("pacecore", 30.0, "clips/s")
    assert (row.limit, row.share) == ("network alone, 50.0 clips/s", 0.6)
