"""The demo set: layout, lists, motion, and that it is made once, whole or not at all."""

import hashlib
import itertools
import shutil

import av
import numpy as np
import pytest
from click.testing import CliRunner

from pacecore import demo
from pacecore.cli.demo import demo as command
from pacecore.demo import DEMO_CLASSES, DemoOptions, make_demo
from pacecore.errors import PacecoreError
from pacecore.isolated import JobFailure
from pacecore.video_writer import video_encoder, write_video
from tests.video_files import rgb_of

progress_calls = []


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "set"
    return make_demo(folder, groups=2, clips=1, progress=lambda *call: progress_calls.append(call))


def digests_of(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_that_of_ucf101(small):
    lists = small / "ucfTrainTestlist"
    classes = dict(line.split() for line in (lists / "classInd.txt").read_text().splitlines())
    assert list(classes.values()) == list(DEMO_CLASSES)
    assert list(classes) == [str(number) for number in range(1, len(DEMO_CLASSES) + 1)]
    train = [line.split() for line in (lists / "trainlist01.txt").read_text().splitlines()]
    test = (lists / "testlist01.txt").read_text().split()
    assert all(classes[number] == name.split("/")[0] for name, number in train)
    listed = {name for name, _ in train} | set(test)
    on_disk = {path.relative_to(small / "UCF-101").as_posix() for path in small.rglob("*.mp4")}
    assert listed == on_disk
    assert len(listed) == len(train) + len(test) == 2 * len(DEMO_CLASSES)
    assert {name.split("_")[-2] for name, _ in train} == {"g02"}
    assert {name.split("_")[-2] for name in test} == {"g01"}
    assert not list(small.parent.glob("*.unfinished"))


def test_videos_are_h264_long_enough_for_pace_4_and_move(small):
    for path in sorted(small.rglob("*.mp4")):
        frames = np.stack(rgb_of(path)).astype(np.float32)
        assert frames.shape[1:] == (120, 160, 3)
        assert 80 <= len(frames) <= 136
        with av.open(str(path)) as container:
            name = container.streams.video[0].codec_context.name
            assert name == {"libx264": "h264", "mpeg4": "mpeg4"}[video_encoder()]
        assert frames.std() > 15  # a picture, not a flat field
        change = [
            np.abs(frames[step:61:step] - frames[: 61 - step : step]).mean() for step in (1, 4)
        ]
        assert change[0] > 1
        assert change[1] > 1.5 * change[0]  # faster paces show larger changes


def test_same_seed_same_frames_other_seed_other_frames():
    def first(seed, number=3):
        return next(demo._draw(DemoOptions(seed=seed), number, 1, 1))

    assert np.array_equal(first(5), first(5))
    assert np.abs(first(5).astype(int) - first(6)).mean() > 10
    assert np.abs(first(5).astype(int) - first(5, 4)).mean() > 10


def test_a_set_that_is_there_is_left_as_it_is(small, monkeypatch):
    monkeypatch.setattr(demo, "write_video", lambda *_: pytest.fail("made again"))
    before = digests_of(small)
    assert make_demo(small, groups=2, clips=1) == small
    assert digests_of(small) == before


def test_an_interrupted_set_is_finished(small, tmp_path, monkeypatch):
    folder, written = tmp_path / "set", []

    def write(path, frames):
        written.append(path)
        return write_video(path, frames if len(written) < 4 else broken_off(frames))

    def broken_off(frames):
        yield from itertools.islice(frames, 9)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_video", write)
    with pytest.raises(KeyboardInterrupt):
        make_demo(folder, groups=2, clips=1, processes=1)
    assert not folder.exists()
    monkeypatch.undo()
    make_demo(folder, groups=2, clips=1, processes=2)
    assert digests_of(folder) == digests_of(small)


def copies_of(small, drawn):
    def copy(path, _):
        drawn.append(path)
        shutil.copyfile(small / "UCF-101" / path.parent.name / path.name, path)

    return copy


@pytest.fixture
def drawn_before(small, monkeypatch):
    """Has each video of `small` copied from there, as drawing it takes longer."""
    monkeypatch.setattr(demo, "write_video", copies_of(small, []))


@pytest.mark.usefixtures("drawn_before")
@pytest.mark.parametrize("mark", ['{"seed": 7}', "no JSON"])
def test_what_other_options_have_begun_is_not_gone_on_with(small, tmp_path, mark):
    begun = tmp_path / "set.unfinished"
    old = begun / "UCF-101" / "Bounce" / "v_Bounce_g01_c01.mp4"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of another seed")
    (begun / "demo.json").write_text(mark)
    make_demo(tmp_path / "set", groups=2, clips=1, processes=1)
    assert digests_of(tmp_path / "set") == digests_of(small)
    assert not begun.exists()


@pytest.mark.usefixtures("drawn_before")
def test_what_only_has_the_name_of_an_unfinished_set_is_kept(tmp_path):
    own = tmp_path / "set.unfinished" / "notes.txt"
    own.parent.mkdir()
    own.write_text("precious")
    said = r"set\.unfinished holds something else; remove it or name another folder$"
    with pytest.raises(PacecoreError, match=said):
        make_demo(tmp_path / "set", groups=2, clips=1, processes=1)
    assert own.read_text() == "precious"
    own.unlink()
    make_demo(tmp_path / "set", groups=2, clips=1, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.usefixtures("drawn_before")
@pytest.mark.parametrize("begun", ["", "this set", "another set"])
def test_an_empty_folder_that_is_there_is_filled(small, tmp_path, monkeypatch, begun):
    """It may be the current one, or where a disk is mounted, whose name nothing else can take."""
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    if begun:
        monkeypatch.setattr(demo, "_write_lists", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_demo(".", groups=2, clips=1, processes=1, seed=int(begun == "another set"))
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert not (tmp_path / "demo.json").exists()
        assert len(list(tmp_path.rglob("*.mp4"))) == 12
    monkeypatch.setattr(demo, "write_video", copies_of(small, drawn := []))
    made = make_demo(".", groups=np.int64(2), clips=1, processes=1, seed=np.int64(0))
    assert str(made) == "."
    assert len(drawn) == (0 if begun == "this set" else 12)
    assert digests_of(tmp_path) == digests_of(small)
    assert tmp_path.stat().st_ino == inode


@pytest.mark.usefixtures("drawn_before")
@pytest.mark.parametrize("theirs", ["the same set", "something else"])
def test_a_folder_that_came_meanwhile_is_kept(small, tmp_path, monkeypatch, theirs):
    """As of another process, which made the set at the same time and was first."""
    folder, write_lists = tmp_path / "set", demo._write_lists

    def late(aside, options):
        write_lists(aside, options)
        if theirs == "the same set":
            shutil.copytree(small, folder)
        else:
            folder.mkdir()
            (folder / "mine.txt").write_text("mine")

    monkeypatch.setattr(demo, "_write_lists", late)
    if theirs == "the same set":
        make_demo(folder, groups=2, clips=1, processes=1)
        assert digests_of(folder) == digests_of(small)
        assert [path.name for path in tmp_path.iterdir()] == ["set"]
    else:
        with pytest.raises(PacecoreError, match="set holds something else; name a folder"):
            make_demo(folder, groups=2, clips=1, processes=1)
        assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_video_that_is_not_drawn_is_named(tmp_path, monkeypatch):
    def lost(*_):
        yield 3, JobFailure("the process drawing it ended by signal 9")

    monkeypatch.setattr(demo, "run_jobs", lost)
    said = r"demo: Bounce/v_Bounce_g02_c02\.mp4 was not drawn: the process drawing it ended by"
    with pytest.raises(PacecoreError, match=said):
        make_demo(tmp_path / "set", groups=2, clips=2)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("content", [{"mine.txt": "mine"}, {"demo.json": "{}"}])
def test_a_folder_of_something_else_is_not_touched(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PacecoreError, match=r"demo: .* (holds something else|other options)"):
        make_demo(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_progress_counts_every_video(small):
    total = 2 * len(DEMO_CLASSES)
    assert progress_calls == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 1}, "groups must be a whole number from 2 to 99, got 1"),
        ({"clips": 1.5}, r"clips must be a whole number from 1 to 99, got 1\.5"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(PacecoreError, match=message):
        DemoOptions(**options)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PacecoreError, match="demo: cannot write"):
        make_demo(tmp_path / "file" / "set")


def test_writing_falls_back_to_mpeg4_and_says_when_nothing_serves(tmp_path, monkeypatch):
    missing, codec = {"libx264"}, av.Codec
    monkeypatch.setattr(av, "Codec", lambda name, mode: codec("x" * (name in missing) + name, mode))
    assert video_encoder() == "mpeg4"
    assert write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3) == 3
    assert len(rgb_of(tmp_path / "a.mp4")) == 3
    missing.add("mpeg4")
    with pytest.raises(PacecoreError, match="has none of libx264, mpeg4"):
        video_encoder()


def test_writer_refuses_odd_sizes_and_no_frames(tmp_path):
    with pytest.raises(PacecoreError, match="must be even, got 15 x 16"):
        write_video(tmp_path / "a.mp4", [np.zeros((15, 16, 3), np.uint8)])
    with pytest.raises(PacecoreError, match="at least one frame"):
        write_video(tmp_path / "b.mp4", [])


def test_command_makes_the_set_and_says_what_comes_next(small, monkeypatch):
    words = [str(small), "--groups", "2", "--clips", "1"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert f"pacecore train {small}" in result.output
    assert "libx264" not in result.output
    monkeypatch.setattr("pacecore.cli.demo.video_encoder", lambda: "mpeg4")
    assert "files are mpeg4 and not H.264" in CliRunner().invoke(command, words).output
