"""Files that were tampered with: refused with a reason or read, never a crash, hang or leak."""

from collections import Counter

import pytest

from benchmarks.hostile import KINDS, mutations, read_hostile, run
from tests.video_files import write_video


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return [
        write_video(root / "a.avi", frames=20, properties={"gop_size": 6, "max_b_frames": 2}),
        write_video(root / "b.mp4", "libx264", frames=20, options={"g": "6"}),
        write_video(root / "c.webm", "libvpx-vp9", frames=10, options={"cpu-used": "8"}),
        write_video(root / "d.avi", "mjpeg", frames=10, pixel_format="yuvj420p"),
    ]


def test_mutated_files_are_read_or_refused(sources):
    record = run(sources, count=8 * len(KINDS), workers=2)
    assert record["faults"] == []
    outcomes = sum((Counter(counts) for counts in record["kinds"].values()), Counter())
    assert outcomes.total() == 8 * len(KINDS)
    assert outcomes["refused"] > 10
    assert outcomes["decodes"] > 5


def test_mutations_can_be_repeated(sources, tmp_path):
    first = [m.content() for m in mutations(sources, 20, str(tmp_path))]
    again = [m.content() for m in mutations(sources, 20, str(tmp_path))]
    assert first == again
    assert len(set(first)) == 20


def test_a_fault_is_told(sources, tmp_path, monkeypatch):
    import benchmarks.hostile as hostile

    def fails(path):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(hostile, "probe", fails)
    monkeypatch.setattr(hostile, "_limit_memory", lambda: None)
    mutation = next(mutations(sources, 1, str(tmp_path)))
    assert read_hostile(mutation) == "FAULT ZeroDivisionError: planted"
