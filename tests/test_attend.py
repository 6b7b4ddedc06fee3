"""Attention: the definition by hand, the three ways over time, sheets and films, bad input."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pacecore.attend import attention_maps, overlaid, run_attend
from pacecore.config import AttendOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.loader import LoaderError
from pacecore.pictures import inscription
from pacecore.source import VideoFiles
from pacecore.trained import load_trained

from .tiny import decoding, pretrained, tiny_set, write_tiny
from .video_files import rgb_of, write_video

pytestmark = pytest.mark.usefixtures("one_thread")


class Given:
    """A backbone whose last map is given."""

    stage_names = ("stem", "last")

    def __init__(self, last):
        self.last = last

    def maps(self, clips, names):
        assert list(names) == ["last"]
        return {"last": self.last}


def test_definition_by_hand():
    last = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    clips = torch.zeros(2, 3, 6, 8, 12)
    maps = attention_maps(Given(last), clips, (8, 12))
    assert maps.shape == (2, 6, 8, 12)
    for clip in range(2):
        power = last[clip].square().mean(dim=0).mean(dim=0)
        large = F.interpolate(power[None, None], size=(8, 12), mode="bicubic")[0, 0]
        expected = (large - large.min()) / (large.max() - large.min())
        for frame in range(6):
            torch.testing.assert_close(maps[clip, frame], expected)


def test_each_frame_has_the_step_that_it_lies_in():
    last = torch.zeros(1, 1, 2, 2, 2)
    last[0, 0, 0, 0, 0], last[0, 0, 1, 1, 1] = 1.0, 2.0
    clips = torch.zeros(1, 3, 4, 2, 2)
    maps = attention_maps(Given(last), clips, (2, 2), time="all")[0]
    assert [frame.argmax().item() for frame in maps] == [0, 0, 3, 3]
    assert maps[3].max() == 1
    assert maps[0].max() == pytest.approx(0.25)  # one scale for the clip
    final = attention_maps(Given(last), clips, (2, 2), time="last")[0]
    assert [frame.argmax().item() for frame in final] == [3] * 4


def test_the_least_of_a_clip_is_that_of_all_its_frames():
    last = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).view(1, 1, 2, 1, 2)
    maps = attention_maps(Given(last), torch.zeros(1, 3, 2, 1, 2), (1, 2), time="all")[0]
    torch.testing.assert_close(maps, torch.tensor([[[0.0, 0.25]], [[0.25, 1.0]]]))


def test_a_map_without_contrast_is_zero_not_nan():
    # Bicubic makes of this value others, which with a scale of their own are noise.
    last = torch.full((1, 3, 2, 1, 1), 0.3)
    maps = attention_maps(Given(last), torch.zeros(1, 3, 4, 8, 8), (112, 112))
    assert torch.equal(maps, torch.zeros(1, 4, 112, 112))


def test_overlay_goes_from_blue_to_red():
    shown = overlaid(np.zeros((1, 2, 3), np.uint8), np.array([[0.0, 1.0]]))
    assert shown[0, 0, 2] > shown[0, 0, 0]
    assert shown[0, 1, 0] > shown[0, 1, 2]


def options_of(out, **changes) -> AttendOptions:
    return from_mapping(AttendOptions, {"device": "cpu", "out": str(out), **changes})


def assert_reads(picture: np.ndarray, pace: str, blurred: int = 0) -> None:
    """The top left corner names the pace; as far as a film's compression lets it."""
    name = inscription(pace)
    shown = picture[: name.shape[0], : name.shape[1]]
    np.testing.assert_allclose(shown.astype(int), name, atol=blurred)


def test_a_video_that_does_not_come_is_waited_for_as_the_options_say(tmp_path, monkeypatch):
    videos = tiny_set(tmp_path / "set", train=1, test=1)
    checkpoint = pretrained(tmp_path / "run" / "last.pt", data=str(videos))
    monkeypatch.setattr(VideoFiles, "decode", lambda *_: time.sleep(60))
    with pytest.raises(
        LoaderError, match=r"^decoding stopped: timed out after 1 seconds; reading .*test0\.mp4"
    ):
        run_attend(load_trained(checkpoint), options_of(tmp_path / "out", decode_timeout=1.0))


