"""The samples of decoded frames: places, depths, matrices and ranges of what files hold."""

from pathlib import Path

import av
import numpy as np
import pytest

from pacecore.frames import FrameFormat, Matrix
from pacecore.planes import FrameSink
from pacecore.video import VideoError, decode, decode_all, probe
from tests.video_files import planes_of, rgb_of, textured, write_video


def test_a_palette_that_comes_with_the_first_packet(tmp_path):
    path = write_video(tmp_path / "a.mov", "rawvideo", frames=8, pixel_format="gray")
    assert probe(path).pixel_format == "pal8"
    for number, expected in enumerate(rgb_of(path)):
        frames = decode(path, np.array([number]))
        stride = int(frames.table[0, 5])
        rows = frames.data.numpy()[: 48 * stride].reshape(48, stride)
        np.testing.assert_array_equal(rows[:, : 3 * 64].reshape(48, 64, 3), expected)


@pytest.mark.parametrize("size", [(1, 2), (33, 65), (48, 63), (47, 64)])
def test_odd_sizes_keep_every_sample(size, tmp_path):
    path = write_video(tmp_path / "a.mkv", "ffv1", frames=3, size=size)
    frames = decode(path, np.arange(3))
    with av.open(str(path)) as container:
        for row, picture in enumerate(container.decode(video=0)):
            for ours, plane in zip(planes_of(frames, row), picture.planes, strict=True):
                theirs = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
                np.testing.assert_array_equal(ours, theirs[:, : ours.shape[1]])


