"""What cannot be read is refused with the reason, and nothing of it stays open."""

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition

from pacecore.errors import PacecoreError
from pacecore.video import VideoError, decode, decode_all, probe, probing, turned
from pacecore.video.container import opened, packets_of
from tests.video_files import write_pictures, write_video


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """A file and what is said of it."""
    video = write_video(tmp_path / "whole.avi", frames=40)
    mp4 = write_video(tmp_path / "whole.mp4", "libx264", frames=40, mux={"movflags": "faststart"})
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    cut_mp4 = tmp_path / "cut.mp4"
    cut_mp4.write_bytes(mp4.read_bytes()[: mp4.stat().st_size // 2])
    cut_last = tmp_path / "cut_last.mp4"
    cut_last.write_bytes(mp4.read_bytes()[:-5])
    empty, text = tmp_path / "empty.avi", tmp_path / "text.avi"
    empty.write_bytes(b"")
    text.write_text("this is no video\n" * 100)
    cut_mkv = tmp_path / "cut.mkv"
    mkv = write_video(tmp_path / "whole.mkv", "libx264", frames=40)
    cut_mkv.write_bytes(mkv.read_bytes()[:-2000])
    between = tmp_path / "between.avi"  # the cut is not within a frame
    data = video.read_bytes()
    between.write_bytes(data[: data.rindex(b"00dc", 0, data.index(b"idx1"))])
    last = _packets(mp4)[-1].pos
    between_mp4 = tmp_path / "between.mp4"
    between_mp4.write_bytes(mp4.read_bytes()[:last])
    header = tmp_path / "header.flv"
    with av.open(str(mp4)) as source, av.open(str(header), "w") as container:
        container.add_stream_from_template(source.streams.video[0])
        container.start_encoding()
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(mp4.read_bytes().replace(b"avc1", b"zzzz"))
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        silence.rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    (tmp_path / "folder").mkdir()
    return {
        "missing": (tmp_path / "none.avi", "no such file"),
        "empty": (empty, "cannot be read"),
        "text": (text, "cannot be read"),
        "cut avi": (cut, "truncated|cannot be read"),
        "cut mp4": (cut_mp4, "truncated"),
        "cut within the last frame": (cut_last, "truncated: it ends within a frame"),
        "cut mkv": (cut_mkv, "truncated: it has [0-9]+ of [0-9]+ bytes"),
        "cut between frames": (between, "truncated: it has [0-9]+ of [0-9]+ bytes"),
        "cut between samples": (between_mp4, "truncated: it has 39 of 40 frames"),
        "header alone": (header, "its video stream is empty"),
        "unknown codec": (unknown, "no decoder here"),
        "sound only": (sound, "no video stream"),
        "folder": (tmp_path / "folder", "without pictures"),
    }


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path):
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for case, (path, reason) in broken(tmp_path).items():
        with pytest.raises(VideoError, match=reason) as caught:
            probe(path)
        assert str(path) in str(caught.value), case
    if open_before is not None:
        assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_path_that_may_not_be_looked_at_is_an_unreadable_video_too(tmp_path, monkeypatch):
    """Of a name that is too long, or in a folder of another user's, the first look fails."""
    for reads in (probe, turned, lambda path: list(decode_all(path))):
        with pytest.raises(VideoError, match=r"aa\.avi: cannot be read: File name too long$"):
            reads(f"{'a' * 300}.avi")
    info = probe(write_pictures(tmp_path / "pictures", 2))

    def forbidden(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(probing, "picture_files", forbidden)
    for reads in (probe, lambda path: decode(path, np.arange(1), info)):
        with pytest.raises(VideoError, match=r"pictures: cannot be read: Permission denied$"):
            reads(tmp_path / "pictures")


def _packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])  # of which FFmpeg parses the second
def test_an_empty_sample_is_no_frame_that_was_cut_off(tmp_path, codec):
    path = write_video(tmp_path / "a.mp4", codec, frames=9)
    data = bytearray(path.read_bytes())
    last = data.index(b"stsz") + 16 + 4 * 8
    data[last : last + 4] = bytes(4)
    path.write_bytes(data)
    assert probe(path).num_frames == sum(map(len, decode_all(path))) == 8


