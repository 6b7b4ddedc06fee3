"""The grid of experiments: its cells, run by the verbs on tiny videos, and its pages."""

import json
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import ROOT
from benchmarks.experiments import page, scenes
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.arms import ABLATIONS, ARMS, LONG, OWN, SETTINGS, Arm, Setting
from benchmarks.experiments.cells import Cell, CellError
from pacecore.config import FinetuneOptions, TrainOptions, from_mapping
from pacecore.datasets import find_videos, probe_all
from pacecore.errors import PacecoreError
from pacecore.presets import PRESETS
from pacecore.store import pack
from tests.ranks import held_elsewhere
from tests.tiny import SMALL, finetuned, tiny_set, write_tiny

_TINY = tuple(
    word
    for name, value in SMALL.items()
    if name != "device"
    for word in (
        f"--{name.replace('_', '-')}",
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
    )
)
_STEPS = ("--max-steps", "2")
TINY = Setting(_TINY, _STEPS, 4, 2, ("--batch", "4"), _STEPS, _STEPS, _STEPS)
# Random weights are an arm of three of the grids.
EVERY_ARM = {arm.name: arm for arm in (*ARMS, *ABLATIONS, *LONG, *OWN)}.values()


def test_statistics_of_random_weights_are_those_of_the_videos():
    """And not the mean 0 and variance 1 that they begin with, of which each step leaves 0.9."""
    for setting in SETTINGS.values():
        steps = int(setting.random[setting.random.index("--max-steps") + 1])
        assert 0.9**steps < 1e-4


def cell(folder: Path, arm: Arm, data: Path = Path(), seed: int = 0, limit: float = 300) -> Cell:
    return Cell(arm, seed, TINY, data, folder / f"{arm.name}-seed{seed}", limit, 1, "cpu")


