"""The 10-clip protocol: every video decoded once and none dropped, several ranks, bad input."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pacecore import protocol, recognition
from pacecore.cli import test as test_verb
from pacecore.config import TestOptions, TrainOptions, from_mapping
from pacecore.convert import convert
from pacecore.errors import PacecoreError
from pacecore.evaluate import pace_accuracy
from pacecore.frames import Frames
from pacecore.loader import ClipBatch
from pacecore.protocol import ClipRunner, evenly_spaced
from pacecore.recognition import run_test
from pacecore.sampling import fitting_starts
from pacecore.trained import load_trained

from .ranks import run_ranks
from .sources import PacketSource
from .tiny import (
    CLASSES,
    decoding,
    finetuned,
    plain_clips,
    pretrained,
    tiny_set,
    write_tiny,
)
from .trees import tree

pytestmark = pytest.mark.usefixtures("one_thread")

NONE_READ = r"^held-out videos: none of the 6 videos can be read; the first one: .*: cut short$"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("evaluate") / "set", train=1, test=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, videos):
    return finetuned(tmp_path_factory.mktemp("run") / "best.pt", data=str(videos))


def options_of(**changes) -> TestOptions:
    return from_mapping(TestOptions, {"workers": 0, "device": "cpu", **changes})


@pytest.mark.parametrize("frames", [5, 16, 17, 25, 26, 300])
def test_starts_are_those_of_the_protocol(frames):
    starts = evenly_spaced(fitting_starts(frames, Fraction(1), 16), 10)
    expected = [max(0, frames - 16) * step // 9 for step in range(10)]
    assert starts.tolist() == expected


def plain_probabilities(trained, path) -> np.ndarray:
    """Probabilities of one video, by the definition."""
    scores = []
    for clip in plain_clips(path, 10):
        with torch.no_grad():
            scores.append(trained.head.eval()(trained.backbone.eval()(clip))[0].double())
    return torch.stack(scores).softmax(dim=1).mean(dim=0).numpy()


def test_every_video_is_decoded_once_and_none_is_dropped(videos, checkpoint, tmp_path, monkeypatch):
    opened = decoding(monkeypatch)
    result = run_test(load_trained(checkpoint), options_of(out=str(tmp_path), batch_clips=20))
    held_out = sorted(str(path) for path in (videos / "test").rglob("*.mp4"))
    assert sorted(map(str, opened)) == held_out
    assert result["videos"] == len(held_out) == 6
    assert np.sum(result["confusion"]) == 6
    assert json.loads((tmp_path / "test.json").read_text())["top1"] == result["top1"]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [line["path"] for line in lines] == held_out
    trained = load_trained(checkpoint)
    for line in lines:
        expected = plain_probabilities(trained, line["path"])
        np.testing.assert_allclose(line["probabilities"], expected, atol=2e-5)
        assert line["predicted"] == CLASSES[expected.argmax()]
        assert len(line["clips_predicted"]) == 10
    assert result["top1"] == np.mean([line["right"] for line in lines])


@pytest.mark.parametrize(("average", "predicted"), [("softmax", "Green"), ("logits", "Blue")])
def test_what_is_averaged_is_what_the_command_says(
    checkpoint, tmp_path, monkeypatch, average, predicted
):
    # Of each video one clip is surely Blue, two are likely Green; their mean is 3, 2, 0.
    scores = torch.tensor([[9.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]])
    monkeypatch.setattr(recognition._Scores, "forward", lambda *_: (scores,))
    words = [str(checkpoint), "--workers", "0", "--out", str(tmp_path), "--device", "cpu"]
    words += ["--clips", "3", "--batch-clips", "3", "--average", average]
    shown = CliRunner().invoke(test_verb.test, words, catch_exceptions=False)
    counted = f"6 videos, 3 clips each, mean of {average}; 0 unreadable"
    for said in (counted, "95 % interval", "mean per class", f"written: {tmp_path}/test.json\n"):
        assert said in shown.output
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [line["predicted"] for line in lines] == [predicted] * 6


def result_of_a_rank(rank, checkpoint, out):
    result = run_test(load_trained(checkpoint), options_of(out=out, batch_clips=20))
    return {name: result[name] for name in ("top1", "videos", "confusion", "unreadable")}


@pytest.mark.parametrize("kind", ["whole", "one unreadable", "fewer videos than ranks"])
def test_two_ranks_predict_what_one_process_does(checkpoint, tmp_path, kind):
    videos = tiny_set(tmp_path / "set", train=1, test=2)
    paths = sorted((videos / "test").rglob("*.mp4"))
    if kind == "one unreadable":
        paths[1].write_bytes(paths[1].read_bytes()[:600] + b"cut")
    if kind == "fewer videos than ranks":
        for path in paths[1:]:
            path.unlink()
    trained = finetuned(tmp_path / "best.pt", data=str(videos))
    one = run_test(load_trained(trained), options_of(out=str(tmp_path / "one"), batch_clips=20))
    both = run_ranks(result_of_a_rank, 2, str(trained), str(tmp_path / "two"))
    assert both[0] == both[1] == {name: one[name] for name in both[0]}
    assert one["videos"] == {"whole": 6, "one unreadable": 5, "fewer videos than ranks": 1}[kind]
    alone, together = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").open()]
        for name in ("one", "two")
    )
    assert len(alone) == len(together)
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_allclose(
            ours.pop("probabilities"), theirs.pop("probabilities"), rtol=0, atol=2e-6
        )
        assert ours == theirs


def pace_of_a_rank(rank, checkpoint, out):
    result = run_test(load_trained(checkpoint), options_of(out=out, clips=2))
    return {name: result[name] for name in ("pace_accuracy", "clips", "confusion")}


def test_two_ranks_measure_the_pace_as_one_process_does(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    one = run_test(load_trained(checkpoint), options_of(out=str(tmp_path / "one"), clips=2))
    both = run_ranks(pace_of_a_rank, 2, str(checkpoint), str(tmp_path / "two"))
    assert both[0] == both[1] == {name: one[name] for name in both[0]}


def test_batch_size_changes_nothing(checkpoint, tmp_path):
    one, other = (
        run_test(load_trained(checkpoint), options_of(out=str(tmp_path), batch_clips=size))
        for size in (1, 60)
    )
    assert one["confusion"] == other["confusion"]


def runner_of(model, clips, **fields):
    """Runs `model` on so many clips of 4 x 16 x 16 of a video."""
    options = from_mapping(TrainOptions, {"resize": (18, 20), "crop": 16, "clip_frames": 4})
    return ClipRunner(model, options, torch.device("cpu"), clips=clips, workers=0, **fields)


@pytest.mark.parametrize("wrong", [True, False])
def test_what_is_wrong_in_bf16_is_measured_in_fp32(checkpoint, tmp_path, monkeypatch, wrong):
    errors = {"conv1": 1.0} if wrong else {}
    monkeypatch.setattr("pacecore.device.errors_of_layers", lambda *_, gradients: errors)
    result = run_test(load_trained(checkpoint), options_of(out=str(tmp_path), amp="bf16"))
    assert result["measured_with"]["amp"] == ("none" if wrong else "bf16")


def test_where_memory_ends_it_goes_on_in_halves():
    sizes = []

    def model(clips):
        if len(clips) > 3:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(clips))
        return (clips.mean(dim=(2, 3, 4)),)

    runner = runner_of(model, 10, batch_clips=8)
    ((_, (means,)),) = runner.run(PacketSource((30,)))
    assert means.shape == (10, 3)
    assert sizes == [2] * 5
    sizes.clear()
    list(runner.run(PacketSource((30,))))  # the limit is remembered: no more trials
    assert sizes == [2] * 5


def test_one_clip_too_large_is_told():
    def model(clips):
        raise torch.OutOfMemoryError("no room")

    words = "one clip of 4 frames of 16 x 16 does not fit the memory of cpu"
    with pytest.raises(PacecoreError, match=words):
        list(runner_of(model, 4).run(PacketSource((30,))))


@pytest.mark.parametrize(("most", "expected"), [(1, [1] * 10), (4, [4, 4, 2]), (40, [8, 2])])
def test_no_more_clips_are_made_or_run_at_once_than_were_asked_for(most, expected, monkeypatch):
    made, sizes, make = [], [], ClipBatch.clips

    def counted(batch, *given):
        made.append(len(batch))
        return make(batch, *given)

    def model(clips):
        sizes.append(len(clips))
        return (clips.mean(dim=(2, 3, 4)),)

    monkeypatch.setattr(ClipBatch, "clips", counted)
    list(runner_of(model, 10, batch_clips=most).run(PacketSource((30,))))
    assert made == sizes == expected


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize("amp", [False, True])
def test_outputs_that_are_not_finite_are_no_figures(spoilt, amp):
    def model(clips):
        means = clips.mean(dim=(2, 3, 4))
        means[-1, 2] = spoilt
        return means, means.new_zeros(len(means), 5)

    how = ", in bf16; without --amp bf16 they may be" if amp else ""
    with pytest.raises(PacecoreError) as told:
        list(runner_of(model, 3, amp=amp).run(PacketSource((30, 41))))
    assert str(told.value) == f"video-1.avi: the network's outputs are not finite{how}"


class Numbered(PacketSource):
    """Videos whose frames are as bright as their numbers."""

    def decode(self, video, wanted):
        numbers = torch.from_numpy(np.asarray(wanted, dtype=np.uint8))
        return Frames.of_rgb(numbers.view(-1, 1, 1, 1).expand(-1, *self.size, 3).contiguous())


def test_every_clip_is_counted_at_the_pace_that_it_was_shown_at():
    def model(clips):
        """Takes a video's first frames for pace 4, and is right of all other clips."""
        frames = clips[:, 0, :, 0, 0].round()
        told = torch.where(frames[:, 0] == 0, 4, frames[:, 1] - frames[:, 0])
        return (torch.stack([told == pace for pace in (1, 2, 4)], dim=1).float(),)

    how = {"resize": (18, 20), "crop": 16, "clip_frames": 4, "normalize": "none"}
    options, cpu = from_mapping(TrainOptions, how), torch.device("cpu")
    paces = tuple(map(Fraction, (1, 2, 4)))
    runner = ClipRunner(model, options, cpu, paces=paces, clips=5, workers=0)
    result = pace_accuracy(runner, Numbered((30, 41)))
    assert result.classes == ("1", "2", "4")
    # Of the 5 clips of a video at each pace the first starts at frame 0.
    assert result.confusion == [[8, 0, 2], [0, 8, 2], [0, 0, 10]]
    assert (result.clips, result.accuracy) == (30, 26 / 30)


