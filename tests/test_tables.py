"""Rows of a report by setting: mean and deviation by hand, the paper's figures beside them."""

import json
from dataclasses import asdict

import pytest

from pacecore.config import TrainOptions
from pacecore.errors import PacecoreError
from pacecore.paper import data_set_of, matching, method_of, paper_figures
from pacecore.report import make_report
from tests.report_runs import FIGURE, finetuning, pretraining, table_of, write


def test_seeds_and_splits_are_averaged_and_settings_are_not(tmp_path):
    learning = pretraining(tmp_path / "pre", 0.5)
    shares = [0.70, 0.75, 0.71]
    for number, share in enumerate(shares):
        of_place = {"fold": str(1 + number), "data_on": ("auto", "host", "device")[number]}
        finetuning(tmp_path / f"ft{number}", share, learning, seed=number, **of_place)
    finetuning(tmp_path / "probe", 0.5, learning, freeze="backbone")
    finetuning(tmp_path / "scratch", 0.6, {})
    folders = [tmp_path / name for name in ("pre", "ft0", "ft1", "ft2", "probe", "scratch")]
    rows = table_of(make_report(folders, tmp_path / "out", pictures=False), "Action")
    assert len(rows) == 3
    assert rows[0]["top-1 %"] == "72.0 ± 2.6 (3)"
    assert [row["pre-training"] for row in rows] == ["pace + same context"] * 2 + ["from scratch"]
    assert [row["trained"] for row in rows] == ["all", "head only", "all"]
    assert [row["top-1 %"] for row in rows[1:]] == ["50.0", "60.0"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| r21d | pace + same context | 1,2,3,4 | all | ucf |" in page


def test_what_differs_without_a_column_is_named(tmp_path):
    folders = [tmp_path / "pre0", tmp_path / "pre1"]
    for folder, jitter, parts in zip(folders, (True, False), (1, 2), strict=True):
        pretraining(folder, 0.5, jitter=jitter, accumulate=parts)
    rows = table_of(make_report(folders, tmp_path / "out", pictures=False), "Pace")
    differs = ["accumulate 1, jitter True", "accumulate 2, jitter False"]
    assert [row["differs in"] for row in rows] == differs
    assert [row["chance %"] for row in rows] == ["12.5", "12.5"]


def retrieved(folder, share, **changes):
    options = pretraining(folder, 0.5, **changes)
    content = {"stage": "p5", "pool": "max", "unit": "video", "top": {"1": share}}
    write(folder / "retrieve-p5-video.json", content | {"trained_with": options, "pretrained": {}})
    return options


def test_pre_trainings_that_differ_are_no_rows_alike(tmp_path):
    """In what a table has no column of: paces and weights of the losses, and the data."""
    changes = [{}, {"paces": "1,4,7,10"}, {"lambda_ctr": 1.0}, {"contrast": "none"}]
    folders = [tmp_path / str(number) for number in range(4)]
    for folder, change in zip(folders, changes, strict=True):
        retrieved(folder, 0.5, **change)
    rows = table_of(make_report(folders, tmp_path / "out", pictures=False), "Retrieval")
    differs = ["lambda_ctr 0.1, paces 1,2,3,4", "lambda_ctr 0.1, paces 1,4,7,10"]
    differs += ["lambda_ctr 1.0, paces 1,2,3,4", "lambda_ctr 0.1, paces 1,2,3,4"]
    assert [row["differs in"] for row in rows] == differs
    assert [row["weights"] for row in rows] == ["pace + same context"] * 3 + ["pace"]
    learning = asdict(TrainOptions(data="/data/ucf").resolved())
    tuned = [tmp_path / "near", tmp_path / "far"]
    finetuning(tuned[0], 0.5, learning)
    finetuning(tuned[1], 0.6, learning | {"data": "/data/k400"})
    rows = table_of(make_report(tuned, tmp_path / "out", pictures=False), "Action")
    assert [row["differs in"] for row in rows] == [
        "pre-trained on /data/ucf", "pre-trained on /data/k400",
    ]  # fmt: skip


def test_labels_of_another_set_are_no_start_from_scratch(tmp_path):
    learning = asdict(TrainOptions(data="/data/k400").resolved())
    then = {"labelled": [{"data": "/data/big"}, {"data": ""}]}
    starts = [{}, then, learning, learning | then]
    folders = [tmp_path / str(number) for number in range(4)]
    for folder, start in zip(folders, starts, strict=True):
        finetuning(folder, 0.5, start, videos=3783, classes=[str(n) for n in range(101)])
    rows = table_of(make_report(folders, tmp_path / "out", pictures=False), "Action")
    assert [(row["pre-training"], row["paper %"]) for row in rows] == [
        ("from scratch", "-"),
        ("labels of /data/big, then demo set", "-"),
        ("pace + same context", "77.1"),
        ("pace + same context, then labels of /data/big, then demo set", "-"),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "pace + same context"),
        ({"contrast": "pace"}, "pace + same pace"),
        ({"contrast": "none"}, "pace"),
        ({"lambda_ctr": 0.0}, "pace"),
        ({"lambda_cls": 0.0}, "same context"),
        ({"lr": 0.0}, "random weights"),
    ],
)
def test_methods_in_the_words_of_the_paper(changes, words):
    assert method_of(asdict(TrainOptions(**changes).resolved())) == words


