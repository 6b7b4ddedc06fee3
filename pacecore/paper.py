"""Figures of the paper, each with the place where it was read, and when a run is its setting."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pacecore.errors import PacecoreError

__all__ = [
    "OFFICIAL_SPLITS", "PaperFigure", "data_set_of", "matching", "method_of", "paper_figures",
]  # fmt: skip


@dataclass(frozen=True)
class PaperFigure:
    """One figure. measure: "top1" of action recognition; of retrieval the layer and k, "p4-top1" to
    "p5-top50".
    """

    table: str  # "" where the source does not tell
    network: str  # c3d, r3d, r21d, s3dg
    method: str  # as method_of says it
    paces: str  # "" where the table does not tell
    pretraining: str  # data set of the pre-training: "UCF101", "Kinetics-400", "" from scratch
    data: str  # data set of the measurement: "UCF101", "HMDB51"
    measure: str
    percent: float
    source: str

    @property
    def words(self) -> str:
        paces = f", paces {self.paces}" if self.paces else ""
        before = f", pre-trained on {self.pretraining}" if self.pretraining else ""
        return f"{self.network}, {self.method}{paces}{before}; {self.data} {self.measure}"


_VIDEOMAE = "Tong et al., VideoMAE (arXiv 2203.12602), Table 13, which quotes the paper"
_SURVEY = (
    "Schiappa et al., Self-Supervised Learning for Videos: A Survey, table of pretext methods in"
    " github.com/Maddy12/SSL4VideoSurvey, which quotes the paper; the variant is not told"
)

# Only what could be read in a source that is named; others come by `figures`, a JSON list of the
# same fields. What a source calls the paper's result is taken as that of its full method.
_KNOWN = tuple(
    PaperFigure(table, network, "pace + same context", "", before, data, "top1", percent, source)
    for table, network, before, source, results in (
        ("4", "r21d", "Kinetics-400", _VIDEOMAE, {"UCF101": 77.1, "HMDB51": 36.6}),
        ("", "s3dg", "UCF101", _SURVEY, {"UCF101": 87.1, "HMDB51": 52.6}),
    )
    for data, percent in results.items()
)


def paper_figures(path: str | Path | None = None) -> tuple[PaperFigure, ...]:
    """The figures known here, and those of a JSON file. Raises PacecoreError naming the file."""
    if path is None:
        return _KNOWN
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        return _KNOWN + tuple(map(_figure, entries))
    except OSError as error:
        raise PacecoreError(f"{path}: figures cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise PacecoreError(f"{path}: not a list of the paper's figures: {error}") from None


def _figure(entry: dict[str, Any]) -> PaperFigure:
    figure = PaperFigure(**{**entry, "percent": float(entry["percent"])})
    for name, value in asdict(figure).items():
        if name != "percent" and not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r}")
    if not 0 <= figure.percent <= 100:
        raise ValueError(f"percent must be from 0 to 100, got {figure.percent}")
    return figure


def method_of(learning: dict[str, Any]) -> str:
    """The pre-training in the paper's words, from its options; {} is training from scratch. What a
    fine-tuning added since is told after it.
    """
    if labelled := learning.get("labelled"):
        before = method_of({name: learning[name] for name in learning if name != "labelled"})
        labels = "labels of " + ", then ".join(each["data"] or "demo set" for each in labelled)
        return labels if before == "from scratch" else f"{before}, then {labels}"
    if not learning:
        return "from scratch"
    if learning.get("kind") == "weights":
        return "plain weights"
    if learning.get("lr") == 0:
        return "random weights"
    contrast = learning.get("contrast", "none") if learning.get("lambda_ctr", 0) > 0 else "none"
    predicts = learning.get("lambda_cls", 1) > 0
    if contrast == "none":
        return "pace"
    return f"pace + same {contrast}" if predicts else f"same {contrast}"


# Of each set its classes, and by split how many videos train and test, as published.
OFFICIAL_SPLITS = {
    "UCF101": (101, {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}),
    "HMDB51": (51, dict.fromkeys((1, 2, 3), (3570, 1530))),
}


# How folders of whole sets are called; not kinetics600, mini-kinetics or ucf101-part.
_SETS = {
    "Kinetics-400": re.compile(r"(kinetics([-_]?400)?|k[-_]?400)([-_](train|videos|store))*"),
    "UCF101": re.compile(r"ucf[-_]?101([-_](train|videos|store))*"),
}


def data_set_of(path: str, result: dict[str, Any]) -> str:
    """Name of a data set: by what was measured, where that is an official split, else its folder's
    name.
    """
    classes = len(result.get("per_class", ()))
    videos = result.get("videos", result.get("query_videos", 0))
    gallery = result.get("gallery_videos")
    for name, (count, splits) in OFFICIAL_SPLITS.items():
        sizes = any(videos == test and gallery in (None, train) for train, test in splits.values())
        if classes in (0, count) and sizes:
            return name
    name = Path(path).name or path
    return f"{name} (not an official split)" if name in OFFICIAL_SPLITS else name


def _pretraining_set(learning: dict[str, Any], measured: str, data: str) -> str:
    """The measured data set, where both were one folder; else by a folder of a set's name."""
    folder = str(learning.get("data", ""))
    if folder and folder == measured:
        return data
    names = os.path.splitext(folder.lower())[0].split("/")
    found = (name for name, known in _SETS.items() if any(map(known.fullmatch, names)))
    return next(found, "")


# What the paper has, where a source tells no paces; and where there is a contrast.
_OWN = {"paces": "1,2,3,4", "reverse": "off"}
_OWN_CONTRAST = {"views": 2, "lambda_cls": 1, "lambda_ctr": 0.1, "denominator": "anchor"}
_OWN_CONTRAST |= {"temperature": 1, "z_norm": False, "proj_dim": 0}


def _as_in(figure: PaperFigure, learning: dict[str, Any]) -> bool:
    """Whether paces are those of the figure; where it has none, whether all is as the paper has it,
    whose full method such a figure is taken for.
    """
    told = {**learning, "paces": str(learning.get("paces", "")).replace(" ", "")}
    if figure.paces:
        return figure.paces == told["paces"]
    own = _OWN | (_OWN_CONTRAST if "+" in figure.method else {})
    return not learning or all(told.get(name, value) == value for name, value in own.items())


def matching(
    known: tuple[PaperFigure, ...],
    measure: str,
    options: dict[str, Any],
    learning: dict[str, Any],
    measured: str,
    data: str,
) -> str:
    """The paper's figure for a run's setting, in percent; "" where the setting is another.

    measured: the folder that the run was measured on, `data` its name.
    """
    if options.get("width", 1.0) != 1 or options.get("depth", 0) not in (0, 10):
        return ""
    usual = (64, 224) if options.get("backbone") == "s3dg" else (16, 112)
    if (options.get("clip_frames"), options.get("crop")) != usual:
        return ""
    for figure in known:
        if (
            figure.measure == measure
            and figure.network == options.get("backbone")
            and figure.method == method_of(learning)
            and _as_in(figure, learning)
            and figure.pretraining == _pretraining_set(learning, measured, data)
            and figure.data == data
        ):
            return f"{figure.percent:.1f}"
    return ""