def test_pretrained_checkpoint_gives_pace_accuracy(videos, tmp_path):
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    result = run_test(load_trained(checkpoint), options_of(clips=2))
    assert result["classes"] == ["1", "2", "3", "4"]
    assert [sum(row) for row in result["confusion"]] == [12] * 4  # 6 videos, 2 clips each
    right = sum(result["confusion"][pace][pace] for pace in range(4))
    assert result["pace_accuracy"] == right / 48
    assert (tmp_path / "test.json").exists()


def test_pace_accuracy_heeds_the_time_of_a_video_and_says_why_one_is_left_out(
    tmp_path, monkeypatch
):
    given, load, read = [], protocol.load_batches, recognition.open_measured
    videos = tiny_set(tmp_path / "set", train=1, test=2)
    broken = videos / "test" / "Red" / "test0.mp4"

    def loaded(*arguments, **options):
        given.append(options["timeout_seconds"])
        return load(*arguments, **options)

    def broken_since(*arguments):
        data = read(*arguments)
        broken.write_bytes(b"no video any more")
        return data

    monkeypatch.setattr(protocol, "load_batches", loaded)
    monkeypatch.setattr(recognition, "open_measured", broken_since)
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    result = run_test(load_trained(checkpoint), options_of(clips=2, decode_timeout=7.0))
    assert given == [7.0]
    assert [sum(row) for row in result["confusion"]] == [10] * 4  # 5 videos
    assert (result["clips"], result["videos"]) == (40, 5)
    assert list(result["unreadable"]) == [str(broken)]
    assert "Invalid data" in result["unreadable"][str(broken)]