def test_the_papers_figure_stands_beside_its_own_setting_alone(tmp_path):
    kinetics = asdict(TrainOptions(data="/data/kinetics400").resolved())
    official = {"videos": 3783, "classes": [f"class{number}" for number in range(101)]}
    for name, changes in {"same": {}, "thin": {"width": 0.5}, "few": {"clips": 3}}.items():
        finetuning(tmp_path / name, 0.7, kinetics, **official, **changes)
    finetuning(tmp_path / "part", 0.7, kinetics, **official | {"videos": 100, "data": "/data/part"})
    finetuning(tmp_path / "probe", 0.7, kinetics, freeze="backbone", **official)
    finetuning(tmp_path / "other", 0.7, {**kinetics, "contrast": "pace"}, **official)
    names = ["same", "thin", "part", "probe", "other", "few"]
    for data in ("kinetics600", "mini-kinetics-200", "ucf101-part"):
        finetuning(tmp_path / data, 0.7, {**kinetics, "data": f"/data/{data}"}, **official)
        names.append(data)
    folders = [tmp_path / name for name in names]
    result = make_report(folders, tmp_path / "out", pictures=False)
    rows = table_of(result, "Action recognition, 3 or 10 clips a video")
    assert [row["paper %"] for row in rows] == ["77.1"] + ["-"] * 8
    assert "VideoMAE" in (tmp_path / "out" / "report.md").read_text()


def test_a_figure_of_another_data_set_than_the_pretraining(tmp_path):
    learning = asdict(TrainOptions(data="/data/UCF101", backbone="s3dg").resolved())
    names = [f"class{number}" for number in range(51)]
    changes = {"backbone": "s3dg", "videos": 1530, "classes": names, "data": "/data/hmdb"}
    finetuning(tmp_path / "same", 0.5, learning, **changes)
    finetuning(tmp_path / "elsewhere", 0.5, {**learning, "data": "/data/own"}, **changes)
    folders = [tmp_path / "same", tmp_path / "elsewhere"]
    rows = table_of(make_report(folders, tmp_path / "out", pictures=False), "Action")
    assert [(row["data"], row["paper %"]) for row in rows] == [("HMDB51", "52.6"), ("HMDB51", "-")]


def test_retrieval_figures_of_every_k_stand_beside_the_layer_they_are_of(tmp_path):
    options = pretraining(tmp_path / "pre", 0.5)
    shares = {"1": 0.3, "5": 0.4, "10": 0.5, "20": 0.6, "50": 0.7}
    for stage, unit in (("p4", "video"), ("p5", "video"), ("p5", "clip")):
        content = {"stage": stage, "pool": "max", "unit": unit, "query_videos": 3783}
        content |= {"top": shares, "trained_with": options, "pretrained": {}}
        write(tmp_path / "pre" / f"retrieve-{stage}-{unit}.json", content)
    figures = [{**FIGURE, "measure": f"p5-top{k}", "percent": k + 0.5} for k in (1, 5, 50)]
    path = write(tmp_path / "figures.json", figures)
    result = make_report([tmp_path / "pre"], tmp_path / "out", figures=path, pictures=False)
    told = [(each["stage"], each["unit"], each["top"]) for each in result["runs"][0]["retrievals"]]
    assert told == [("p4", "video", shares), ("p5", "clip", shares), ("p5", "video", shares)]
    rows = table_of(result, "Retrieval")
    assert [(row["features"], row["by"], row["paper %"]) for row in rows] == [
        ("p4", "video", "-"),
        ("p5", "clip", "-"),
        ("p5", "video", "top-1 1.5, top-5 5.5, top-50 50.5"),
    ]