def test_sheet_and_film_of_several_videos(tmp_path):
    videos = tiny_set(tmp_path / "set", train=1, test=2)
    checkpoint = pretrained(tmp_path / "run" / "last.pt", data=str(videos), paces="1/2,1,2")
    result = run_attend(load_trained(checkpoint), options_of(tmp_path / "out", count=3))
    assert result["paces"] == ["1/2", "1", "2"]
    assert len(result["videos"]) == 3
    assert all("/test/" in video["path"] for video in result["videos"])  # the held-out ones
    side = 128  # crops of 32 pixels are enlarged by 4
    for video in result["videos"]:
        (sheet,) = rgb_of(tmp_path / "out" / video["sheet"])
        names = 3 * 12 + 4  # "1/2"; frames 0, 3, 6
        assert sheet.shape == (3 * (side + 4) + 4, names + 3 * (side + 4) + 4, 3)
        middle = 4 + (side - 15) // 2
        for row, pace in enumerate(result["paces"]):
            assert_reads(sheet[middle + row * (side + 4) :, 4:], pace)
        film = rgb_of(tmp_path / "out" / video["film"])
        assert len(film) == 8
        # A strip of names, and a row repeated to make the height even.
        assert film[0].shape == (19 + 2 * (side + 4) + 4 + 1, 3 * (side + 4) + 4, 3)
        for column, pace in enumerate(result["paces"]):
            assert_reads(film[-1][4:, 4 + column * (side + 4) :], pace, blurred=60)
    names = {video["sheet"] for video in result["videos"]}
    assert len(names) == 3  # test0.mp4 of each class: told apart
    # The first frame is the same at every pace; the last one is not.
    first, last = (frames[23 : 23 + side] for frames in (film[0], film[-1]))
    columns = [slice(4 + number * (side + 4), (number + 1) * (side + 4)) for number in range(3)]
    difference = [
        np.abs(frame[:, columns[0]].astype(int) - frame[:, columns[2]]).mean()
        for frame in (first, last)
    ]
    assert difference[0] < 2 < difference[1]


def test_a_file_that_is_called_as_another_is_told_apart_has_its_own(tmp_path):
    for seed, name in enumerate(("c1/clip", "c2/clip-2", "c2/clip")):
        write_tiny(tmp_path / "set" / f"{name}.mp4", 0, seed, 20)
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    options = options_of(tmp_path / "out", data=str(tmp_path / "set"), paces="1", count=3)
    result = run_attend(load_trained(checkpoint), options)
    assert len(result["videos"]) == len(list((tmp_path / "out").glob("*.png"))) == 3
    assert {each["sheet"] for each in result["videos"]} >= {"attend-clip-2.png"}


def test_one_video_file_from_a_frame_of_ones_own(tmp_path):
    write_tiny(tmp_path / "one.mp4", 0, 1, 20)
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    how = {"data": str(tmp_path / "one.mp4"), "paces": "1,3", "every": 4, "start_frame": 9}
    result = run_attend(load_trained(checkpoint), options_of(tmp_path / "out", **how))
    assert [video["sheet"] for video in result["videos"]] == ["attend-one.png"]
    (sheet,) = rgb_of(tmp_path / "out" / "attend-one.png")
    assert sheet.shape[:2] == (2 * 132 + 4, 16 + 2 * 132 + 4)
    first = rgb_of(tmp_path / "out" / "attend-one.mp4")[0][23 : 23 + 128].astype(int)
    for left in (4, 4 + 132):  # at both paces
        red = first[:, left : left + 128, 0] - first[:, left : left + 128, 2] > 100
        # The square of frame 9 goes from column 1 + 2 * 9 of 48 to 16 beyond. Shown is the crop
        # from column 4 of 40, four times as large.
        edges = [4 * (column * 40 / 48 - 4) for column in (19, 35)]
        assert np.flatnonzero(red.any(axis=0))[[0, -1]] == pytest.approx(edges, abs=4)


def test_a_start_frame_beyond_the_video(tmp_path):
    write_tiny(tmp_path / "one.mp4", 0, 1, 20)
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    write_tiny(tmp_path / "a.mp4", 0, 1, 30)
    message = r"^\S+one\.mp4: start_frame must be below its 20 frames, got 20$"
    for workers in (0, 1):
        how = {"data": str(tmp_path), "start_frame": 20, "workers": workers}
        with pytest.raises(PacecoreError, match=message):
            run_attend(load_trained(checkpoint), options_of(tmp_path / "out", **how))
    assert list((tmp_path / "out").iterdir()) == []  # nor is the one before it drawn