def test_pace_accuracy_of_no_video_is_refused_not_nan(videos, tmp_path, monkeypatch):
    decoding(monkeypatch, lambda _: True)
    checkpoint = pretrained(tmp_path / "last.pt", data=str(videos))
    with pytest.raises(PacecoreError, match=NONE_READ):
        run_test(load_trained(checkpoint), options_of(clips=2))
    assert not (tmp_path / "test.json").exists()


@pytest.mark.parametrize("name", ["head.bias", "backbone.conv1.conv.weight"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name):
    path = finetuned(tmp_path / "last.pt")
    content = torch.load(path, weights_only=True)
    content["model"][name].view(-1)[0] = float("nan")
    torch.save(content, path)
    convert(path, bare := tmp_path / "bare-last.pt")
    for each in (path, bare):
        with pytest.raises(PacecoreError, match=rf"last\.pt: 1 of its \d+ weights are .* {name}"):
            load_trained(each)


def test_an_unreadable_video_is_named_not_counted_and_not_hidden(checkpoint, tmp_path):
    videos = tiny_set(tmp_path / "set", train=1, test=2)
    broken = videos / "test" / "Red" / "test0.mp4"
    broken.write_bytes(b"not a video")
    result = run_test(load_trained(checkpoint), options_of(data=str(videos), out=str(tmp_path)))
    assert (result["data"], result["videos"]) == (str(videos), 5)
    assert list(result["unreadable"]) == [str(broken)]


def test_figures_that_cannot_be_written_are_told_all_the_same(checkpoint, tmp_path, monkeypatch):
    def full(path, _):
        raise PacecoreError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(recognition, "write_json", full)
    words = [str(checkpoint), "--out", str(tmp_path), "--clips", "2", "--workers", "0"]
    shown = CliRunner().invoke(test_verb.test, [*words, "--device", "cpu"])
    assert str(shown.exception).endswith("No space left on device")
    assert "6 videos, 2 clips each" in shown.output


def test_figures_are_written_after_what_they_are_of(checkpoint, tmp_path, monkeypatch):
    """With test.json all is there: by it a grid of experiments knows what is done."""

    def full(_, path):
        raise PacecoreError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(recognition.ActionResult, "write_predictions", full)
    with pytest.raises(PacecoreError, match="No space left on device"):
        run_test(load_trained(checkpoint), options_of(out=str(tmp_path), clips=1))
    assert not list(tmp_path.iterdir())


def test_figures_that_cannot_be_told_are_written_all_the_same(checkpoint, tmp_path):
    def tell(result):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_test(load_trained(checkpoint), options_of(out=str(tmp_path)), tell)
    assert {path.name for path in tmp_path.iterdir()} == {"test.json", "predictions.jsonl"}


def test_a_video_that_fails_while_it_is_decoded_is_named_too(checkpoint, tmp_path, monkeypatch):
    decoding(monkeypatch, lambda path: path.match("Blue/test0.mp4"))
    result = run_test(load_trained(checkpoint), options_of(out=str(tmp_path)))
    assert result["videos"] == 5
    assert list(result["unreadable"].values()) == ["cut short"]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [line["path"].split("/")[-2] for line in lines] == [line["label"] for line in lines]
    assert [line["label"] for line in lines] == ["Blue", "Green", "Green", "Red", "Red"]


def test_accuracy_of_no_video_is_refused_not_nan(checkpoint, tmp_path, monkeypatch):
    decoding(monkeypatch, lambda _: True)
    with pytest.raises(PacecoreError, match=NONE_READ):
        run_test(load_trained(checkpoint), options_of(out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_of_many_classes_the_worst_are_printed_and_those_without_a_video(videos, tmp_path):
    classes = (*CLASSES, *(f"Shade{number}" for number in range(18)))
    checkpoint = finetuned(tmp_path / "best.pt", data=str(videos), classes=classes)
    words = [str(checkpoint), "--workers", "0", "--clips", "2", "--device", "cpu"]
    said = CliRunner().invoke(test_verb.test, words, catch_exceptions=False).output
    (worst,) = [line for line in said.splitlines() if line.startswith("lowest: ")]
    assert sorted(worst.removeprefix("lowest: ").replace(" %", "").split(", ")) == sorted(
        f"{name} {100 * share:.1f}"
        for name, share in json.loads((tmp_path / "test.json").read_text())["per_class"].items()
        if share is not None
    )
    missing = ", ".join(classes[3:])
    assert f"classes without a video here, left out of the mean per class: {missing}\n" in said


def test_a_checkpoint_without_a_head_says_how_to_get_one(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "bare.pt")
    with pytest.raises(PacecoreError, match="without a head for actions; make one with: pacecore"):
        run_test(load_trained(tmp_path / "bare.pt"), options_of())


def test_data_without_held_out_videos(checkpoint, tmp_path):
    for number in range(2):
        write_tiny(tmp_path / f"set/Red/{number}.mp4", 0, number, 20)
        write_tiny(tmp_path / f"set/Blue/{number}.mp4", 2, number, 20)
    with pytest.raises(PacecoreError, match="no held-out video to test on; --held-out"):
        run_test(load_trained(checkpoint), options_of(data=str(tmp_path / "set")))


def test_a_result_of_other_videos_that_is_replaced_is_named(videos, tmp_path):
    checkpoint = finetuned(tmp_path / "best.pt", data=str(videos))
    words = [str(checkpoint), "--workers", "0", "--clips", "1", "--device", "cpu"]
    held = ["--held-out", str(videos / "test")]  # which are the data's own test videos
    others = [str(videos), "--held-out", str(videos / "train")]
    told = []
    for more in ([], [], held, others, others, []):
        shown = CliRunner().invoke(test_verb.test, [*words, *more], catch_exceptions=False)
        told.append(shown.output.partition("test.json\n")[2])
    end = "; another --out keeps both\n"
    mine = f"replaced: the result on other videos, 6 of {videos}, split 1{end}"
    theirs = f"replaced: the result on other videos, 3 of {videos / 'train'}{end}"
    assert told == [
        "",
        "",
        "",
        mine.replace(f"{videos}, split 1", f"{videos / 'test'}"),
        "",
        theirs,
    ]
    assert "replaced" not in json.loads((tmp_path / "test.json").read_text())


def test_a_folder_that_cannot_be_made_is_told_before_the_reading(checkpoint, monkeypatch):
    monkeypatch.setattr(protocol, "open_inputs", None)
    out = f"{checkpoint}/results"
    words = r"best\.pt/results: cannot be written: .*best\.pt is not a folder$"
    with pytest.raises(PacecoreError, match=words):
        run_test(load_trained(checkpoint), options_of(out=out))


def test_a_folder_in_place_of_a_checkpoint_says_what_to_name(tmp_path):
    run = tree(tmp_path / "run", "last.pt")
    for place, said in ((tmp_path, "a checkpoint is a file$"), (run, r"name .* it, .*last\.pt$")):
        with pytest.raises(PacecoreError, match=f"a folder; {said}"):
            load_trained(place)