def test_more_figures_of_the_paper_from_a_file(tmp_path):
    learning = pretraining(tmp_path / "pre", 0.5, contrast="none")
    finetuning(tmp_path / "ft", 0.7, learning, videos=3783, classes=[str(n) for n in range(101)])
    figure = {**FIGURE, "method": "pace", "paces": "1,2,3,4", "measure": "top1", "percent": 12.5}
    path = write(tmp_path / "figures.json", [figure])
    result = make_report([tmp_path / "ft"], tmp_path / "out", figures=path, pictures=False)
    assert table_of(result, "Action")[0]["paper %"] == "12.5"
    for wrong in ({"table": "1"}, {**figure, "percent": "12,5"}, {**figure, "percent": None}):
        write(path, [wrong])
        with pytest.raises(PacecoreError, match=r"figures\.json: not a list of the paper's figur"):
            make_report([tmp_path / "ft"], tmp_path / "out", figures=path)


def test_data_sets_are_known_by_their_official_counts():
    assert data_set_of("/x/videos", {"videos": 3783, "per_class": range(101)}) == "UCF101"
    assert data_set_of("/x/videos", {"query_videos": 1530}) == "HMDB51"
    gallery = {"query_videos": 3783, "gallery_videos": 9537}
    assert data_set_of("/x/videos", gallery) == "UCF101"
    assert data_set_of("/x/videos", {**gallery, "gallery_videos": 9586}) == "videos"  # of split 2
    assert data_set_of("/x/UCF101", {"videos": 42}) == "UCF101 (not an official split)"
    assert data_set_of("demo set", {}) == "demo set"


def test_retrieval_rows(tmp_path):
    options = pretraining(tmp_path / "pre", 0.5)
    for stage, share in (("p4", 0.4), ("p5", 0.3)):
        content = {
            **{"stage": stage, "pool": "max", "unit": "video", "query_videos": 10},
            **{"top": {"1": share, "5": 0.8}, "trained_with": options, "pretrained": {}},
        }
        write(tmp_path / "pre" / f"retrieve-{stage}-video.json", content)
    rows = table_of(make_report([tmp_path / "pre"], tmp_path / "out", pictures=False), "Retrieval")
    assert [(row["features"], row["top-1 %"], row["top-5 %"]) for row in rows] == [
        ("p4", "40.0", "80.0"),
        ("p5", "30.0", "80.0"),
    ]


def test_retrieval_by_other_numbers_of_clips_is_told_across_features(tmp_path):
    options = pretraining(tmp_path / "pre", 0.5)
    for stage, clips in (("p4", 3), ("p5", 10)):
        content = {
            **{"stage": stage, "pool": "max", "unit": "video", "query_videos": 10},
            **{"top": {"1": 0.5}, "trained_with": options, "pretrained": {}},
            **{"clips": clips, "measured_with": {"clips": clips}},
        }
        write(tmp_path / "pre" / f"retrieve-{stage}-video.json", content)
    rows = table_of(make_report([tmp_path / "pre"], tmp_path / "out", pictures=False), "Retrieval")
    assert [(row["features"], row["differs in"]) for row in rows] == [
        ("p4", "clips 3"),
        ("p5", "clips 10"),
    ]


def test_retrieval_at_a_k_that_one_of_the_runs_lacks_has_no_mean(tmp_path):
    runs = [tmp_path / "one", tmp_path / "five"]
    for seed, top in enumerate(({"1": 0.3}, {"1": 0.5, "5": 0.6})):
        content = {"stage": "p5", "pool": "max", "unit": "video", "query_videos": 10, "top": top}
        content["trained_with"] = pretraining(runs[seed], 0.5, seed=seed)
        write(runs[seed] / "retrieve-p5-video.json", content)
    (row,) = table_of(make_report(runs, tmp_path / "out", pictures=False), "Retrieval")
    assert (row["top-1 %"], row["top-5 %"]) == ("40.0 ± 14.1 (2)", "-")


def changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_run_from_before_an_option_was_there_is_of_its_default(tmp_path):
    learning = pretraining(tmp_path / "pre", 0.5)
    for name in ("new", "old"):
        finetuning(tmp_path / name, 0.5, learning)
    summary = json.loads((tmp_path / "old" / "summary.json").read_text())
    del summary["options"]["dropout"], summary["pretrained"]["view_augment"]
    write(tmp_path / "old" / "summary.json", summary)
    runs = [tmp_path / "new", tmp_path / "old"]
    (row,) = table_of(make_report(runs, tmp_path / "out", pictures=False), "Action")
    assert row["top-1 %"] == "50.0 ± 0.0 (2)"


def test_a_figure_stands_beside_what_it_was_measured_on(tmp_path):
    runs = [tmp_path / name for name in ("one", "two", "elsewhere", "else", "fewer")]
    for run in runs:
        finetuning(run, 0.5, {})
    changed(runs[2] / "test.json", data="/data/other", top1=0.9)
    changed(runs[3] / "test.json", measured_with={"held_out": "/data/third", "clips": 10}, top1=0.7)
    changed(runs[4] / "test.json", measured_with={"clips": 3}, top1=0.4)
    result = make_report(runs, tmp_path / "out", pictures=False)
    assert [(r["data"], r["top-1 %"], r["differs in"]) for r in table_of(result, "Action")] == [
        ("ucf", "50.0 ± 0.0 (2)", "clips 10"),
        ("other", "90.0", "clips 10"),
        ("third", "70.0", "clips 10"),
        ("ucf", "40.0", "clips 3"),
    ]


def measured_with(**by):
    """The options that `test` and `retrieve` write down, in full."""
    return {"measured_with": {"data": "", "held_out": "", "fold": "", "clips": 10, **by}}


