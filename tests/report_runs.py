"""Run folders as the verbs leave them, with made-up figures, and the rows of a report on them."""

import json
from dataclasses import asdict

from pacecore.config import FinetuneOptions, TrainOptions

CLASSES = ["a", "b"]
FIGURE = {
    "table": "5", "network": "r21d", "method": "pace + same context", "paces": "",
    "pretraining": "UCF101", "data": "UCF101", "source": "made for the test",
}  # fmt: skip


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def pretraining(folder, accuracy, **changes):
    options = asdict(TrainOptions(data="/data/ucf", **changes).resolved())
    results = {"pace_accuracy": accuracy - 0.2, "chance": 0.125}  # by fewer clips
    write(folder / "summary.json", {"options": options, "results": results, "time": "3 s"})
    test = {**results, "pace_accuracy": accuracy, "measured_with": {"clips": 10}}
    test["trained_with"] = options
    write(folder / "test.json", test)
    return options


def finetuning(folder, top1, learning, *, videos=40, classes=CLASSES, clips=10, **changes):
    options = asdict(FinetuneOptions(**{"data": "/data/ucf", **changes}).resolved())
    write(folder / "summary.json", {"options": options, "pretrained": learning, "time": "3 s"})
    test = {
        "top1": top1,
        "top5": 1.0,
        "mean_per_class": top1,
        "clip_top1": top1 - 0.05,
        "clips_per_video": clips,
        "measured_with": {"clips": clips},
        "top1_interval_95": [top1 - 0.1, top1 + 0.1],
        "per_class": dict.fromkeys(classes, top1),
        "confusion": [[3, 1], [0, 4]],
        "videos": videos,
        "pretrained": learning,
        "trained_with": options,
    }
    write(folder / "test.json", test)
    lines = [{"step": 1, "epoch": 0.5, "loss": 1.0, "accuracy": 0.4}, {"step": 2, "epoch": 1.0}]
    lines += [{"step": 2, "epoch": 1.0, "loss": 0.5, "accuracy": 0.9}]
    lines += [{"step": 2, "val_accuracy": 0.7}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def table_of(result, word):
    (table,) = [table for table in result["tables"] if word in table["title"]]
    return [dict(zip(table["heads"], row, strict=True)) for row in table["rows"]]
