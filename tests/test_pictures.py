from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pacecore.pictures import clip_sheet, inscription, to_rgb
from pacecore.stills import still_frames

from .sources import PacketSource


def test_input_back_to_pictures():
    rgb = torch.randint(0, 256, (2, 3, 4, 5, 6)).float()
    expected = rgb.permute(0, 2, 3, 4, 1).byte().numpy()
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    scaled = (rgb - torch.tensor(mean).view(1, 3, 1, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1, 1)
    assert np.array_equal(to_rgb(scaled, mean, std, "rgb"), expected)
    zero, one = (0.0,) * 3, (1.0,) * 3
    assert np.array_equal(to_rgb(rgb.flip(1), zero, one, "bgr"), expected)


def test_sheet_places_every_frame():
    clips = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(4, 2).repeat(5, 3)
    clips = clips.repeat(3, 4)
    sheet = clip_sheet(clips, gap=1)
    assert sheet.shape == (11, 19, 3)
    assert [sheet[1 + 5 * r, 1 + 6 * c, 0] for r in range(2) for c in range(3)] == list(range(6))
    assert sheet[0].min() == 255
    assert clip_sheet(clips, gap=1, columns=2).shape == (11, 13, 3)


def test_the_name_of_a_pace_in_a_picture():
    picture = inscription("-1/7")
    assert picture.shape == (15, 48, 3)
    dots = picture[1::3, 1::3, 0] == 0  # the middle of each
    assert ["".join(" #"[dot] for dot in row).rstrip() for row in dots.astype(int)] == [
        "     #    # ###",
        "    ##    #   #",
        "###  #   #    #",
        "     #  #    #",
        "    ### #    #",
    ]


@pytest.mark.parametrize("height", [9, 30])
def test_rows_begin_with_their_names(height):
    clips = np.zeros((2, 3, height, 8, 3), np.uint8)
    sheet = clip_sheet(clips, names=["1", "1/3"])
    assert sheet.shape == (2 * (height + 4) + 4, 4 + 36 + 4 + 3 * 12, 3)
    for row, name in enumerate(("1", "1/3")):
        shown = inscription(name)[:height]  # of a low row the upper part
        top = 4 + row * (height + 4) + (height - len(shown)) // 2
        assert np.array_equal(sheet[top : top + len(shown), 4 : 4 + shown.shape[1]], shown)
    assert (sheet[:, 44:] == clip_sheet(clips)[:, 4:]).all()


@pytest.mark.parametrize(("size", "bars"), [((96, 32), "beside"), ((30, 120), "above and below")])
def test_stills_keep_their_shape_between_grey_bars(size, bars):
    source = PacketSource((5, 5), size=size, bad=(1,))
    still, unreadable = still_frames(source, [0, 1], size=(48, 64))
    grey = (still == 127).all(axis=2)
    height, width = (~grey).any(axis=1).sum(), (~grey).any(axis=0).sum()
    assert (height, width) == {"beside": (48, 16), "above and below": (16, 64)}[bars]
    rows, columns = np.flatnonzero((~grey).any(axis=1)), np.flatnonzero((~grey).any(axis=0))
    assert abs(rows[0] - (47 - rows[-1])) <= 1
    assert abs(columns[0] - (63 - columns[-1])) <= 1
    assert (unreadable == 127).all()


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib")
    from pacecore import plots

    return plots


@pytest.fixture
def drawn(plots, monkeypatch):
    """The axes of what is drawn, which is not saved."""
    axes = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: axes.extend(figure.axes))
    return axes


@pytest.mark.parametrize("count", [3, 101, 400])
def test_a_confusion_names_its_classes_while_there_is_room(tmp_path, plots, drawn, count):
    names = [f"class{number}" for number in range(count)]
    plots.draw_confusion(np.eye(count, dtype=int), names, tmp_path / "c.png")
    for labels in (drawn[0].get_xticklabels(), drawn[0].get_yticklabels()):
        assert ([label.get_text() for label in labels] == names) == (count < 400)
    assert len(drawn[0].texts) == (3 if count == 3 else 0)


def test_rows_of_a_confusion_are_the_true_classes_and_columns_the_predicted(tmp_path, plots, drawn):
    counts = np.array([[1, 3, 0], [0, 2, 0], [0, 0, 0]])
    plots.draw_confusion(counts, ["a", "b", "c"], tmp_path / "c.png")
    (axes,) = drawn
    assert axes.images[0].get_array().tolist() == [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 0]]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "1", (1, 0): "3", (1, 1): "2"}  # by (column, row)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize(
    ("kind", "held"), [("pretrain", "pace_accuracy"), ("finetune", "val_accuracy")]
)
def test_curves_show_every_figure_at_its_epoch(tmp_path, plots, drawn, kind, held):
    metrics = [
        {"step": 2, "epoch": 0.5, "loss": 3.0, "accuracy": 0.25},
        {"step": 3, "event": "unreadable"},
        {"step": 4, "epoch": 1.0, "loss": 2.0, "accuracy": 0.5},
        {"step": 4, held: 0.375},
        {"step": 8, "epoch": 2.0, "loss": 1.0, "accuracy": 0.75},
        {"step": 8, held: 0.625},
    ]
    run = SimpleNamespace(name="a", kind=kind, metrics=metrics, test={})
    plots.draw_curves([("a", [run])], tmp_path / "c.png")
    loss, accuracy = (
        [line.get_xydata().tolist() for line in axes.lines if len(line.get_xydata())]
        for axes in drawn
    )
    assert loss == [[[0.5, 3.0], [1.0, 2.0], [2.0, 1.0]]]
    assert accuracy == [[[0.5, 0.25], [1.0, 0.5], [2.0, 0.75]], [[1.0, 0.375], [2.0, 0.625]]]
