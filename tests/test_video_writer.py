import numpy as np
import pytest

from pacecore.errors import PacecoreError
from pacecore.video_writer import write_png, write_video
from tests.video_files import rgb_of


def test_png_comes_back_as_it_was(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (13, 31, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    (shown,) = rgb_of(tmp_path / "a.png")
    assert np.array_equal(shown, picture)
    with pytest.raises(PacecoreError, match=r"b\.png: cannot be written: No such file"):
        write_png(tmp_path / "none" / "b.png", picture)


def test_video_holds_its_frames_and_tells_bad_sizes(tmp_path):
    frames = [np.full((32, 48, 3), 10 * k, np.uint8) for k in range(12)]
    assert write_video(tmp_path / "a.mp4", frames) == 12
    shown = [frame.mean() for frame in rgb_of(tmp_path / "a.mp4")]
    assert shown == pytest.approx([10 * k for k in range(12)], abs=3)
    with pytest.raises(PacecoreError, match="height and width must be even, got 32 x 47"):
        write_video(tmp_path / "b.mp4", [frames[0][:, :47]])
    with pytest.raises(PacecoreError, match="at least one frame, got none"):
        write_video(tmp_path / "c.mp4", [])
    unfit = {"d": "Could not determine", "d.xyz": "Could not determine", "d.gif": "'gif' format"}
    for name, said in unfit.items():
        said = rf"{name}: cannot be written: {said} .*; take \.mp4$"
        with pytest.raises(PacecoreError, match=said):
            write_video(tmp_path / name, frames)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4"}


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, largest_file):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    paths = picture, video = tmp_path / "a.png", tmp_path / "a.mp4"
    for path in paths:
        path.write_bytes(b"old")
    for path, write in (
        (picture, lambda: write_png(picture, frames[0])),
        (video, lambda: write_video(video, frames)),
    ):
        words = rf"{path.name}: cannot be written: File too large"
        with largest_file(1000), pytest.raises(PacecoreError, match=words):
            write()
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}
