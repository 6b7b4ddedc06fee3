"""`data check` finds what is planted, and nothing in good videos; the verbs' commands and codes."""

import json
import os
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pacecore.check import data_check
from pacecore.cli.data import data
from pacecore.datasets import data_index, find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.index import read_index
from pacecore.isolated import JobFailure
from pacecore.store import FrameStore, pack
from pacecore.video import VideoError, probe
from tests.video_files import write_video

DATA = os.environ.get("PACECORE_DATA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train and test of two classes, with one of each fault."""
    root = tmp_path_factory.mktemp("planted")
    for split in ("train", "test"):
        for name in ("run", "walk"):
            (root / split / name).mkdir(parents=True)
    run, walk = root / "train" / "run", root / "train" / "walk"
    write_video(run / "good.avi", frames=40)
    write_video(run / "rate.mp4", "libx264", stamps=[n * n // 7 + 2 * n for n in range(30)])
    write_video(walk / "short.avi", frames=9)
    shutil.copy(run / "good.avi", walk / "twice.avi")
    shutil.copy(run / "good.avi", root / "test" / "run" / "leak.avi")
    write_video(root / "test" / "walk" / "other.avi", frames=25, size=(64, 64))
    (walk / "empty.avi").write_bytes(b"")
    (walk / "text.avi").write_text("no video " * 100)
    (walk / "cut.avi").write_bytes((run / "good.avi").read_bytes()[:9000])
    return root


def test_finds_what_is_planted(folder):
    seen = []
    report = data_check(find_videos(folder), workers=1, on_progress=lambda *a: seen.append(a))
    found = {(Path(f["path"]).name, f["kind"]) for f in report["findings"]}
    assert found == {
        ("rate.mp4", "variable rate"),
        ("short.avi", "short"),
        ("good.avi", "twice in two splits"),  # leak.avi comes first in the index
        ("twice.avi", "twice in two splits"),
        ("empty.avi", "empty"),
        ("text.avi", "unreadable"),
        ("cut.avi", "unreadable"),
    }
    assert report["serious"] == 5
    assert (report["videos"], report["readable"]) == (9, 6)
    assert report["frames"] == 40 * 3 + 30 + 9 + 25
    assert report["splits"] == {"train": 7, "test": 2}
    assert report["classes"]["walk"] == {"train": 5, "test": 1}
    assert report["lengths"]["bins"] == {"0 to 15": 1, "16 to 31": 2, "32 to 63": 3}
    shares = [report["loops"][pace] for pace in ("1", "2", "3", "4")]
    assert shares[0] == pytest.approx((3 * 15 / 40 + 15 / 30 + 1 + 15 / 25) / 6)
    assert shares == sorted(shares)
    assert seen == [(n, 9) for n in range(1, 10)]
    json.dumps(report)


def test_the_share_that_loops_is_of_clips_as_long_as_asked_for(tmp_path):
    write_video(tmp_path / "a.avi", frames=20)
    for frames in (8, 16):
        report = data_check(find_videos(tmp_path), clip_frames=frames, workers=1)
        assert report["loops"]["1"] == pytest.approx((frames - 1) / 20)


def test_a_video_that_a_phone_held_upright_is_named(tmp_path):
    video = write_video(tmp_path / "phone.mp4", "libx264", frames=16)
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44  # a, b, u, c, d; ISO/IEC 14496-12, 8.3.2
    content[matrix : matrix + 20] = struct.pack(">5i", 0, 1 << 16, 0, -(1 << 16), 0)
    video.write_bytes(content)
    (finding,) = data_check(find_videos(tmp_path), workers=1)["findings"]
    assert finding["kind"] == "turned"
    assert finding["detail"].startswith("is to be shown turned by 90 degrees")


def test_sizes_within_a_video_are_told_in_their_order(tmp_path):
    sizes = (64, 48)
    parts = [write_video(tmp_path / f"{h}.ts", "mpeg2video", size=(h, 64)) for h in sizes]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    report = data_check(find_videos(tmp_path / "all"), workers=1)
    assert [f["detail"] for f in report["findings"]] == ["64 x 64 then 48 x 64"]


def test_a_frame_that_seeking_gets_wrong_is_found(folder, monkeypatch):
    from pacecore.video import decoding

    right = decoding._decode_seeking

    def one_late(path, wanted, info):
        return right(path, wanted - (wanted > 10), info)

    monkeypatch.setattr(decoding, "_decode_seeking", one_late)
    report = data_check(find_videos(folder / "train" / "run"), workers=1)
    kinds = [f["kind"] for f in report["findings"]]
    assert kinds.count("seeking") == 2
    assert report["serious"] == 2


def test_a_video_that_does_not_seek_at_all_costs_no_other(folder, monkeypatch):
    def fails(path, wanted, info):
        raise VideoError(path, "frame 3 of 40 does not decode")

    monkeypatch.setattr("pacecore.check.decode", fails)
    report = data_check(find_videos(folder / "train" / "run"), workers=1)
    found = [f["detail"] for f in report["findings"] if f["kind"] == "seeking"]
    assert found == ["frame 3 of 40 does not decode"] * 2


def test_a_video_that_ends_its_process_or_hangs_costs_no_other(folder, tmp_path, monkeypatch):
    limits = []

    def jobs(function, paths, workers, timeout_seconds=600.0):
        limits.append(timeout_seconds)
        yield 1, JobFailure("took longer than 7 s")
        yield 0, function(paths[0])

    monkeypatch.setattr("pacecore.check.run_jobs", jobs)
    videos, path = folder / "train" / "run", tmp_path / "report.json"
    result = run("check", videos, "--timeout", 7, "--json", path)
    assert "rate.mp4: took longer than 7 s" in result.output, result.exception
    assert (result.exit_code, limits) == (1, [7])
    report = json.loads(path.read_text())
    lost = {"path": str(videos / "rate.mp4"), "kind": "unreadable"}
    assert report["findings"] == [lost | {"detail": "took longer than 7 s"}]
    assert (report["videos"], report["readable"], report["frames"]) == (2, 1, 40)
    assert report["serious"] == 1


def test_a_report_that_cannot_be_written_is_told_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pacecore.check.run_jobs", lambda *_: pytest.fail("has begun"))
    for path, words in (("none/report.json", "is no folder for new files"), (".", "Is a direct")):
        result = run("check", folder, "--json", tmp_path / path)
        assert f"{tmp_path / path}: cannot be written: " in str(result.exception)
        assert words in str(result.exception)


def test_a_report_is_whole_or_the_old_one_and_what_is_no_plain_file_stays(
    folder, tmp_path, largest_file, monkeypatch
):
    report, good = tmp_path / "report.json", folder / "test" / "walk"
    report.write_text("of before")
    monkeypatch.setattr("pacecore.cli.data.json.dumps", lambda *_, **__: "x" * 2000)
    monkeypatch.setattr("pacecore.files.json.dumps", lambda *_, **__: "x" * 2000)
    with largest_file(1000):
        failed = run("check", good, "--workers", 1, "--json", report)
    assert str(failed.exception) == f"{report}: cannot be written: File too large"
    assert report.read_text() == "of before"
    monkeypatch.undo()
    link = tmp_path / "link"  # as /dev/stdout is one
    link.symlink_to(report)
    assert run("check", good, "--workers", 1, "--json", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads(report.read_text())["serious"] == 0


def test_a_header_that_claims_another_number_of_frames_is_named(tmp_path):
    video = write_video(tmp_path / "a.avi", frames=20)
    content = bytearray(video.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 99)  # AVISTREAMHEADER.dwLength
    video.write_bytes(content)
    report = data_check(find_videos(tmp_path), workers=1)
    found = [(f["kind"], f["detail"]) for f in report["findings"]]
    assert found == [("claim", "its header claims 99 frames, 20 decode")]
    assert report["serious"] == 0


@pytest.mark.parametrize("told", [19, 21])
def test_packets_that_tell_another_number_of_frames_are_serious(tmp_path, monkeypatch, told):
    write_video(tmp_path / "a.avi", frames=20)
    monkeypatch.setattr("pacecore.check.probe", lambda path: replace(probe(path), num_frames=told))
    report = data_check(find_videos(tmp_path), workers=1)
    found = [(f["kind"], f["detail"]) for f in report["findings"]]
    assert found == [("count", f"its packets tell {told} frames, 20 decode")]
    assert report["serious"] == 1


def test_a_listed_video_that_is_missing_has_its_path(folder, tmp_path):
    (tmp_path / "list.txt").write_text("run/good.avi\nrun/none.avi\n")
    result = run("check", tmp_path / "list.txt", "--root", folder / "train", "--missing", "skip",
                 "--workers", 1)  # fmt: skip
    assert "  run/none.avi: is listed and not there" in result.output
    for verb in ("index", "pack"):
        result = run(verb, tmp_path / "list.txt", tmp_path / verb, "--root", folder / "train",
                     "--missing", "skip", "--workers", 1)  # fmt: skip
        assert "1 listed videos that are not there, the first is run/none.avi" in result.output


def test_videos_that_changed_since_they_were_counted_are_found(folder, tmp_path):
    video = write_video(tmp_path / "a.avi", frames=20)
    data_index(find_videos(video), tmp_path / "index.jsonl", workers=1)
    write_video(video, frames=25)
    report = data_check(find_videos(tmp_path / "index.jsonl"), workers=1)
    found = [(f["kind"], f["detail"]) for f in report["findings"]]
    assert found == [("claim", "listed with 20 frames, 25 decode")]


def test_totals_of_a_known_set(tmp_path):
    from pacecore.check import _totals
    from pacecore.index import VideoEntry, VideoIndex

    classes = tuple(f"c{n}" for n in range(101))
    entries = tuple(VideoEntry(f"{n}", f"{n}", 0, "c0", "train") for n in range(9536))
    index = VideoIndex("root", "UCF101, split 01", entries, classes)
    assert [f.detail for f in _totals(index, 1)] == ["UCF101 has 9537 train videos, here are 9536"]
    more = VideoIndex("root", "UCF101, split 01", (*entries, entries[0]), classes)
    assert _totals(more, 1) == []


@pytest.mark.parametrize("wrong", [{"clip_frames": 0}, {"paces": "1,2"}])
def test_what_no_share_of_loops_can_be_told_of_is_refused_before_the_decoding(folder, wrong):
    done = []
    with pytest.raises(PacecoreError, match="must be a whole number"):
        data_check(find_videos(folder), **wrong, on_progress=lambda *_: done.append(1))
    assert not done


def test_index_keeps_the_good_and_names_the_bad(folder, tmp_path):
    counted, bad = data_index(find_videos(folder), tmp_path / "index.jsonl", workers=1)
    assert {Path(b.path).name for b in bad} == {"empty.avi", "text.avi", "cut.avi"}
    assert read_index(tmp_path / "index.jsonl") == counted
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    states = {line["path"]: line["state"] for line in lines[1:]}
    assert states["train/run/good.avi"] == "ok"
    assert "cannot be read" in states["train/walk/text.avi"]


def test_index_replaces_nothing_but_an_index(folder, tmp_path, monkeypatch):
    source = folder / "test" / "walk"
    mine = tmp_path / "mine.txt"
    mine.write_text(f"{source}/other.avi 0\n")
    whole = tmp_path / "whole.txt"
    for _ in range(2):  # an index is replaced
        assert run("index", source, whole, "--workers", 1).exit_code == 0
    entries = find_videos(whole).entries  # known by its first line, whatever its name
    assert [(entry.name, entry.num_frames) for entry in entries] == [("other.avi", 25)]
    before = {path: path.read_bytes() for path in (mine, whole, source / "other.avi")}
    monkeypatch.setattr("pacecore.datasets.probe_all", None)  # refused before any video is counted
    for given, output, message in (
        (source, mine, r"mine\.txt: exists and is no index of pacecore"),
        (source, source / "other.avi", r"other\.avi: exists and is no index of pacecore"),
        (source, tmp_path, "exists and is no index of pacecore"),
        (source, tmp_path / "none" / "out.jsonl", "cannot be written: .*none is no folder"),
        (mine, mine, r"mine\.txt: OUTPUT must be another file than SOURCE, which is .*mine\.txt"),
        (whole, whole, r"whole\.txt: OUTPUT must be another file than SOURCE"),
    ):
        failed = run("index", given, output).exception
        assert isinstance(failed, PacecoreError)
        assert re.search(message, str(failed))
    assert {path: path.read_bytes() for path in before} == before


def test_of_videos_none_of_which_can_be_read_no_index_is_written(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.avi").write_bytes(b"")
    failed = run("index", tmp_path, tmp_path / "index.jsonl", "--workers", 1).exception
    assert isinstance(failed, PacecoreError)
    words = r"/index\.jsonl: is not written, as none of the 2 videos can be read; the first one: "
    assert re.search(rf"{words}.*a\.avi: cannot be read: ", str(failed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.avi", "b.avi"]


def test_a_folder_that_takes_no_index_is_told_before_the_counting(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # to root all are open
    monkeypatch.setattr("pacecore.datasets.probe_all", None)
    with pytest.raises(
        PacecoreError, match=r"index\.jsonl: cannot be written: .* is no folder for"
    ):
        data_index(find_videos(folder), tmp_path / "index.jsonl")


def test_a_report_replaces_nothing_of_what_it_is_of(folder, tmp_path):
    index = tmp_path / "index.jsonl"
    data_index(find_videos(folder / "test" / "walk"), index, workers=1)
    store, _ = pack(probe_all(find_videos(index))[0], tmp_path / "store", (16, 20), workers=1)
    for source, report in ((index, index), (store.folder, store.folder / "index.json")):
        before = report.read_bytes()
        failed = run("check", source, "--json", report).exception
        assert isinstance(failed, PacecoreError)
        assert str(failed) == f"{report}: --json must be another file than SOURCE, {source}"
        assert report.read_bytes() == before


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_commands(folder, tmp_path):
    result = run("check", folder, "--workers", 1, "--json", tmp_path / "report.json")
    assert result.exit_code == 1, result.output
    for word in ("cut.avi", "twice in two splits", "short.avi", "loop"):
        assert word in result.output
    assert json.loads((tmp_path / "report.json").read_text())["serious"] == 5
    good = folder / "test" / "walk"
    assert run("check", good, "--workers", 1).exit_code == 0
    failed = run("check", good, "--workers", 1, "--json", "/dev/full")
    assert "/dev/full: cannot be written: No space" in str(failed.exception)
    assert "decoded whole: " in failed.output  # what took the time is not lost with the file
    result = run("index", folder, tmp_path / "index.jsonl", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "6 videos" in result.output
    assert "text.avi" in result.output
    result = run("pack", tmp_path / "index.jsonl", tmp_path / "store", "--size", "24x32",
                 "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "184 frames" in result.output
    assert len(FrameStore.open(tmp_path / "store")) == 6
    report = tmp_path / "store.json"
    whole = run("check", tmp_path / "store", "--json", report)
    assert (whole.exit_code, whole.output.count("every frame as it was packed")) == (0, 1)
    said = json.loads(report.read_text())
    assert (said["layout"], said["videos"], said["frames"]) == ("frame store of 24 x 32", 6, 184)
    assert (said["readable"], said["serious"], said["findings"]) == (6, 0, [])
    with (tmp_path / "store" / "frames.bin").open("r+b") as file:
        file.write(bytes(64))
    damaged = run("check", tmp_path / "store", "--json", report)
    assert damaged.exit_code == 1
    assert "frame 0 of" in damaged.output
    assert "6 videos, 1 of them damaged" in damaged.output
    said = json.loads(report.read_text())
    assert (said["readable"], said["serious"], said["kinds"]) == (5, 1, {"damaged": 1})
    assert "frame 0 of" in said["findings"][0]["detail"]
    (tmp_path / "store" / "index.json").rename(tmp_path / "store" / "journal.jsonl")
    unfinished = run("check", tmp_path / "store")
    assert "an unfinished store; pack again to go on" in str(unfinished.exception)


def test_what_says_nothing_of_a_store_is_refused_by_name(tmp_path):
    (tmp_path / "frames.bin").touch()
    idle = ["--split", "test", "--fold", "1", "--paces", "zzz", "--timeout", "600"]
    failed = run("check", tmp_path, *idle, "--json", tmp_path / "report.json").exception
    assert isinstance(failed, PacecoreError)
    names = "--fold, --split, --paces, --timeout"
    assert str(failed) == f"of a frame store only --json applies, got {names} too"
    assert [path.name for path in tmp_path.iterdir()] == ["frames.bin"]


def test_of_many_unreadable_videos_the_first_are_named_and_the_others_counted(tmp_path):
    for number in range(23):
        (tmp_path / f"{number:02}.avi").write_bytes(b"")
    write_video(tmp_path / "good.avi", frames=9)
    checked = run("check", tmp_path, "--workers", 1).output
    assert "\nempty: 23\n" in checked
    assert "  19.avi: has no bytes\n  and 3 more\n" in checked
    indexed = run("index", tmp_path, tmp_path / "index.jsonl", "--workers", 1).output
    assert indexed.count("left out: ") == 21
    assert "\nleft out: 3 more\n" in indexed
    assert f"index.jsonl: 1 videos, 9 frames (videos without labels in {tmp_path})\n" in indexed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "none"), "none: no such file or folder"),
        (("index", ".", "out.jsonl"), ".: no video in it, nor a folder of jpg or png frames"),
        (
            ("pack", ".", "store", "--size", "24"),
            "must be HEIGHTxWIDTH, each of 1 to 8192, got '24'",
        ),
        (("pack", ".", "store", "--size", "0x24"), "each of 1 to 8192, got '0x24'"),
        (("pack", ".", "store", "--size", "24,8193"), "each of 1 to 8192, got '24,8193'"),
        (("index", ".", "out.jsonl", "--workers", "100000"), "'--workers': 100000 is not in the"),
        (("check", ".", "--clip-frames", "0"), "'--clip-frames': 0 is not in the range"),
        (("check", ".", "--paces", "-1,1"), "paces must be positive, got -1,1"),
        (("check", ".", "--timeout", "-1"), "'--timeout': -1.0 is not in the range"),
        (("check", ".", "--timeout", "inf"), "'--timeout': inf is not in the range"),
        (("check", ".", "--timeout", "nan"), "'--timeout': nan is no number"),
    ],
)
def test_commands_name_what_is_wrong(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code != 0
    assert said in (str(result.exception) if result.exit_code == 1 else result.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not DATA, reason="PACECORE_DATA names no folder of real videos")
def test_real_clips_have_nothing_serious():
    report = data_check(find_videos(Path(DATA) / "clips" / "hmdb51_wave"), workers=1)
    assert report["serious"] == 0
    assert report["readable"] == 3
