"""Frames out of files: the ones asked for, as the decoder gives them, whatever the container."""

import os
import shutil
import struct
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pacecore.frames import FrameFormat
from pacecore.sampling import Sampling, centre_plan
from pacecore.video import VideoError, decode, decode_all, probe, probing
from pacecore.video.decoding import _decode_from_start
from pacecore.video_writer import write_png
from tests.video_files import (
    luma,
    reference_luma,
    textured,
    write_fields,
    write_pictures,
    write_video,
)

DATA = os.environ.get("PACECORE_DATA")
REAL = pytest.mark.skipif(not DATA, reason="PACECORE_DATA names no folder of real videos")

X264 = {"preset": "veryfast"}
# name: file ending, codec, keywords of write_video, whether packets alone tell the frames
KINDS = {
    "avi_mpeg4": ("avi", "mpeg4", {"properties": {"gop_size": 6}}, True),
    "avi_mpeg4_b": (
        "avi",
        "mpeg4",
        {"properties": {"gop_size": 9, "max_b_frames": 2}, "options": {"b_strategy": "0"}},
        True,
    ),
    "mp4_mpeg4_b": ("mp4", "mpeg4", {"properties": {"gop_size": 9, "max_b_frames": 2}}, True),
    "mp4_h264": ("mp4", "libx264", {"options": X264 | {"g": "8", "bf": "3"}}, True),
    "mkv_h264_open": (
        "mkv",
        "libx264",
        {"options": X264 | {"x264-params": "keyint=8:open-gop=1:bframes=3:b-adapt=0"}},
        True,
    ),
    "mp4_h264_variable": (
        "mp4",
        "libx264",
        {"options": X264 | {"g": "8"}, "stamps": [n * n // 7 + 2 * n for n in range(30)]},
        True,
    ),
    "mkv_h264_negative": (
        "mkv",
        "libx264",
        {
            "options": X264 | {"g": "8", "bf": "2"},
            "stamps": list(range(-10, 20)),
            "mux": {"avoid_negative_ts": "disabled"},
        },
        False,
    ),
    "mp4_h264_late": (
        "mp4",
        "libx264",
        {"options": X264 | {"g": "8", "bf": "2"}, "stamps": list(range(100, 130))},
        True,
    ),
    "avi_h264_b": ("avi", "libx264", {"options": X264 | {"g": "8", "bf": "2"}}, False),
    "ts_h264": ("ts", "libx264", {"options": X264 | {"g": "8", "bf": "2"}}, False),
    "flv_h264": ("flv", "libx264", {"options": X264 | {"g": "8", "bf": "2"}}, False),
    "mp4_hevc": (
        "mp4",
        "libx265",
        {"options": {"preset": "ultrafast", "x265-params": "keyint=10:open-gop=1:log-level=0"}},
        True,
    ),
    "webm_vp8": (
        "webm",
        "libvpx",
        {"options": {"lag-in-frames": "10", "g": "12", "cpu-used": "4"}},
        True,
    ),
    "webm_vp9": (
        "webm",
        "libvpx-vp9",
        {"options": {"lag-in-frames": "10", "g": "12", "cpu-used": "8"}},
        True,
    ),
    "webm_av1": ("webm", "libsvtav1", {"options": {"preset": "12", "g": "8"}}, True),
    "mov_mjpeg": ("mov", "mjpeg", {"pixel_format": "yuvj420p"}, True),
    "avi_mjpeg": ("avi", "mjpeg", {"pixel_format": "yuvj420p"}, True),
    "avi_huffyuv": ("avi", "huffyuv", {"pixel_format": "yuv422p"}, True),
    "mkv_ffv1": ("mkv", "ffv1", {}, True),
    "mpg_mpeg2_b": ("mpg", "mpeg2video", {"properties": {"gop_size": 9, "max_b_frames": 2}}, False),
}


def check_every_way(path: Path, expected: list[np.ndarray]) -> None:
    """Every key frame and its neighbours, the end, runs at several paces, and everything."""
    info = probe(path)
    assert info.num_frames == len(expected)
    count = len(expected)
    near_keys = {k + d for k in info.timeline.key_frames.tolist() for d in (-1, 0, 1)}
    wanted = [[frame] for frame in sorted(near_keys | {count - 1}) if 0 <= frame < count]
    wanted += [sorted({(7 + step * pace) % count for step in range(16)}) for pace in (1, 2, 3, 4)]
    wanted += [[0, count - 1], list(range(count))]
    for numbers in wanted:
        frames = decode(path, np.array(numbers), info)
        assert len(frames) == len(numbers)
        for row, number in enumerate(numbers):
            np.testing.assert_array_equal(luma(frames, row), expected[number], f"frame {number}")


def each_alone(path: Path, count: int) -> None:
    """Each frame, asked for by itself and with all others, is that of a plain decode."""
    expected = reference_luma(path)
    info = probe(path)
    assert info.num_frames == count == len(expected)
    every = decode(path, np.arange(count), info)
    for number in range(count):
        assert np.array_equal(luma(every, number), expected[number])
        alone = decode(path, np.array([number]), info)
        assert np.array_equal(luma(alone, 0), expected[number]), number


def test_a_picture_of_vp8_that_is_only_referred_to_is_no_frame(tmp_path):
    """As an encoder of two passes makes them, packets of their own that nothing shows."""
    plain = write_video(tmp_path / "plain.webm", "libvpx", options={"g": "6", "cpu-used": "4"})
    path = tmp_path / "hidden.webm"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number in (4, 9, 20):
                content = bytearray(bytes(packet))
                content[0] &= ~0x10  # show_frame
                hidden = av.Packet(bytes(content))
                hidden.pts = hidden.dts = packet.pts - 10
                hidden.time_base, hidden.stream = packet.time_base, stream
                target.mux(hidden)
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 33
    expected = reference_luma(path)
    assert len(expected) == 30
    check_every_way(path, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_equal_a_decode_from_the_start(kind, tmp_path, monkeypatch):
    ending, codec, keywords, by_packets = KINDS[kind]
    path = write_video(tmp_path / f"video.{ending}", codec, **keywords)
    decodes = []
    from_start = "pacecore.video.decoding._decode_from_start"
    if ending != "ts":  # whose demuxer does not seek exactly
        monkeypatch.setattr(from_start, lambda *a: pytest.fail("seeking did not find its frames"))
    counted = "pacecore.video.probing.from_key_frames"
    from pacecore.timeline import from_key_frames

    monkeypatch.setattr(counted, lambda *a: decodes.append(1) or from_key_frames(*a))
    expected = reference_luma(path)
    assert len(expected) == 30
    check_every_way(path, expected)
    assert (not decodes) == by_packets
    frames = _decode_from_start(path, np.array([1, 7, 28]), probe(path).timeline)  # had it failed
    for row, number in enumerate((1, 7, 28)):
        np.testing.assert_array_equal(luma(frames, row), expected[number])
    whole = codec in ("mjpeg", "ffv1", "libsvtav1", "libvpx") or ending == "mpg"
    if not whole and "negative" not in kind:
        assert len(probe(path).timeline.key_frames) > 1  # seeking was put to the test


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("b_pictures", [0, 2])
def test_a_picture_refreshed_piece_by_piece_is_no_place_to_begin(tmp_path, suffix, b_pictures):
    """Marked as key by the encoder, and whole only some frames later."""
    params = f"keyint=16:intra-refresh=1:bframes={b_pictures}"
    path = tmp_path / f"a.{suffix}"
    write_video(path, "libx264", frames=60, options=X264 | {"x264-params": params})
    check_every_way(path, reference_luma(path))


@pytest.mark.parametrize(
    ("codec", "keywords"),
    [
        ("h263", {"size": (96, 128)}),
        ("svq1", {"pixel_format": "yuv410p"}),
        ("libx264", {}),
        ("libx265", {"options": {"preset": "ultrafast", "x265-params": "log-level=0"}}),
    ],
)
def test_packets_wrongly_marked_as_key_frames(codec, keywords, tmp_path):
    """MOV without its table of key frames says that every frame is one."""
    whole = write_video(tmp_path / "whole.mov", codec, properties={"gop_size": 9}, **keywords)
    path = tmp_path / "a.mov"
    path.write_bytes(whole.read_bytes().replace(b"stss", b"free"))
    check_every_way(path, reference_luma(path))


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("qtrle", "rgb24"), ("cinepak", "rgb24"), ("rpza", "rgb555le")]
)
def test_packets_wrongly_marked_as_key_frames_that_no_decoder_denies(codec, pixel_format, tmp_path):
    """Of rpza FFmpeg's own encoder marks them so."""
    properties = {"gop_size": 9}
    whole = tmp_path / "whole.mov"
    write_video(whole, codec, pixel_format=pixel_format, properties=properties)
    path = tmp_path / "a.mov"
    path.write_bytes(whole.read_bytes().replace(b"stss", b"free"))
    expected = next(decode_all(path))
    for number in range(len(expected)):
        got = decode(path, np.array([number]))
        assert torch.equal(packed(got, 0), packed(expected, number)), f"frame {number}"


def packed(frames, row):
    """The bytes of a frame in RGB."""
    first, _, _, height, _, stride, *_ = frames.table[row].tolist()
    return frames.data[first : first + height * stride]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_two_packets_may_be_the_fields_of_one_frame(tmp_path, suffix):
    path = write_fields(tmp_path / f"a.{suffix}")
    expected = reference_luma(path)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 2 * len(expected)
    check_every_way(path, expected)


@pytest.mark.parametrize(
    ("name", "codec", "keywords"),
    [
        ("a.mpg", "mpeg2video", {"options": {"g": "1"}}),
        ("b.mpg", "mpeg1video", {"options": {"g": "5", "bf": "3"}, "size": (64, 48)}),
    ],
)
def test_stamps_of_a_program_stream_are_other_ones_after_a_seek(name, codec, keywords, tmp_path):
    each_alone(write_video(tmp_path / name, codec, frames=40, **keywords), 40)


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
@pytest.mark.parametrize("moving", [True, False])
def test_interlaced_mpeg4_loses_b_pictures_after_a_seek(moving, suffix, tmp_path):
    """moving: pictures of a few bytes, whose packets tell no coding type for sure."""
    options = {"g": "5", "bf": "1"} if moving else {"g": "12", "bf": "2"}
    options["flags"] = "+ilme+ildct"
    stamps = np.cumsum(np.random.default_rng(0).integers(1, 4, 40)).tolist()
    how = {"pictures": moving_square(40)} if moving else {"frames": 40, "size": (64, 48)}
    if suffix != "avi" and not moving:
        how["stamps"] = stamps
    path = write_video(tmp_path / f"a.{suffix}", options=options, **how)
    each_alone(path, len(reference_luma(path)))


def moving_square(count: int) -> list[av.VideoFrame]:
    """Pictures that differ in the place of a square alone."""
    pictures = []
    for number in range(count):
        picture = av.VideoFrame(64, 48, "yuv420p")
        for index, plane in enumerate(picture.planes):
            shown = np.full((plane.buffer_size // plane.line_size, plane.line_size), 128, np.uint8)
            if index == 0:
                shown[8:24, number : number + 16] = 200
            plane.update(shown.tobytes())
        pictures.append(picture)
    return pictures


def test_an_index_that_counts_a_lost_frame(tmp_path):
    """AVI with one chunk's header gone: a seek goes by the index, a decode by the chunks."""
    path = write_video(tmp_path / "a.avi", "mjpeg", pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0)][10]
    data[place - 8 : place] = bytes(8)
    path.write_bytes(data)
    expected = reference_luma(path)
    assert len(expected) == 29
    check_every_way(path, expected)


def test_b_pictures_that_a_lost_picture_takes_along_are_no_others(tmp_path):
    """MPEG-4 tells its frames by counting: where some do not decode, the next are not theirs."""
    options = {"bf": "2", "g": "12", "b_strategy": "0"}
    whole, path = write_video(tmp_path / "a.mkv", options=options), tmp_path / "b.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number != 13:
                packet.stream = stream
                target.mux(packet)
    assert probe(path).num_frames > len(reference_luma(path))
    told = []
    for number in range(probe(path).num_frames):
        with suppress(VideoError):
            told.append(luma(decode(path, np.array([number])), 0).tobytes())
    assert len(told) > 20
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("kind", ["mp4_h264", "ts_h264"])  # the second is counted by decoding it
def test_a_file_is_open_as_long_as_it_is_asked(tmp_path, monkeypatch, kind):
    """PyAV from 19 on tells nothing of a stream whose file is closed."""
    ending, codec, keywords, _ = KINDS[kind]
    path = write_video(tmp_path / f"video.{ending}", codec, **keywords)
    asked = probing._info

    def only_while_open(container, *others):
        container.seek(0)  # of a closed one PyAV of any version refuses it
        return asked(container, *others)

    monkeypatch.setattr(probing, "_info", only_while_open)
    assert probe(path).num_frames == 30


def test_what_holds_arrays_is_compared_and_hashed_as_an_object(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path)
    plan = centre_plan(Sampling(), 30, 0, Fraction(1), 0)
    for one, other in ((probe(path), probe(path)), (plan, replace(plan))):
        assert [one, other].index(other) == 1
        assert len({one, other, one}) == 2


def test_variable_rate_is_told(tmp_path):
    stamps = [n * n // 7 + 2 * n for n in range(30)]
    assert probe(write_video(tmp_path / "a.mp4", "libx264", stamps=stamps)).variable_rate
    rare = probe(write_video(tmp_path / "a.mkv", "libx264", stamps=[25 * n for n in stamps]))
    assert rare.variable_rate
    assert rare.rate == Fraction(29, stamps[-1])  # a frame in six seconds, no 25 a second
    constant = probe(write_video(tmp_path / "b.mkv", "libx264", rate=30))
    assert not constant.variable_rate
    assert (constant.rate, constant.duration_seconds) == (30, 1.0)
    assert (constant.height, constant.width, constant.codec) == (48, 64, "h264")
    av1 = write_video(tmp_path / "c.webm", "libsvtav1", options={"preset": "12"}, frames=3)
    assert probe(av1).codec == "av1"


def test_a_change_of_size_within_the_video(tmp_path):
    """MPEG-TS pieces of two sizes in a row, as a broadcast does it."""
    parts = [
        write_video(tmp_path / f"{h}.ts", "mpeg2video", frames=8, size=(h, 64)) for h in (48, 64)
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    expected = reference_luma(both)
    assert {picture.shape for picture in expected} == {(48, 64), (64, 64)}
    check_every_way(both, expected)


def test_a_folder_of_pictures_is_a_video(tmp_path):
    folder = write_pictures(tmp_path / "frames", 12)
    info = probe(folder)
    assert (info.num_frames, info.height, info.width, info.codec) == (12, 48, 64, "mjpeg")
    frames = decode(folder, np.array([1, 9, 10]))
    for row, number in enumerate((2, 10, 11)):
        expected = reference_luma(folder / f"img_{number}.jpg")[0]
        np.testing.assert_array_equal(luma(frames, row), expected)
    assert sum(len(part) for part in decode_all(folder, chunk=5)) == 12
    for flow in ("x_00001.jpg", "flow_y_00001.jpg"):  # as TSN and MMAction2 lay beside frames
        shutil.copy(folder / "img_1.jpg", folder / flow)
    assert probe(folder).num_frames == 12
    (folder / "img_3.jpg").unlink()
    with pytest.raises(VideoError, match="frames: has 11 pictures, frame 11 was asked for"):
        decode(folder, np.array([0, 11]), info)


def test_a_picture_is_the_same_whatever_is_asked_for_with_it(tmp_path):
    """Of a folder of several kinds each has its own siting of chroma; what is broken is named."""
    folder = write_pictures(tmp_path / "frames", 3)
    write_png(folder / "img_0.png", np.zeros((48, 64, 3), np.uint8))
    alone, beside = decode(folder, np.array([1])), decode(folder, np.array([0, 1]))
    assert (
        alone.table[0, 7]
        == beside.table[1, 7]
        == FrameFormat(full_range=True, centre_sited=True).code
    )
    (folder / "img_2.jpg").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"frames: img_2\.jpg: does not decode"):
        decode(folder, np.array([2]))


def test_decode_all_in_parts(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", frames=11)
    expected = reference_luma(path)
    parts = list(decode_all(path, chunk=4))
    assert [len(part) for part in parts] == [4, 4, 3]
    for number in range(11):
        got = luma(parts[number // 4], number % 4)
        np.testing.assert_array_equal(got, expected[number])


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi", "ts"])
@pytest.mark.parametrize("keys", [{24, 27}, set(range(0, 60, 3))], ids=["pair", "many"])
def test_key_frames_near_each_other_are_not_taken_for_each_other(tmp_path, suffix, keys):
    """B-pictures with made-up decoding stamps: those of Matroska differ after a seek."""
    pictures = [textured(number, 48, 64) for number in range(60)]
    for number, picture in enumerate(pictures):
        picture.pict_type = 1 if number in keys else 0
    options = {"bf": "2", "g": "300", "sc_threshold": "1000000000"}
    path = write_video(tmp_path / f"a.{suffix}", "mpeg4", pictures=pictures, options=options)
    expected = reference_luma(path)
    info = probe(path)
    assert info.num_frames == len(expected)
    assert suffix == "ts" or len(info.timeline.key_frames) > 2
    for number, picture in enumerate(expected):
        frames = decode(path, np.array([number]), info)
        assert np.array_equal(luma(frames, 0), picture), number


@pytest.mark.parametrize(("first", "seconds"), [(0.2, 2.2), (1.0, 1.4), (0.0, 1.0), (1.0, 0.8)])
def test_an_edit_list_that_trims_is_no_truncation(tmp_path, first, seconds):
    """As phones and editors trim: the file keeps frames that are not shown."""
    options = {"bf": "0", "g": "12", "sc_threshold": "0"}
    whole = write_video(tmp_path / "whole.mp4", "libx264", frames=60, options=options)
    data = bytearray(whole.read_bytes())
    (of_movie,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)  # units a second
    (of_track,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    edit = data.index(b"elst") + 12
    (began,) = struct.unpack_from(">i", data, edit + 4)
    struct.pack_into(">Ii", data, edit, int(seconds * of_movie), began + int(first * of_track))
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data)
    expected = reference_luma(path)
    assert len(expected) < 60
    assert probe(path).num_frames == len(expected)
    for number in range(0, len(expected), 7):
        frames = decode(path, np.array([number]))
        assert np.array_equal(luma(frames, 0), expected[number])


@REAL
def test_real_videos_equal_a_decode_from_the_start(monkeypatch):
    monkeypatch.setattr(
        "pacecore.video.decoding._decode_from_start", lambda *a: pytest.fail("fell back")
    )
    paths = sorted(p for p in Path(DATA).rglob("*") if p.suffix in (".avi", ".mp4"))
    assert len(paths) > 100
    for path in paths[::15]:
        expected = reference_luma(path)
        info = probe(path)
        assert info.num_frames == len(expected), path
        for start in (0, 17, len(expected) - 3):
            numbers = np.unique((start + 3 * np.arange(16)) % len(expected))
            frames = decode(path, numbers, info)
            for row, number in enumerate(numbers):
                np.testing.assert_array_equal(luma(frames, row), expected[number], str(path))


def test_textured_frames_differ():
    pictures = {bytes(textured(n, 48, 64).planes[0]) for n in range(30)}
    assert len(pictures) == 30