def ramp(pixel_format: str, size: tuple[int, int] = (32, 64)) -> av.VideoFrame:
    """Luma 16 to 205 and chroma 40 to 229 in steps of 3 a luma column, chroma on even columns."""
    frame = av.VideoFrame(size[1], size[0], pixel_format)
    bits = next(
        (b for b in (9, 10, 12, 16) if f"p{b}" in pixel_format or f"y{b}" in pixel_format), 8
    )
    kind = np.uint8 if bits == 8 else np.uint16
    for index, plane in enumerate(frame.planes):
        row = np.zeros(plane.line_size // np.dtype(kind).itemsize, dtype=kind)
        columns = np.arange(plane.width) * (size[1] // plane.width)
        row[: plane.width] = (16 + 24 * (index > 0) + 3 * columns) << (bits - 8)
        plane.update(np.tile(row, plane.height).tobytes())
    return frame


@pytest.mark.parametrize(
    "pixel_format",
    [
        "yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p",
        "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p16le",
    ],
)  # fmt: skip
def test_finer_and_deeper_sources_keep_range_and_place(pixel_format, tmp_path):
    path = write_video(
        tmp_path / "a.mkv",
        "ffv1",
        size=(32, 64),
        pixel_format=pixel_format,
        pictures=[ramp(pixel_format) for _ in range(2)],
    )
    frames = decode(path, np.array([1]))
    assert frames.table[0, 7] == FrameFormat().code
    y, u, v = planes_of(frames, 0)
    shallow = "p1" not in pixel_format
    np.testing.assert_allclose(
        y, np.tile(16 + 3 * np.arange(64), (32, 1)), atol=0 if shallow else 1
    )
    chroma = np.tile(40 + 6 * np.arange(32), (16, 1))
    inner = slice(1, -1)  # beyond the edge there is nothing to average with
    for plane in (u, v):
        np.testing.assert_allclose(plane[:, inner], chroma[:, inner], atol=1)


def test_a_mean_of_chroma_is_rounded_not_cut():
    picture = av.VideoFrame(64, 32, "yuv444p")
    for plane in picture.planes:
        rows = np.full((32, plane.line_size), 100, np.uint8)
        rows[1::2] = 101
        plane.update(rows.tobytes())
    sink = FrameSink(1, "ffv1")
    sink.add(picture)
    for plane in planes_of(sink.frames(), 0)[1:]:
        assert (plane == 101).all()  # 100.5


def test_a_picture_that_is_larger_than_those_before_leaves_them():
    sink = FrameSink(2, "ffv1")
    for size in ((32, 64), (64, 64)):
        sink.add(ramp("yuv420p", size))
    y, u, v = planes_of(sink.frames(), 0)
    np.testing.assert_array_equal(y, np.tile(16 + 3 * np.arange(64), (32, 1)))
    np.testing.assert_array_equal(u, np.tile(40 + 6 * np.arange(32), (16, 1)))
    np.testing.assert_array_equal(u, v)


def code_of(path: Path) -> int:
    return int(decode(path, np.array([0])).table[0, 7])


def test_matrix_and_range_come_from_the_file(tmp_path):
    assert code_of(write_video(tmp_path / "a.avi")) == FrameFormat().code
    params = "fullrange=on:colormatrix=bt709"
    path = write_video(tmp_path / "b.mp4", "libx264", options={"x264-params": params})
    assert code_of(path) == FrameFormat(matrix=Matrix.BT709, full_range=True).code
    for name in ("bt2020nc", "bt2020c"):
        params = f"colormatrix={name}"
        path = write_video(tmp_path / "c.mp4", "libx264", options={"x264-params": params})
        assert code_of(path) == FrameFormat(matrix=Matrix.BT2020).code
    path = write_video(tmp_path / "d.mp4", "libx264", pixel_format="yuvj420p")
    assert code_of(path) == FrameFormat(full_range=True).code
    jpeg = FrameFormat(full_range=True, centre_sited=True).code
    assert code_of(write_video(tmp_path / "e.avi", "mjpeg", pixel_format="yuvj420p")) == jpeg
    assert code_of(write_video(tmp_path / "f.avi", "mjpeg", pixel_format="yuvj422p")) == jpeg
    sink = FrameSink(1, "mjpeg")
    sink.add(textured(0, 48, 64, "gray"))  # which av cannot write as JPEG
    assert sink.frames().table[0, 7] == jpeg
    centred = FrameFormat(centre_sited=True).code
    assert code_of(write_video(tmp_path / "h.3gp", "h263", size=(96, 128))) == centred


@pytest.mark.parametrize(
    ("codec", "pixel_format", "said", "expected"),
    [
        ("mjpeg", "yuvj444p", {}, FrameFormat(full_range=True)),  # whose chroma lies on each pixel
        ("ffv1", "gray", {"color_range": 1}, FrameFormat()),  # said to be limited
        ("ffvhuff", "gray", {}, FrameFormat(full_range=True)),
        ("jpegls", "gray", {}, FrameFormat(full_range=True)),
        ("h264", "yuv420p", {"colorspace": 7}, FrameFormat(matrix=Matrix.BT709)),  # SMPTE 240M
        ("ffv1", "yuv420p10le", {"colorspace": 10}, FrameFormat(matrix=Matrix.BT2020)),
    ],
)
def test_what_a_picture_says_of_itself(codec, pixel_format, said, expected):
    picture = ramp(pixel_format)
    for name, value in said.items():
        setattr(picture, name, value)
    sink = FrameSink(1, codec)
    sink.add(picture)
    assert sink.frames().table[0, 7] == expected.code


def test_a_video_whose_rows_run_upwards_is_refused(tmp_path):
    """As AMV's decoder has them."""
    path = write_video(tmp_path / "a.avi", "amv", pixel_format="yuvj420p")
    with pytest.raises(VideoError, match=r"a\.avi: its rows run upwards"):
        decode(path, np.array([0]))


def test_a_range_that_changes_within_the_video_is_followed():
    sink = FrameSink(3, "h264")
    for span in (1, 2, 1):
        picture = ramp("yuv420p")
        picture.color_range = span
        sink.add(picture)
    expected = [FrameFormat(full_range=full).code for full in (False, True, False)]
    assert sink.frames().table[:, 7].tolist() == expected


def test_a_matrix_that_yuv_here_has_not_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", options={"x264-params": "colormatrix=ycgco"})
    with pytest.raises(VideoError, match="YCgCo"):
        decode(path, np.array([0]))


def test_grey(tmp_path):
    for pixel_format, tolerance in (("gray", 0), ("gray10le", 1)):
        path = write_video(
            tmp_path / f"{pixel_format}.mkv",
            "ffv1",
            size=(32, 64),
            pixel_format=pixel_format,
            pictures=[ramp(pixel_format)],
        )
        frames = decode(path, np.array([0]))
        y, u, v = planes_of(frames, 0)
        np.testing.assert_allclose(y, np.tile(16 + 3 * np.arange(64), (32, 1)), atol=tolerance)
        assert (u == 128).all()
        assert (v == 128).all()
        assert frames.table[0, 7] == FrameFormat(full_range=True).code  # a still or lossless codec
    path = write_video(tmp_path / "h264.mp4", "libx264", pixel_format="gray")
    assert code_of(path) == FrameFormat().code  # a video codec: limited where nothing is said


def test_rgb_stays_rgb(tmp_path):
    picture = av.VideoFrame.from_ndarray(
        np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8), format="rgb24"
    )
    expected = picture.to_ndarray()
    path = write_video(
        tmp_path / "a.mov", "png", size=(17, 23), pixel_format="rgb24", pictures=[picture]
    )
    frames = decode(path, np.array([0]))
    offset, u, v, height, width, stride, chroma_stride, code = frames.table[0].tolist()
    assert (u, v, height, width, chroma_stride, code) == (0, 0, 17, 23, 0, 0)
    rows = frames.data.numpy()[offset:][: stride * height].reshape(height, stride)
    np.testing.assert_array_equal(rows[:, : 3 * width].reshape(17, 23, 3), expected)
    sink = FrameSink(1, "jpeg2000")
    sink.add(picture.reformat(format="xyz12le"))
    assert sink.frames().table[0, 7] == 0


def test_rgb_is_yuv_in_every_part_where_only_planes_serve(tmp_path):
    path = write_video(tmp_path / "a.mov", "png", frames=7, size=(16, 20), pixel_format="rgb24")
    codes = [part.table[:, 7].tolist() for part in decode_all(path, chunk=3, planar=True)]
    code = FrameFormat(full_range=True).code
    assert codes == [[code] * 3, [code] * 3, [code]]


def test_rgb_as_yuv_where_only_planes_serve(tmp_path):
    columns = np.arange(0, 240, 4)
    picture = np.stack([columns, columns[::-1], np.full(60, 90)], 1).astype(np.uint8)
    picture = av.VideoFrame.from_ndarray(np.tile(picture, (20, 1, 1)), format="rgb24")
    red, green, blue = np.moveaxis(picture.to_ndarray().astype(float), 2, 0)
    path = write_video(
        tmp_path / "a.mov", "png", size=(20, 60), pixel_format="rgb24", pictures=[picture]
    )
    frames = next(decode_all(path, planar=True))
    assert frames.table[0, 7] == FrameFormat(full_range=True).code
    y, u, v = planes_of(frames, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(y, grey, atol=1.5)
    even = np.s_[::2, 2:-2:2]
    np.testing.assert_allclose(u[:, 1:-1], (128 + (blue - grey) / 1.772)[even], atol=1.5)
    np.testing.assert_allclose(v[:, 1:-1], (128 + (red - grey) / 1.402)[even], atol=1.5)
