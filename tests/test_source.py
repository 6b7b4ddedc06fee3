"""What the loader asks of a source, answered alike from files and from the store."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pacecore.datasets import find_videos, probe_all
from pacecore.source import Subset, VideoFiles
from pacecore.store import FrameStore, pack
from pacecore.video import VideoError, probe
from tests.video_files import luma, write_video


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name, frames in (("a/1.avi", 12), ("b/2.mp4", 9)):
        (root / name).parent.mkdir()
        write_video(root / name, "mpeg4" if frames == 12 else "libx264", frames=frames)
    return probe_all(find_videos(root), 1)[0]


def test_files_and_store_answer_alike(index, tmp_path):
    files = VideoFiles(index)
    store, _ = pack(index, tmp_path / "store", (48, 64), workers=1)
    copies = [pickle.loads(pickle.dumps(source)) for source in (files, store)]
    for source in (files, store, *copies):
        assert len(source) == 2
        assert [source.num_frames(video) for video in (0, 1)] == [12, 9]
        assert [source.label(video) for video in (0, 1)] == [0, 1]
        assert source.classes == Subset(source, [1]).classes == ("a", "b")
        assert [source.path(video).name for video in (0, 1)] == ["1.avi", "2.mp4"]
        frames = source.decode(1, np.array([2, 5]))
        expected = files.decode(1, np.array([2, 5]))
        for row in (0, 1):
            np.testing.assert_array_equal(luma(frames, row), luma(expected, row))
    assert isinstance(pickle.loads(pickle.dumps(store)), FrameStore)


def test_a_part_of_a_part_is_a_part_of_the_whole(index, tmp_path):
    store, _ = pack(index, tmp_path / "store", (48, 64), workers=1)
    part = Subset(Subset(store, [1, 0]), [1])
    assert part.source is store
    assert (len(part), part.path(0), part.label(0)) == (1, store.path(0), 0)
    assert (part.num_frames(0), part.first_row(0)) == (12, store.first_row(0))
    frames, expected = (each.decode(0, np.array([4, 7])) for each in (part, store))
    np.testing.assert_array_equal(luma(frames, 1), luma(expected, 1))


def test_a_file_is_scanned_once_and_only_when_used(index, monkeypatch):
    scans = []
    monkeypatch.setattr("pacecore.source.probe", lambda path: scans.append(path) or probe(path))
    entries = tuple(replace(entry, info=None) for entry in index.entries)
    files = VideoFiles(replace(index, entries=entries))
    assert files.num_frames(0) == 12
    assert scans == []  # the count was known
    files.decode(0, np.array([3]))
    files.decode(0, np.array([4]))
    assert [Path(path).name for path in scans] == ["1.avi"]


def test_a_bad_file_is_named_when_it_is_used(tmp_path):
    (tmp_path / "bad.avi").write_bytes(b"no video")
    files = VideoFiles(find_videos(tmp_path))
    for use in (files.num_frames, lambda video: files.decode(video, np.array([0]))):
        with pytest.raises(VideoError, match=r"bad\.avi: cannot be read"):
            use(0)
