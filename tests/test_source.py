"""What the loader asks of a source, answered alike from files and from the store."""

import numpy as np
import pytest

from pacecore.datasets import find_videos, probe_all
from pacecore.source import Subset, VideoFiles
from pacecore.store import pack
from pacecore.video import VideoError
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
    for source in (files, store):
        assert len(source) == 2
        assert [source.num_frames(video) for video in (0, 1)] == [12, 9]
        assert [source.label(video) for video in (0, 1)] == [0, 1]
        assert source.classes == Subset(source, [1]).classes == ("a", "b")
        assert [source.path(video).name for video in (0, 1)] == ["1.avi", "2.mp4"]
        frames = source.decode(1, np.array([2, 5]))
        expected = files.decode(1, np.array([2, 5]))
        for row in (0, 1):
            np.testing.assert_array_equal(luma(frames, row), luma(expected, row))


def test_a_part_of_a_part_is_a_part_of_the_whole(index, tmp_path):
    store, _ = pack(index, tmp_path / "store", (48, 64), workers=1)
    part = Subset(Subset(store, [1, 0]), [1])
    assert part.source is store
    assert (len(part), part.path(0), part.label(0)) == (1, store.path(0), 0)
    assert part.num_frames(0) == 12
    assert part.rows(0, np.array([4, 7])).tolist() == store.rows(0, np.array([4, 7])).tolist()
    frames, expected = (each.decode(0, np.array([4, 7])) for each in (part, store))
    np.testing.assert_array_equal(luma(frames, 1), luma(expected, 1))


def test_a_counted_file_is_not_scanned_again(index, monkeypatch):
    monkeypatch.setattr("pacecore.video.decoding.probe", lambda path: pytest.fail("scanned again"))
    files = VideoFiles(index)
    assert files.num_frames(0) == 12
    assert len(files.decode(0, np.array([3]))) == 1


def test_a_file_that_went_bad_is_named_when_it_is_used(tmp_path):
    path = write_video(tmp_path / "bad.avi", frames=3)
    files = VideoFiles(probe_all(find_videos(tmp_path), 1)[0])
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.avi: cannot be read"):
        files.decode(0, np.array([0]))