def by_name(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


def test_cell_past_its_limit_says_so_and_goes_on_to_its_end_and_then_runs_nothing(tmp_path):
    data = tiny_set(tmp_path / "videos", train=2, test=1)
    short = cell(tmp_path, by_name("pace"), data, limit=1.0)
    with pytest.raises(CellError, match="pretrain stopped after"):
        short.run()
    # As in the grid `long`, where fine-tuning runs once more.
    mine = replace(short, limit_seconds=300, arm=replace(short.arm, finetunes=(1, 4)))
    assert not mine.finished()
    mine.run()
    assert mine.finished()
    assert [path.name for path in mine.run_folders()] == [
        "pretrain",
        "probe",
        "finetune",
        "finetune-4x",
    ]
    assert json.loads((mine.folder / "finetune-4x/summary.json").read_text())["steps"] == 8
    log = (mine.folder / "cell.log").read_text()
    assert log.count("$ pacecore") == 9  # pretrain again, retrieve, three trainings and tests
    for measure in page.MEASURES:
        assert len(page.hits_of(mine, measure)) == 3
    mine.run()
    assert (mine.folder / "cell.log").read_text() == log
    written = page.evidence_page([mine], "tiny")
    assert "| pace | 1 |" in written
    assert "not standardised" not in written
    # One arm alone is compared with nothing.
    assert "Of the 0 comparisons in the tables below, 0 stand out" in written
    assert {case["standardised"] for case in page.summary([mine]) if "standardised" in case} == {
        True
    }
    assert "## Held-out pace accuracy" in written
    ablation = page.evidence_page([mine], "tiny", baseline=mine.arm)
    assert "claims" not in ablation
    assert "above pace by" in ablation


def test_a_page_says_where_the_features_of_probes_were_not_standardised(tmp_path):
    mine = cell(tmp_path, by_name("pace"))
    finetuned(mine.folder / "probe" / "last.pt", freeze="backbone")  # as it was once
    line = {"path": "a.mp4", "right": True}
    (mine.folder / "probe" / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    written = page.evidence_page([mine], "tiny")
    assert written.count("These say nothing: the features were not standardised") == 1
    (case,) = page.summary([mine])[:1]
    assert (case["measure"], case["standardised"]) == ("probe", False)


def test_cell_names_the_stage_that_failed(tmp_path):
    with pytest.raises(CellError, match=r"scratch-seed0: finetune ended with code 2: .*cell\.log"):
        cell(tmp_path, by_name("scratch"), tmp_path / "missing").run()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_stopping_the_grid_ends_its_cells(tmp_path, sent):
    data = tiny_set(tmp_path / "videos", train=2, test=1)
    runs = tmp_path / "runs"
    command = ["-m", "benchmarks.experiments", data, "--runs", runs, "--arms", "pace,context"]
    command += ["--seeds", "0", "--jobs", "2", "--device", "cpu", "--out", tmp_path / "record.json"]
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as grid:
        logs = [runs / f"{arm}-seed0" / "cell.log" for arm in ("pace", "context")]
        end = time.monotonic() + 120
        while not all(log.is_file() and "training videos" in log.read_text() for log in logs):
            assert time.monotonic() < end, grid.poll()
            time.sleep(0.1)
        grid.send_signal(sent)
        _, errors = grid.communicate(timeout=120)
    assert grid.returncode == 130
    assert errors.count("stopped; the same command goes on with it") == 2
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(runs) in _text(path)]
    assert alive == []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (("frames.bin", "index.json"), ""),
        (("frames.bin",), "no frame store in it"),
        ((), "no video in it"),
    ],
    ids=["store", "unfinished", "nothing"],
)
def test_data_are_refused_before_any_cell_begins(tmp_path, monkeypatch, kept, said):
    data = tiny_set(tmp_path / "videos", train=2, test=1)
    store, _ = pack(probe_all(find_videos(data), 1)[0], tmp_path / "store", (16, 20), workers=1)
    for path in set(store.folder.iterdir()) - {store.folder / name for name in kept}:
        path.unlink()
    words = ["experiments", str(store.folder), "--runs", str(tmp_path / "runs"), "--pages"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(PacecoreError, match=said) if said else nullcontext():
        assert main() == 0


def test_long_schedule_is_so_many_times_the_setting_s(tmp_path):
    """Of the pre-training, and of the fine-tuning where it is asked to be longer too."""
    long = next(arm for arm in LONG if arm.name == "long")
    for setting in SETTINGS.values():

        def lengths(arm: Arm, name: str, words: tuple[str, ...], setting=setting) -> list[int]:
            stages = Cell(arm, 0, setting, tmp_path, tmp_path, 1, 1, "cpu")._stages()
            command = next(command for stage, _, command in stages if stage == name)
            return [int(command[command.index(word) + 1]) for word in words[::2]]

        short = lengths(by_name("pace"), "pretrain", setting.pretrain)
        assert lengths(long, "pretrain", setting.pretrain) == [4 * each for each in short] != []
        short = lengths(long, "finetune", setting.finetune)
        assert lengths(long, "finetune-4x", setting.finetune) == [4 * each for each in short] != []


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("arm", EVERY_ARM, ids=lambda arm: arm.name)
def test_options_of_every_arm_are_options(arm, setting, tmp_path):
    mine = Cell(arm, 0, setting, tmp_path, tmp_path / "cell", 1, 1, "cpu")
    for words, _, command in mine._stages():
        if words in ("pretrain", "finetune", "finetune-4x", "probe"):
            kind = TrainOptions if words == "pretrain" else FinetuneOptions
            values, preset = {}, None
            given = command[command.index(str(tmp_path)) + 1 :]
            while given:
                name, *given = given
                name = name.removeprefix("--").replace("-", "_")
                if name.startswith("no_"):
                    values[name.removeprefix("no_")] = False
                    continue
                default = None if name == "preset" else getattr(kind(), name)
                if isinstance(default, bool):
                    values[name] = True
                    continue
                word, *given = given
                if name == "preset":
                    preset = word
                else:
                    values[name] = type(default)(word)
            assert preset in PRESETS
            from_mapping(kind, values, preset=preset)


@pytest.mark.parametrize("arm", EVERY_ARM, ids=lambda arm: arm.name)
def test_every_stage_is_of_the_arms_own_weights_and_the_cells_seed_and_split(arm, tmp_path):
    mine = replace(cell(tmp_path, arm, tmp_path / "videos", seed=7), fold="byset")
    weights, data = str(mine.folder / "pretrain" / "last.pt"), str(mine.data)
    trainings = [{1: "finetune", 4: "finetune-4x"}[times] for times in arm.finetunes]
    begin, source = {}, ["--scratch", data]
    if arm.name != "scratch":
        begin = {"pretrain": ["train", data], "retrieve": ["retrieve", weights]}
        trainings.insert(0, "probe")
        source = [weights, data]
    for name in trainings:
        begin[name] = ["finetune", *source]
        begin[f"test {name}"] = ["test", str(mine.folder / name / "last.pt")]
    stages = {words: command for words, _, command in mine._stages()}
    assert {words: command[: len(begin[words])] for words, command in stages.items()} == begin
    for name in {"pretrain", *trainings} & set(stages):
        said = " ".join(stages[name])
        assert f" --fold byset --seed 7 --device cpu --out {mine.folder / name}" in said
        assert name != "pretrain" or f" {' '.join(arm.pretraining)} " in said


def test_verdicts():
    made = {"arm": "a", "measure": "finetune", "seeds": 3, "share": 0.5, "deviation": 0.1}
    cases = [(0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (0.1, -0.05, 0.2), (None, None, None)]
    found = [
        page.Comparison(**made, difference=d, low=lo, high=hi, p=None, against=seeds)
        for seeds in (3, 1)
        for d, lo, hi in cases
    ]
    told = ["above", "below", "not told apart", ""]
    assert [each.verdict for each in found[:4]] == told
    # A baseline of one seed says as little of other trainings as an arm of one.
    assert [each.verdict for each in found[4:]] == [
        "above, of these trainings",
        "below, of these trainings",
        "not told apart",
        "",
    ]


def test_results_of_other_videos_are_not_compared(tmp_path):
    cells = [
        cell(tmp_path, by_name(name), seed=seed) for name in ("scratch", "pace") for seed in (0, 1)
    ]
    for number, mine in enumerate(cells):
        lines = [{"path": f"{number // 2 * 2 + video}.mp4", "right": True} for video in range(2)]
        lines = [{**line, "label": 0, "clips_predicted": [0]} for line in lines]
        (mine.folder / "finetune").mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (mine.folder / "finetune/predictions.jsonl").write_text(text)
    with pytest.raises(PacecoreError, match="pace and scratch were measured on other videos: are"):
        page.comparisons(cells)
    (cells[1].folder / "finetune/predictions.jsonl").write_text(text)
    with pytest.raises(
        PacecoreError, match="scratch: its cells were measured on other videos with"
    ):
        page.comparisons(cells)


def test_a_cell_that_another_grid_runs_is_left_to_it(tmp_path):
    mine = cell(tmp_path, by_name("scratch"))
    begun = mine.folder / "finetune" / "metrics.jsonl"
    begun.parent.mkdir(parents=True)
    begun.touch()
    with (
        held_elsewhere(mine.folder / ".lock") as other,
        pytest.raises(CellError, match=rf"scratch-seed0: process {other} on .* runs this cell"),
    ):
        mine.run()
    assert begun.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--seeds", "0,0"], "must differ"), (["--arms", "pace,pace"], "must differ")],
)
def test_nothing_is_asked_for_twice(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["experiments", str(tmp_path), "--runs", "runs", *words])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err


def test_videos_without_labels_are_refused_before_they_are_trained_on(tmp_path, monkeypatch):
    write_tiny(tmp_path / "a.mp4", 0, 0, 20)
    monkeypatch.setattr("sys.argv", ["experiments", str(tmp_path), "--runs", str(tmp_path / "r")])
    with pytest.raises(PacecoreError, match=r"has no labels to measure by: videos without labels$"):
        main()


def test_a_split_that_is_not_there_is_refused(tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    for split in ("train", "test"):
        names = [f"{label}/{split}.mp4" for label in ("hug", "push")]
        for name in names:
            write_tiny(videos / name, 0, 0, 20)
        (videos / f"{split}_one.txt").write_text("\n".join(names))
    words = ["experiments", str(videos), "--runs", str(tmp_path / "r"), "--pages"]
    monkeypatch.setattr("sys.argv", [*words, "--fold", "one"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*words, "--fold", "3"])
    with pytest.raises(PacecoreError, match="has no fold '3'; its folds: one"):
        main()


def test_claims_say_by_how_much_and_how_surely(tmp_path):
    right = {"scratch": 20, "pace": 34, "pace-context": 36}  # of 40 videos
    cells = []
    for name, count in right.items():
        mine = cell(tmp_path, by_name(name))
        cells.append(mine)
        (mine.folder / "finetune").mkdir(parents=True)
        lines = [
            {
                "path": f"{video:02}.mp4",
                "right": video < count,
                "label": 0,
                "clips_predicted": [0 if video < count else 1],
            }
            for video in range(40)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (mine.folder / "finetune/predictions.jsonl").write_text(text)
    claims = [line for line in page.evidence_page(cells, "made up").splitlines() if line[:1] == "-"]
    assert claims == [
        "- Pre-training is above training from scratch: above, of these trainings: pace, pace +"
        " same context.",
        "- Retrieval is above random weights: not measured.",
        "- Same context beside pace is the best, fine-tuned; beside pace + same context: from"
        " scratch -40.0 (-55.9 to -24.1, below, of these trainings); pace -5.0 (-12.1 to +2.1, not"
        " told apart).",
    ]
    pace = page.beside_context(cells)[1]
    assert (pace["arm"], pace["measured"]) == ("pace", "fine-tuned")
    assert pace["difference"] == pytest.approx(-0.05)
    assert (
        "\nOf the 4 comparisons in the tables below, 4 stand out, each taken by itself, where"
        " chance alone would give about 0.2; corrected for their number (Holm), 4.\n"
        in page.evidence_page(cells, "made up")
    )
    # The first of their names' two digits as what was filmed together: four groups of ten videos.
    grouped = page.evidence_page(cells, "made up", together="([0-9])[0-9][.]mp4")
    assert "from scratch -40.0 (-118.0 to +38.0, not told apart)" in grouped
    # For the record, in the order of its hits.
    tens = [str(number // 10) for number in range(40)]
    assert page.filmed_together(cells, "([0-9])[0-9][.]mp4") == tens
    assert page.filmed_together([], "([0-9])[0-9][.]mp4") == []
    pace = next(case for case in page.summary(cells) if case["arm"] == "pace")
    assert pace["right"] == (" ".join(["1"] * 34 + ["0"] * 6),)
    assert pace["p"] == pytest.approx(4.63e-5, rel=1e-2)  # t = 4.583, 39 degrees


def test_hits_of_retrieval_look_at_k_neighbours(tmp_path):
    mine = cell(tmp_path, by_name("pace"))
    mine.pretrained.mkdir(parents=True)
    for split, names in (("train", "abc"), ("test", "q")):
        videos = [{"path": name, "label": int(name in "cq")} for name in names]
        path = mine.pretrained / f"features-p5-video-{split}.json"
        path.write_text(json.dumps({"videos": videos}))
    line = {"query": "q", "neighbours": [{"path": name} for name in "abc"]}
    (mine.pretrained / "neighbours-p5-video.jsonl").write_text(json.dumps(line) + "\n")
    one, five = (measure for measure in page.MEASURES if measure.name.startswith("retrieve"))
    assert page.hits_of(mine, one) == {"q": False}
    assert page.hits_of(mine, five) == {"q": True}


def test_pace_accuracy_is_each_arms_own(tmp_path):
    cells = [cell(tmp_path, by_name(name), seed=s) for name in ("pace", "context") for s in (0, 1)]
    for mine, accuracy in zip(cells, (0.5, 0.75, 0.25, 0.375), strict=True):
        mine.pretrained.mkdir(parents=True)
        results = {"results": {"pace_accuracy": accuracy, "chance": 0.25}}
        (mine.pretrained / "summary.json").write_text(json.dumps(results))
    found = [("pace", [0.5, 0.75], 0.25), ("same context", [0.25, 0.375], 0.25)]
    assert page._pace_accuracy([*cells, cell(tmp_path, by_name("scratch"))]) == found


def featured(mine: Cell, videos: dict[str, list[tuple[str, int, tuple[float, ...]]]]) -> None:
    """Leaves the features that retrieval leaves: by split, each video's path, label and row."""
    mine.pretrained.mkdir(parents=True)
    for split, listed in videos.items():
        path = mine.pretrained / f"features-p5-video-{split}.npy"
        rows = np.array([row for _, _, row in listed], dtype=np.float32)
        np.save(path, rows)
        named = [{"path": path, "label": label} for path, label, _ in listed]
        about = {"shape": list(rows.shape), "videos": named, "classes": [], "unreadable": {}}
        about |= {"clips": 10, "width": 1.0, "stage": "p5", "pool": "max", "unit": "video"}
        about |= dict.fromkeys(("network", "backbone", "identity"), "of a test")
        path.with_suffix(".json").write_text(json.dumps(about))


def test_neighbours_of_the_same_scene_are_counted_beside_chance(tmp_path):
    mine = cell(tmp_path, by_name("pace"))
    names = ("set1_1", "set1_2", "set2_3")
    featured(mine, {"train": [(f"{name}.avi", 0, (1.0,)) for name in names]})
    neighbours = [{"path": "set2_3.avi"}, {"path": "set1_2.avi"}, {"path": "set1_1.avi"}]
    lines = [{"query": f"set{number}_9.avi", "neighbours": neighbours[:2]} for number in (1, 2, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (mine.pretrained / "neighbours-p5-video.jsonl").write_text(text)
    (case,) = scenes.same_scene([mine], "(set[0-9])")
    assert case == ("pace", [pytest.approx(3 / 6)], pytest.approx((2 + 1 + 1) / 9))
    assert scenes.without_scenes([mine], "(set[0-9])") == []  # no features of the held-out videos


def test_features_without_their_scene_retrieve_what_the_scene_hides(tmp_path):
    """The scenes are far apart, at (9, 0) and (0, 9), the classes of each a little beside it."""
    of_class = {0: (1.0, 0.0), 1: (0.0, 1.0)}
    of_scene = {"set1": (9.0, 0.0), "set2": (0.0, 9.0)}
    placed = {
        split: [
            (f"{scene}_{label}_{split}.avi", label, tuple(np.add(at, np.multiply(away, of))))
            for scene, at in of_scene.items()
            for label, of in of_class.items()
        ]
        for split, away in (("train", 1.0), ("test", 0.9))
    }
    # One video in a scene that no training video shows keeps its features, and is wrong with them.
    placed["test"].append(("set3_1_test.avi", 1, (9.0, 0.0)))
    cells = [cell(tmp_path, by_name("pace"), seed=seed) for seed in (0, 1)]
    for mine in cells:
        featured(mine, placed)
    (case,) = scenes.without_scenes([*cells, cell(tmp_path, by_name("scratch"))], "(set[0-9])")
    assert case == ("pace", [0.8, 0.8], 0.5)
    # With one place for all, the places stay in the features.
    (case,) = scenes.without_scenes(cells, "([a-z]+)")
    assert case[1][0] < 0.8
    assert "## Retrieval without the scenes' mean features" in page.evidence_page(
        cells, "made up", scene="(set[0-9])"
    )
    measures = [case["measure"] for case in page.summary(cells, scene="(set[0-9])")]
    assert measures == ["retrieve-1, without scenes"]