def test_names_that_ffmpeg_or_the_file_system_would_not_take(tmp_path, monkeypatch):
    names = ["10:30", "x" * 240, "x" * 240 + "y"]
    (tmp_path / "videos").mkdir()
    for name in names:
        written = write_video(tmp_path / "written.avi", frames=20)
        written.rename(tmp_path / "videos" / f"{name}.avi")
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    run_attend(load_trained(checkpoint), options_of(".", data=str(tmp_path / "videos")))
    films = {"attend-10:30.mp4", *(f"attend-{'x' * 200}-{number}.mp4" for number in (1, 2))}
    assert {path.name for path in (tmp_path / "out").glob("*.mp4")} == films


def test_paces_that_were_classes_backwards_too_are_shown_so(tmp_path):
    write_tiny(tmp_path / "one.mp4", 0, 1, 30)
    checkpoint = pretrained(tmp_path / "run" / "last.pt", paces="1,2", reverse="label")
    options = options_of(tmp_path / "out", data=str(tmp_path / "one.mp4"))
    assert run_attend(load_trained(checkpoint), options)["paces"] == ["-2", "-1", "1", "2"]
    film = rgb_of(tmp_path / "out" / "attend-one.mp4")
    shown = [frame[23 : 23 + 128].astype(int) for frame in film]
    columns = [slice(4 + 132 * column, 132 * (column + 1)) for column in range(4)]
    for number in range(len(film)):
        for backwards, forwards in ((columns[0], columns[3]), (columns[1], columns[2])):
            difference = shown[number][:, backwards] - shown[-1 - number][:, forwards]
            assert np.abs(difference).mean() < 4
    assert np.abs(shown[0][:, columns[0]] - shown[0][:, columns[3]]).mean() > 4


def test_attention_over_time_is_as_the_options_say(tmp_path, monkeypatch):
    write_tiny(tmp_path / "one.mp4", 0, 1, 30)
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    asked = []

    def noting(backbone, clips, size, time="mean"):
        asked.append(time)
        return attention_maps(backbone, clips, size, time)

    monkeypatch.setattr("pacecore.attend.attention_maps", noting)
    for given in ({}, {"time": "last"}, {"time": "all"}):
        options = options_of(tmp_path / "out", data=str(tmp_path / "one.mp4"), **given)
        run_attend(load_trained(checkpoint), options)
    assert asked == ["mean", "last", "all"]


def test_paces_that_run_backwards_are_refused_without_an_option_that_attend_lacks(tmp_path):
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    with pytest.raises(PacecoreError, match=r"^paces must be positive, got -1,1$"):
        run_attend(load_trained(checkpoint), options_of(tmp_path, paces="-1,1"))


def test_time_must_be_known():
    with pytest.raises(PacecoreError, match="time must be mean, last or all, got 'sum'"):
        attention_maps(Given(torch.ones(1, 1, 1, 2, 2)), torch.zeros(1, 3, 1, 2, 2), (2, 2), "sum")


def test_what_another_rank_could_not_draw_is_not_written_down(tmp_path, monkeypatch):
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    write_tiny(tmp_path / "one.mp4", 0, 1, 20)

    def lost():
        raise PacecoreError("lost another rank")

    monkeypatch.setattr("pacecore.attend.barrier", lost)
    with pytest.raises(PacecoreError, match="lost another rank"):
        run_attend(load_trained(checkpoint), options_of(tmp_path, data=str(tmp_path / "one.mp4")))
    assert (tmp_path / "attend-one.png").exists()
    assert not (tmp_path / "attend.json").exists()


def test_a_video_that_does_not_decode_is_named(tmp_path, monkeypatch):
    write_tiny(tmp_path / "one.mp4", 0, 1, 20)
    checkpoint = pretrained(tmp_path / "run" / "last.pt")
    decoding(monkeypatch, lambda _: True)
    with pytest.raises(PacecoreError, match=r"one\.mp4: cut short"):
        run_attend(load_trained(checkpoint), options_of(tmp_path, data=str(tmp_path / "one.mp4")))