def test_of_a_file_that_is_decoded_to_be_counted_no_frame_may_come(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mpg", "mpeg2video", frames=4)
    monkeypatch.setattr("pacecore.video.probing.decoded", lambda *_: iter(()))
    with pytest.raises(VideoError, match=r"a\.mpg: no frame of it decodes"):
        probe(path)


def test_memory_that_a_file_asks_for_and_there_is_not_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    path = write_video(tmp_path / "a.avi", frames=3)
    said = r"a\.avi: needs more memory than there is"
    with pytest.raises(VideoError, match=said), opened(path):
        refuse()  # as PyAV may, in the middle of a file
    monkeypatch.setattr("pacecore.video.container.av.open", refuse)
    with pytest.raises(VideoError, match=said):
        probe(path)


def test_streams_that_come_while_a_file_is_read_end_nothing():
    def demux(_):
        yield from (SimpleNamespace(size=size) for size in (5, 0, 7))
        [][1]

    packets = packets_of(SimpleNamespace(demux=demux), None)
    assert [packet.size for packet in packets] == [5, 7]


def test_cover_art_is_no_video_even_where_it_comes_first(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", "libx264", frames=3)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        cover = target.add_stream("mjpeg", width=64, height=64, pix_fmt="yuvj420p")
        cover.disposition = Disposition.attached_pic.value  # PyAV 16 takes no Flag
        target.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    made = av.open(str(tmp_path / "b.mp4"))
    video = made.streams.video[::-1]
    assert [each.codec_context.name for each in video] == ["mjpeg", "h264"]
    fake = SimpleNamespace(streams=SimpleNamespace(video=video), close=made.close)
    monkeypatch.setattr("pacecore.video.container.av.open", lambda *_, **__: fake)
    with opened(path) as (_, found):
        assert found.codec_context.name == "h264"


def test_frames_of_a_claimed_size_that_no_memory_holds_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", frames=3)
    monkeypatch.setattr("pacecore.video.container.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match=r"a\.avi: claims frames of 48 x 64"):
        probe(path)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4: is a pipe or device, no file"):
        probe(tmp_path / "pipe.mp4")


def test_frames_that_do_not_exist_or_are_out_of_order(tmp_path):
    path = write_video(tmp_path / "a.avi", frames=5)
    with pytest.raises(VideoError, match="has 5 frames, frame 5"):
        decode(path, np.array([0, 5]))
    for wrong in ([], [2, 1], [1, 1], [-1], [[1]]):
        with pytest.raises(VideoError, match="ascending"):
            decode(path, np.array(wrong, dtype=np.int64))
    for wrong in ([0.9, 3.7], [False, True], [], "abc", None):
        with pytest.raises(VideoError, match=r"a\.avi: wanted frames must be whole numbers, .*got"):
            decode(path, wrong)
    assert len(decode(path, [0, 3])) == len(decode(path, np.array([0, 3], np.uint8))) == 2
    with pytest.raises(VideoError, match="ascending"):
        decode(path, np.array([3, 0], np.uint8))
    with pytest.raises(PacecoreError, match=r"^decode: path must be text or a Path, got bytes$"):
        decode(os.fsencode(path), [0])


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("a.avi", "no such file")))
    assert str(error) == "a.avi: no such file"


def test_metadata_that_is_not_utf8(tmp_path):
    path = write_video(tmp_path / "a.avi", frames=3)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.avi"), "w") as target:
        target.metadata["title"] = "TITLE"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    raw = (tmp_path / "b.avi").read_bytes()
    assert b"TITLE" in raw
    (tmp_path / "b.avi").write_bytes(raw.replace(b"TITLE", b"T\xfc\xe9\xffE"))
    assert len(decode(tmp_path / "b.avi", np.array([0, 2]))) == 2


def test_names_that_ffmpeg_would_take_for_a_protocol(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", frames=3)
    monkeypatch.chdir(tmp_path)
    for name in ("10:30.avi", "file:a.avi", "concat:a.avi"):
        Path(name).write_bytes(path.read_bytes())
        assert len(decode(name, np.array([0, 2]))) == 2


def test_a_thousand_opens_hold_no_file_and_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = write_video(tmp_path / "a.avi", frames=4, size=(16, 16))
    bad = tmp_path / "bad.avi"
    bad.write_bytes(path.read_bytes()[:3000])
    files, peak = None, None
    for round_number in range(1000):
        decode(path, np.array([3]))
        with pytest.raises(VideoError):
            probe(bad)
        if round_number == 200:
            files = len(os.listdir("/proc/self/fd"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(os.listdir("/proc/self/fd")) == files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 8 * 1024  # KiB


def test_all_frames_of_a_folder_without_pictures_are_refused_as_by_probe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, ""):
        for reads in (probe, lambda path: list(decode_all(path))):
            with pytest.raises(VideoError, match=f"{path}: a folder without pictures"):
                reads(path)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, None])
def test_a_chunk_is_a_whole_number_of_frames(chunk, tmp_path):
    words = f"decode_all: chunk must be a whole number of at least 1, got {chunk}"
    for path in (tmp_path, write_video(tmp_path / "a.avi", frames=3)):
        with pytest.raises(PacecoreError, match=words):
            list(decode_all(path, chunk=chunk))
