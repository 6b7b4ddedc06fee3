"""The verb `train` on real files, as a user calls it: what it leaves, and says of bad input."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pacecore.checkpoint import load_checkpoint
from pacecore.cli import main
from pacecore.config import TrainOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.evaluate import PaceResult
from pacecore.rules import read_toml
from pacecore.train import PaceModel, PaceTask, _size_words, pace_model, pretrain
from pacecore.trained import load_trained
from tests.ranks import held_elsewhere
from tests.tiny import SMALL, decoding, finetuned, pretrained, tiny_set, write_tiny
from tests.trees import tree

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "--backbone", "r3d", "--width", "0.125", "--clip-frames", "8", "--resize", "32,40",
    "--crop", "32", "--normalize", "unit", "--workers", "0", "--device", "cpu", "--batch", "4",
    "--repeat", "1", "--epochs", "1", "--lr", "0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("videos"))


def call(monkeypatch, capsys, *words):
    """Exit code, standard output and standard error of `pacecore WORDS`."""
    monkeypatch.setattr(sys, "argv", ["pacecore", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def train(monkeypatch, capsys, *words):
    return call(monkeypatch, capsys, "train", *words, *TINY)


def test_a_run_from_files_to_summary(monkeypatch, capsys, videos, tmp_path):
    run = tmp_path / "run"
    code, out, err = train(monkeypatch, capsys, videos, "--out", run)
    assert code == 0, err
    assert "12 training videos" in out
    assert "held-out pace accuracy" in out
    assert "times chance (25.0 %), on 72 clips" in out
    assert {path.name for path in run.iterdir()} >= {
        "options.toml", "metrics.jsonl", "last.pt", "clips.png", "summary.json",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["videos"] == 12
    assert summary["options"]["width"] == 0.125
    assert summary["results"]["held_out_clips"] == 72

    monkeypatch.chdir(tmp_path)  # another run, in a folder of its own
    code, _, err = call(monkeypatch, capsys, "train", "--config", run / "options.toml")
    assert code == 0, err
    again = tmp_path / "runs" / "train-1"
    one, two = (load_checkpoint(folder / "last.pt")["model"] for folder in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)

    code, _, err = train(monkeypatch, capsys, videos, "--out", run)
    assert code == 2
    refused = f"out: {run} holds a run already; name another, or --resume {run}"
    assert err.endswith(f"{refused}\n")
    with pytest.raises(PacecoreError, match=refused):  # by Python alike
        pretrain(from_mapping(TrainOptions, read_toml(run / "options.toml")))


def test_a_run_that_nobody_reads_of_is_whole(videos, tmp_path, nobody_reads):
    options = {**SMALL, "data": str(videos), "out": str(tmp_path), "batch": 4, "max_steps": 1}
    with nobody_reads():
        pretrain(from_mapping(TrainOptions, options))
    assert (tmp_path / "summary.json").exists()


def test_what_a_notebook_has_set_for_itself_is_no_matter(monkeypatch, capsys, videos, tmp_path):
    found = []
    for out in (tmp_path / "usual", tmp_path / "own"):
        try:
            if out.name == "own":
                torch.set_default_dtype(torch.float64)
                torch.set_default_device("meta")  # in place of a GPU
                torch.set_grad_enabled(False)
            torch.seed()
            drawn = torch.get_rng_state()
            # Its arithmetic counts from the second step on, in the gradients of the first.
            with torch.autocast("cpu", torch.bfloat16, enabled=out.name == "own"):
                code, _, err = train(monkeypatch, capsys, videos, "--out", out, "--workers", "1")
            assert code == 0, err
            assert torch.equal(torch.get_rng_state(), drawn)
            found.append(load_trained(out / "last.pt").backbone.state_dict())
            if out.name == "own":
                assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (
                    torch.float64,
                    False,
                )
                assert torch.get_default_device().type == "meta"
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            torch.set_grad_enabled(True)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize(("weight", "warns"), [(1.0, True), (0.0, False)])
def test_one_answer_to_every_clip_is_a_collapse_of_what_was_trained(monkeypatch, weight, warns):
    found = PaceResult(("1", "2"), [[3, 0], [3, 0]], {})
    monkeypatch.setattr("pacecore.train.pace_accuracy", lambda *_: found)
    options = from_mapping(
        TrainOptions, {"paces": "1,2", "views": 2, "lambda_cls": weight}, preset="demo"
    )
    task = PaceTask(options, pace_model(options), held_out=[], device=torch.device("cpu"))
    assert ("warning" in task.evaluate(lambda: None)) == warns


@pytest.mark.parametrize(("line", "width"), [("seed = 3", 0.125), ('preset = "paper"', 1.0)])
def test_a_file_that_names_neither_data_nor_preset_is_of_the_demo(
    monkeypatch, tmp_path, line, width
):
    (tmp_path / "my.toml").write_text(line)
    seen = []
    monkeypatch.setattr("pacecore.train.pretrain", lambda options: seen.append(options) or 1 / 0)
    monkeypatch.setattr(sys, "argv", ["pacecore", "train", "--config", str(tmp_path / "my.toml")])
    with pytest.raises(ZeroDivisionError):
        main()
    assert seen[0].width == width


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_the_curves_of_a_run_are_drawn_at_its_end(monkeypatch, capsys, videos, tmp_path, verb):
    pytest.importorskip("matplotlib", reason="curves need matplotlib")
    words = [verb, *(["--scratch"] if verb == "finetune" else []), videos, *TINY]
    code, out, err = call(monkeypatch, capsys, *words, "--out", tmp_path / "a")
    assert code == 0, err
    curves = tmp_path / "a" / "curves.png"
    assert f"curves: {curves}\n" in out
    assert curves.read_bytes().startswith(b"\x89PNG")
    for module in ("matplotlib", "matplotlib.figure"):  # as where it is not installed
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pacecore.plots")
    code, out, err = call(monkeypatch, capsys, *words, "--out", tmp_path / "b")
    assert code == 0, err
    assert out.count("curves: none, as matplotlib is not installed; pip install") == 1
    assert not (tmp_path / "b" / "curves.png").exists()


def test_paces_are_told_from_the_features_and_embeddings_are_their_projection():
    class Given(torch.nn.Module):
        feature_dim = 2

        def forward(self, clips):
            return clips

    model = PaceModel(Given(), classes=1, proj_dim=3)
    with torch.no_grad():
        for layer, rows, bias in (
            (model.head, [[10.0, 1.0]], [0.5]),
            (model.projection[0], [[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]], [0.0, 0.0, 4.0]),
        ):
            layer.weight.copy_(torch.tensor(rows))
            layer.bias.copy_(torch.tensor(bias))
        logits, z = model(torch.tensor([[2.0, 3.0], [-2.0, 1.0]]))
    assert logits.tolist() == [[23.5], [-18.5]]
    assert z.tolist() == [[2.0, 0.0, 9.0], [0.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("contrast", "proj_dim", "size"), [("context", 8, 8), ("context", 0, 64), ("none", 8, 64)]
)
def test_the_network_is_that_of_its_options(contrast, proj_dim, size):
    options = {**SMALL, "contrast": contrast, "proj_dim": proj_dim}
    model = pace_model(from_mapping(TrainOptions, options)).eval()
    logits, z = model(torch.zeros(1, 3, 8, 32, 32))
    assert (logits.shape, z.shape) == ((1, 4), (1, size))


@pytest.mark.parametrize("kept", [True, False])
def test_the_network_computes_maps_again_where_that_is_asked_for(kept):
    model = pace_model(from_mapping(TrainOptions, {**SMALL, "checkpointing": kept}))
    assert model.backbone.checkpointing is kept


@pytest.mark.parametrize("contrast", ["context", "pace", "none"])
def test_every_contrast_trains(monkeypatch, capsys, videos, tmp_path, contrast):
    words = ["--contrast", contrast, "--max-steps", "2", "--held-out", "none", "--proj-dim", "8"]
    code, _, err = train(monkeypatch, capsys, videos, "--out", tmp_path / "run", *words)
    assert code == 0, err


def test_resuming_takes_its_options_from_the_run(monkeypatch, capsys, videos, tmp_path):
    run = tmp_path / "run"
    train(monkeypatch, capsys, videos, "--out", run, "--max-steps", "2")
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, "--max-steps", "3")
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, "--out", run)
    assert code == 0, err
    assert load_checkpoint(run / "last.pt")["totals"]["step"] == 3
    for verb in ("train", "finetune"):
        code, _, err = call(monkeypatch, capsys, verb, "--resume", run, "--out", tmp_path)
        said = f"pacecore: --resume goes on in {run}: leave out --out, got '{tmp_path}'\n"
        assert (code, err) == (2, said)
    longer = ["--epochs", "2", "--max-steps", "0"]
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, *longer)
    assert code == 0, err
    assert load_checkpoint(run / "last.pt")["totals"]["step"] == 6
    written = (run / "options.toml").read_text(), (run / "summary.json").read_text()
    for short, said in (
        (("--max-steps", "5"), f"max_steps must be at least the 6 steps that {run} has done, got"),
        (("--epochs", "1"), f"epochs must be at least the 2 epochs that {run} has done, got"),
    ):
        code, _, err = call(monkeypatch, capsys, "train", "--resume", run, *short)
        assert (code, err.splitlines()[-1]) == (2, f"pacecore: {said} {short[1]}")
    assert ((run / "options.toml").read_text(), (run / "summary.json").read_text()) == written
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, "--max-steps", "6")
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, "--lr", "0.5")
    assert (code, err) == (
        2,
        f"pacecore: lr must stay 0.01 in the resumed run {run}, got 0.5\n",
    )
    turning = tmp_path / "cosine"
    train(monkeypatch, capsys, videos, "--out", turning, "--max-steps", "2", "--schedule", "cosine")
    for length in ("max-steps", "epochs"):
        code, _, err = call(monkeypatch, capsys, "train", "--resume", turning, f"--{length}", "3")
        assert code == 2
        assert f"{length.replace('-', '_')} must stay" in err
    whole = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(whole[:-500])
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run)
    assert code == 2
    assert "last.pt: not a checkpoint, or cut short" in err
    assert "--resume-previous uses it" in err
    code, _, err = call(monkeypatch, capsys, "train", "--resume", run, "--resume-previous")
    assert code == 0, err


def following(out):
    """The commands that a run ends with, as a shell reads them."""
    _, _, lines = out.partition("next:\n")
    return [shlex.split(line.split("   ")[0]) for line in lines.splitlines()]


@pytest.mark.parametrize(
    ("labelled", "held_out", "verbs"),
    [
        (True, "auto", ["test", "finetune", "retrieve", "attend"]),
        (True, "none", ["finetune", "attend"]),
        (False, "auto", ["test", "attend"]),
        (False, "none", ["attend"]),
    ],
)
def test_the_commands_that_follow_are_those_that_the_videos_serve(
    monkeypatch, capsys, videos, tmp_path, labelled, held_out, verbs
):
    if not labelled:
        videos = tmp_path / "flat"
        for number in range(10):
            write_tiny(videos / f"{number}.mp4", number % 3, number, 20)
    run = tmp_path / "a run"
    words = ["--max-steps", "1", "--held-out", held_out, "--out", run]
    code, out, err = train(monkeypatch, capsys, videos, *words)
    assert code == 0, err
    assert following(out.strip()) == [["pacecore", verb, str(run / "last.pt")] for verb in verbs]
    for _, *command in following(out):
        tail = ["--device", "cpu", "--out", tmp_path / command[0]]
        tail += ["--max-steps", "1"] if command[0] == "finetune" else []
        code, out, err = call(monkeypatch, capsys, *command, *tail)
        assert code == 0, err
        if command[0] == "finetune":
            tested = [["pacecore", "test", str(tmp_path / "finetune" / "last.pt")]]
            assert following(out) == tested  # its own held-out videos are those of the data
    code, _, err = train(monkeypatch, capsys, videos, *words)
    assert err.endswith(f"name another, or --resume '{run}'\n")


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_the_last_words_name_the_videos_that_were_left_out(
    monkeypatch, capsys, videos, tmp_path, verb
):
    bad = videos / "train" / "Green" / "train1.mp4"
    decoding(monkeypatch, lambda path: path == bad)
    start = ["train"] if verb == "train" else ["finetune", "--scratch", "--val-share", "0.25"]
    code, out, err = call(monkeypatch, capsys, *start, videos, "--out", tmp_path / "run", *TINY)
    assert code == 0, err
    assert f"\nleft out: {bad}: cut short\nrun: {tmp_path}/run" in out
    if verb == "finetune":
        best = r"\nbest on 3 videos of the training split, set aside by video: [0-9.]+ % after step"
        assert re.search(rf"{best} [0-9]+: {tmp_path}/run/best\.pt\n", out)


def test_held_out_videos_none_of_which_is_read_give_a_reason_not_nan(
    monkeypatch, capsys, videos, tmp_path
):
    summary = json.loads(_with_unread(monkeypatch, capsys, videos, tmp_path, videos / "test", 6))
    assert set(summary["results"]) == {"warning"}


def test_a_fine_tuning_none_of_whose_validation_videos_is_read_goes_on_and_says_why(
    monkeypatch, capsys, videos, tmp_path
):
    run = tmp_path / "run"
    words = ["--out", run, "--val-share", "0.1", "--max-steps", "1", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr("pacecore.finetune.ClipRunner.run", lambda runner, _: _none(runner))
        code, out, err = call(patch, capsys, "finetune", "--scratch", videos, *words)
    assert code == 0, err
    said = "1 of 1 validation videos cannot be read, the first is a.mp4: cut short"
    assert f"\nwarning: {said}\n" in out
    assert f"\nno best: {said}: last.pt is the result\n" in out
    assert json.loads((run / "summary.json").read_text())["results"] == {"warning": said}
    code, out, err = call(monkeypatch, capsys, "finetune", "--resume", run, "--max-steps", "2")
    assert code == 0, err
    assert f": {run}/best.pt\n" in out


def test_of_a_fine_tuning_that_goes_on_one_argument_alone_is_data(
    monkeypatch, capsys, videos, tmp_path
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(videos, "set")
    pretrained(tmp_path / "pre.pt", data="set")
    words = ["--out", "run", "--max-steps", "1", *TINY]
    for before in (["--scratch", "set"], ["pre.pt"]):
        code, _, err = call(monkeypatch, capsys, "finetune", *before, *words)
        assert code == 0, err
        Path("set").rename("moved")
        code, _, err = call(monkeypatch, capsys, "finetune", "moved", "--resume", "run")
        assert code == 0, err
        Path("moved").rename("set")
        if before == ["pre.pt"]:
            code, _, err = call(monkeypatch, capsys, "finetune", "./pre.pt", "--resume", "run")
            assert code == 0, err
        shutil.rmtree("run")


def _none(runner):
    runner.unreadable["a.mp4"] = "cut short"
    return iter(())


def test_a_figure_of_a_part_of_the_held_out_videos_says_so(monkeypatch, capsys, videos, tmp_path):
    red = videos / "test" / "Red"
    summary = json.loads(_with_unread(monkeypatch, capsys, videos, tmp_path, red, 2))
    assert summary["results"]["held_out_clips"] == 48


def _with_unread(monkeypatch, capsys, videos, tmp_path, folder, count):
    """summary.json of a run that cannot decode the `count` held-out videos in `folder`."""
    decoding(monkeypatch, lambda path: path.is_relative_to(folder))
    code, out, _ = train(monkeypatch, capsys, videos, "--out", tmp_path / "run")
    assert code == 0
    assert f"warning: {count} of 6 held-out videos cannot be read, the first is {folder}" in out
    assert ".mp4: cut short\n" in out
    assert "nan" not in out
    text = (tmp_path / "run" / "summary.json").read_text()
    assert "NaN" not in text
    return text


def test_a_fine_tuning_without_held_out_videos_suggests_nothing(
    monkeypatch, capsys, videos, tmp_path
):
    words = [videos, *TINY, "--held-out", "none", "--max-steps", "1", "--out", tmp_path / "run"]
    code, out, err = call(monkeypatch, capsys, "finetune", "--scratch", *words)
    assert code == 0, err
    assert "curves: " in out
    assert "next:" not in out


@pytest.mark.parametrize(("made", "by"), [(pretrained, "train"), (finetuned, "finetune")])
def test_a_run_is_resumed_by_its_own_verb(monkeypatch, capsys, tmp_path, made, by):
    made(tmp_path / "last.pt", data="videos that are not there")
    verb = {"train": "finetune", "finetune": "train"}[by]
    code, _, err = call(monkeypatch, capsys, verb, "--resume", tmp_path)
    words = f"pacecore: {tmp_path / 'last.pt'}: a run of pacecore {by}; resume it with that\n"
    assert (code, err) == (2, words)


def test_a_folder_that_another_process_trains_into_is_left_alone(
    monkeypatch, capsys, videos, tmp_path
):
    run = tmp_path / "run"
    with held_elsewhere(run / ".lock") as other:
        code, _, err = train(monkeypatch, capsys, videos, "--out", run)
    assert code == 2
    assert f"pacecore: {run}: process {other} on " in err
    assert err.endswith(" is training into it; wait or stop it\n")
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_run_goes_on_where_a_video_of_it_cannot_be_read_any_more(
    monkeypatch, capsys, videos, tmp_path
):
    """Its length and its labels stay known, and its steps draw from as many videos as before."""
    folder = shutil.copytree(videos, tmp_path / "videos")
    run = tmp_path / "run"
    assert train(monkeypatch, capsys, folder, "--out", run, "--max-steps", "1")[0] == 0
    for victim in (next((folder / part).rglob("*.mp4")) for part in ("train", "test")):
        victim.write_bytes(victim.read_bytes()[:300])
    code, out, err = call(monkeypatch, capsys, "train", "--resume", run, "--max-steps", "0")
    assert code == 0, err
    assert "12 training videos" in out
    assert "warning: 1 of 6 held-out videos cannot be read" in out


def test_a_damaged_file_among_good_ones_is_named_and_skipped(monkeypatch, capsys, videos, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    victim = next((folder / "train").rglob("*.mp4"))
    victim.write_bytes(victim.read_bytes()[:300])
    code, out, err = train(monkeypatch, capsys, folder, "--out", tmp_path / "run")
    assert code == 0, err
    assert "11 training videos" in out
    assert f"left out: {victim}: " in out
    code, _, err = train(monkeypatch, capsys, folder, "--out", tmp_path / "no", "--max-bad", "0")
    assert code == 2
    assert "more than max_bad = 0 videos cannot be read" in err
    assert victim.name in err


@pytest.mark.parametrize("verb", [["train"], ["finetune", "--scratch"]])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--depth", "7"], "depth must be one of 0, 10, 18, got 7"),
        (["--backbone", "s3dg", "--depth", "18"], "depth must be 0 for s3dg, got 18"),
        (["--graph"], "graph needs a CUDA device, got cpu"),
        (["--tensorboard"], "tensorboard is not installed; install pacecore[tensorboard]"),
    ],
)
def test_what_cannot_be_met_is_told_before_videos_are_read(
    monkeypatch, capsys, videos, tmp_path, verb, words, expected
):
    monkeypatch.setattr("pacecore.beginning.open_inputs", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where it is missing
    words = [*verb, videos, *TINY, *words, "--out", tmp_path / "run"]
    code, _, err = call(monkeypatch, capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_clips_that_loop_are_told_with_every_kind_of_start(monkeypatch, capsys, tmp_path):
    """Eight frames at pace 3 are 22: videos of 20 betray that pace whatever the start."""
    for number in range(3):
        write_tiny(tmp_path / "flat" / f"{number}.mp4", number, number, 20)
    words = [tmp_path / "flat", "--max-steps", "1", "--held-out", "none", "--start"]
    _, out, _ = train(monkeypatch, capsys, *words, "fit", "--out", tmp_path / "a")
    told = "clips that loop, which betrays their pace: 0 % at 1, 0 % at 2, 100 % at 3, 100 % at 4"
    assert f"{told}\n" in out
    _, out, _ = train(monkeypatch, capsys, *words, "all", "--out", tmp_path / "b")
    told = "clips that loop, which betrays their pace: 35 % at 1, 70 % at 2, 100 % at 3, 100 % at 4"
    assert f"{told}\n" in out
    words = [tmp_path / "flat", "--max-steps", "1", "--start", "fit", "--paces", "1,2"]
    _, out, _ = train(monkeypatch, capsys, *words, "--out", tmp_path / "c")
    assert "betrays their pace: none" in out


def test_flat_folders_and_lists(monkeypatch, capsys, tmp_path):
    flat = tmp_path / "flat"
    for number in range(3):
        write_tiny(flat / f"{number}.mp4", number, number, 20)
    words = ["--max-steps", "1", "--start", "fit"]
    code, out, err = train(monkeypatch, capsys, flat, "--out", tmp_path / "a", *words)
    assert code == 0, err
    assert "3 training videos" in out
    assert "none held out" in out
    listed = tmp_path / "list.txt"
    listed.write_text("flat/0.mp4\nflat/2.mp4\n")
    code, out, err = train(monkeypatch, capsys, listed, "--out", tmp_path / "b", *words)
    assert code == 0, err
    assert "2 training videos" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing-folder"], "missing-folder: no such file or folder"),
        (["EMPTY"], "no video in it"),
        (["VIDEOS", "--crop", "64"], "crop must be at most resize (32, 40), got 64"),
        (["VIDEOS", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["VIDEOS", "--paces", "1,1"], "paces must differ from each other, got 1,1"),
        (["VIDEOS", "--resize", "32"], "must be HEIGHT,WIDTH, such as 128,171"),
        (["VIDEOS", "--preset", "papr"], "'papr' is not one of"),
        (["VIDEOS", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:<n>, got 'tpu'"),
        (["VIDEOS", "--data-on", "device"], "data_on device needs a frame store"),
        (["VIDEOS", "--config", "none.toml"], "none.toml: options cannot be read"),
        (["--resume", "none"], "last.pt: no such checkpoint"),
        (["--resume", "empty/last.pt"], "last.pt: a file; --resume takes a run's folder, empty\n"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(monkeypatch, capsys, videos, tmp_path, words, expected):
    tree(tmp_path / "empty", "last.pt")
    places = {"VIDEOS": videos, "EMPTY": tmp_path / "empty"}
    given = [places.get(word, word) for word in words]
    monkeypatch.chdir(tmp_path)
    last = [] if "--resume" in words else [each for each in TINY if each not in ("--device", "cpu")]
    for option in ("--crop", "--epochs", "--resize"):
        if option in words:
            place = last.index(option)
            del last[place : place + 2]
    code, _, err = call(monkeypatch, capsys, "train", *given, *last)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_full_size_on_a_cpu_is_warned_of():
    """60 clips of full size were killed at 23 GB, by the system and without a word."""
    cpu, full = torch.device("cpu"), TrainOptions().resolved()
    assert "--preset small" in _size_words(full, cpu)
    assert not _size_words(full, torch.device("cuda"))
    assert not _size_words(from_mapping(TrainOptions, {}, preset="small"), cpu)