def test_a_run_that_was_trained_with_a_list_held_out_is_measured_on_that_list(tmp_path):
    runs = [tmp_path / name for name in ("own", "listed", "other")]
    for run, held_out in zip(runs, ("auto", "/a/list.txt", "/b/list.txt"), strict=True):
        finetuning(run, 0.5, {}, held_out=held_out)
        pretraining(tmp_path / "pre" / run.name, 0.5, held_out=held_out)
        changed(run / "test.json", **measured_with())
    # The same videos, named by the measurement; and not that list, as it named the data.
    for name, by in (("named", {"held_out": "/a/list.txt"}), ("back", {"data": "/data/ucf"})):
        runs.append(tmp_path / name)
        finetuning(runs[-1], 0.7, {}, held_out="/a/list.txt" if name == "back" else "auto")
        changed(runs[-1] / "test.json", **measured_with(**by))
    rows = table_of(make_report(runs, tmp_path / "out", pictures=False), "Action")
    assert [(r["data"], r["top-1 %"], r["differs in"]) for r in rows] == [
        ("ucf", "60.0 ± 14.1 (2)", "data /data/ucf"),
        ("list.txt", "60.0 ± 14.1 (2)", "data /a/list.txt"),
        ("list.txt", "50.0", "data /b/list.txt"),
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"`{runs[3]}`: finetune, seed 0, split 1, 3 s; top-1 70.0 %" in page
    assert page.count("; tested on /a/list.txt\n") == 1  # of the others it is their own
    pre = sorted((tmp_path / "pre").iterdir())
    rows = table_of(make_report(pre, tmp_path / "out", pictures=False), "Pace")
    assert sorted(row["data"] for row in rows) == ["list.txt", "list.txt", "ucf"]


def test_a_split_that_the_run_was_trained_on_is_told_and_not_averaged(tmp_path):
    kinetics = asdict(TrainOptions(data="/data/kinetics400").resolved())
    official = {"videos": 3783, "classes": [f"class{number}" for number in range(101)]}
    runs = [tmp_path / name for name in ("first", "second", "crossed", "leaked", "all")]
    for run, fold in zip(runs, ("1", "2", "1", "1", "1"), strict=True):
        finetuning(run, 0.5, kinetics, fold=fold, **official)
        changed(run / "test.json", **measured_with())
    changed(runs[2] / "test.json", **measured_with(fold="2"), top1=0.8)
    changed(runs[3] / "test.json", videos_learned_from=1200, top1=0.9)
    changed(runs[4] / "test.json", videos_learned_from=3783, top1=0.95)
    rows = table_of(make_report(runs, tmp_path / "out", pictures=False), "Action")
    assert [(r["data"], r["top-1 %"], r["paper %"], r["differs in"]) for r in rows] == [
        ("UCF101", "50.0 ± 0.0 (2)", "77.1", "fold its own"),
        ("UCF101", "80.0", "-", "fold 2"),
        ("UCF101 (some learned from)", "90.0", "-", "fold its own"),
        ("UCF101 (all learned from)", "95.0", "-", "fold its own"),
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "; tested on split 2\n" in page
    assert "; tested with 1,200 of 3,783 held-out videos learned from\n" in page


def test_queries_that_stand_in_the_gallery_and_another_gallery_are_told(tmp_path):
    found = {"stage": "p5", "pool": "max", "unit": "video", "query_videos": 3783}
    found |= {"gallery_videos": 9537, "top": {"1": 0.3}}
    changes = {
        "first": {},
        "second": {},
        "both": {"videos_in_both": 7},
        "gallery": {"gallery_videos": 84, **measured_with(data="/data/ut", held_out="/l")},
        "pooled": {"pool": "gap"},
    }
    for name, change in changes.items():
        options = pretraining(tmp_path / name, 0.5)
        content = {**found, **measured_with(), "trained_with": options, **change}
        write(tmp_path / name / "retrieve-p5-video.json", content)
    path = write(tmp_path / "figures.json", [{**FIGURE, "measure": "p5-top1", "percent": 1.5}])
    runs = [tmp_path / name for name in changes]
    result = make_report(runs, tmp_path / "out", figures=path, pictures=False)
    rows = table_of(result, "Retrieval")
    assert [(r["features"], r["data"], r["top-1 %"], r["paper %"]) for r in rows] == [
        ("p5, averaged", "UCF101", "30.0", "-"),
        ("p5", "UCF101", "30.0 ± 0.0 (2)", "top-1 1.5"),
        ("p5", "UCF101 (some in the gallery too)", "30.0", "-"),
        ("p5", "l", "30.0", "-"),
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "; retrieval by p5 video with 7 of 3,783 queries in the gallery too\n" in page
    assert "; retrieval by p5 video on /l\n" in page


def test_data_that_changed_between_two_tests_make_two_rows(tmp_path):
    runs = [tmp_path / name for name in ("old", "one", "two")]
    for run in runs:
        finetuning(run, 0.5, {})
    changed(runs[1] / "test.json", videos_identity="aaaa", top1=0.7)
    rows = table_of(make_report(runs[:2], tmp_path / "out", pictures=False), "Action")
    assert [row["top-1 %"] for row in rows] == ["60.0 ± 14.1 (2)"]  # the older one tells none
    changed(runs[2] / "test.json", videos_identity="bbbb")
    rows = table_of(make_report(runs[1:], tmp_path / "out", pictures=False), "Action")
    found = [(row["top-1 %"], row["differs in"]) for row in rows]
    assert found == [("70.0", "identity aaaa"), ("50.0", "identity bbbb")]


def test_means_over_clips_of_probabilities_and_of_scores_are_told_apart(tmp_path):
    for average in ("softmax", "logits"):
        finetuning(tmp_path / average, 0.7, {})
        changed(tmp_path / average / "test.json", average=average)
    runs = [tmp_path / "softmax", tmp_path / "logits"]
    rows = table_of(make_report(runs, tmp_path / "out", pictures=False), "Action")
    assert [row["differs in"] for row in rows] == ["average softmax", "average logits"]


def test_what_was_measured_in_bf16_is_not_averaged_with_fp32(tmp_path):
    for amp in ("none", "bf16"):
        finetuning(tmp_path / amp, 0.7, {})
        changed(tmp_path / amp / "test.json", measured_with={"clips": 10, "amp": amp})
    runs = [tmp_path / "none", tmp_path / "bf16"]
    rows = table_of(make_report(runs, tmp_path / "out", pictures=False), "Action")
    assert [row["differs in"] for row in rows] == ["amp none", "amp bf16"]


def test_accuracy_in_training_is_not_averaged_with_that_of_a_test_by_more_clips(tmp_path):
    runs = [tmp_path / "tested", tmp_path / "trained"]
    for seed, run in enumerate(runs):
        pretraining(run, 0.5, seed=seed)
    (runs[1] / "test.json").unlink()
    rows = table_of(make_report(runs, tmp_path / "out", pictures=False), "Pace")
    found = [(row["accuracy %"], row["differs in"]) for row in rows]
    assert found == [("50.0", "clips 10"), ("30.0", "clips as in training")]


def test_retrieval_elsewhere_and_by_weights_or_files_is_not_that_of_the_training(tmp_path):
    found = {"stage": "p5", "pool": "max", "unit": "video", "top": {"1": 0.5}}
    options = pretraining(tmp_path / "pre", 0.5, crop=112)
    hmdb = {"data": "/data/hmdb", "query_videos": 1530, "trained_with": options}
    write(tmp_path / "pre" / "retrieve-p5-video.json", {**found, **hmdb})
    defaults = asdict(TrainOptions().resolved())
    weights = {"kind": "weights", "data": "/data/hmdb", "trained_with": defaults}
    write(tmp_path / "weights" / "retrieve-p5-video.json", {**found, **weights})
    files = {"data": "a.npy, b/p5-test.npy", "backbone": "c3d", "width": 0.25}
    write(tmp_path / "files" / "retrieve-p5-video.json", {**found, **files})
    figure = {**FIGURE, "data": "HMDB51", "measure": "p5-top1", "percent": 1.0}
    write(tmp_path / "figures.json", [figure])
    options["data"] = "/data/ucf101"
    changed(tmp_path / "pre" / "summary.json", options=options)
    runs = [tmp_path / name for name in ("pre", "weights", "files")]
    result = make_report(runs, tmp_path / "out", figures=tmp_path / "figures.json", pictures=False)
    columns = ("network", "weights", "data", "paper %")
    assert [tuple(r[name] for name in columns) for r in table_of(result, "Retrieval")] == [
        ("r21d", "pace + same context", "HMDB51", "top-1 1.0"),
        ("r21d", "plain weights", "hmdb", "-"),
        ("c3d x 0.25", "-", "p5-test.npy", "-"),
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    line = f"`{runs[0]}`: pretrain, seed 0, split 1, 3 s; retrieval by p5 video on /data/hmdb\n"
    assert line in page
    assert f"`{runs[1]}`: plain weights, no summary\n- `{runs[2]}`: features, no summary\n" in page


def test_of_bare_weights_no_training_is_told(tmp_path):
    own, theirs = TrainOptions(lr=0.5, paces="1,7"), TrainOptions(depth=10)
    finetuning(tmp_path / "a", 0.7, {"kind": "weights", **asdict(theirs.resolved())}, depth=10)
    finetuning(tmp_path / "b", 0.7, asdict(own.resolved()))
    result = make_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out", pictures=False)
    names = ("network", "pre-training", "paces", "differs in")
    rows = [tuple(map(row.get, names)) for row in table_of(result, "Action")]
    assert rows[0] == ("r21d", "plain weights", "-", "")
    assert rows[1] == ("r21d", "pace + same context", "1,7", "")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, "77.1"),
        ({"paces": "1/3, 1"}, ""),
        ({"reverse": "label"}, ""),
        ({"lambda_ctr": 50.0}, ""),
        ({"proj_dim": 128}, ""),
        ({"views": 4}, ""),
    ],
)
def test_a_figure_whose_source_tells_no_paces_is_of_the_papers_own_way(change, shown):
    setting = {"backbone": "r21d", "width": 1.0, "clip_frames": 16, "crop": 112}
    learning = {**asdict(TrainOptions(data="/videos/kinetics400")), **change}
    found = matching(paper_figures(), "top1", setting, learning, "/videos/ucf101", "UCF101")
    assert found == shown
