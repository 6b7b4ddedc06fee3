from contextlib import nullcontext
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from pacecore.attend import run_attend
from pacecore.backbones import BACKBONES, build_backbone
from pacecore.config import (
    AttendOptions,
    ExtractOptions,
    FinetuneOptions,
    RetrieveOptions,
    TestOptions,
    TrainOptions,
    from_mapping,
    input_scale,
)
from pacecore.errors import PacecoreError
from pacecore.extract import run_extract
from pacecore.presets import PRESETS
from pacecore.recognition import measure_actions, run_test
from pacecore.retrieve import retrieve_files, run_retrieve
from pacecore.rules import OptionError, named_by, read_toml, write_toml
from pacecore.sampling import Sampling


def test_defaults_are_the_papers_setting():
    options = TrainOptions().resolved()
    assert (options.clip_frames, options.resize, options.crop) == (16, (128, 171), 112)
    assert (options.lr, options.momentum, options.weight_decay) == (1e-3, 0.9, 5e-3)
    assert (options.batch, options.views, options.epochs, options.lr_step) == (30, 2, 18, 6)
    assert (options.lambda_cls, options.lambda_ctr) == (1.0, 0.1)
    assert (options.backbone, options.depth, options.width) == ("r21d", 0, 1.0)
    assert (options.channel_order, options.normalize, options.z_norm) == ("rgb", "none", False)
    assert (options.contrast, options.paces, options.jitter) == ("context", "1,2,3,4", True)
    measured = RetrieveOptions()
    assert (measured.stage, measured.pool, measured.unit, measured.clips) == (
        ("p5", "max", "video", 10)
    )
    s3dg = TrainOptions(backbone="s3dg").resolved()
    assert (s3dg.clip_frames, s3dg.resize, s3dg.crop) == (64, (256, 256), 224)


def test_presets_are_those_of_the_table():
    paper = TrainOptions().resolved()

    def others(preset):
        """What differs from the paper's."""
        options = vars(from_mapping(TrainOptions, {}, preset=preset))
        return {name: value for name, value in options.items() if value != vars(paper)[name]}

    assert others("paper") == {}
    assert others("official") == {"channel_order": "bgr", "contrast": "none", "views": 1}
    assert others("modern") == {
        "jitter_scope": "clip", "z_norm": True, "temperature": 0.1, "schedule": "cosine",
        "amp": "bf16",
    }  # fmt: skip
    assert others("small") == {
        "width": 0.25, "resize": (64, 86), "crop": 56, "start": "fit", "jitter_scope": "clip",
        "normalize": "unit", "lr": 0.03, "schedule": "cosine", "weight_decay": 5e-4,
        "nesterov": True, "batch": 8, "epochs": 4, "views": 4, "view_augment": "shared",
        "z_norm": True, "temperature": 0.1,
    }  # fmt: skip


def test_small_is_of_sixteen_small_frames_of_every_network():
    for preset in ("small", "demo"):
        for backbone in ("r21d", "s3dg"):
            options = from_mapping(TrainOptions, {"backbone": backbone}, preset=preset)
            assert (options.clip_frames, options.resize, options.crop) == (16, (64, 86), 56)


def test_a_contrast_asked_for_beside_the_official_preset_counts():
    options = from_mapping(TrainOptions, {"contrast": "pace"}, preset="official")
    assert (options.contrast, options.lambda_ctr) == ("pace", 0.1)


def test_clips_are_drawn_as_the_options_say():
    assert TrainOptions().resolved().sampling() == Sampling()
    one = Sampling(paces=(Fraction(1),), views=1, jitter=None)
    assert FinetuneOptions().resolved().sampling() == one
    given = {
        "views": 3, "view_paces": "free", "view_augment": "shared", "start": "fit", "seed": 9,
        "boundary": "clamp", "reverse": "label", "flip": 0.25, "clip_frames": 8,
    }  # fmt: skip
    options = {"paces": "1/2,1", "resize": [40, 54], "crop": 32, "jitter_scope": "clip", **given}
    assert from_mapping(TrainOptions, options).sampling() == Sampling(
        paces=(Fraction(1, 2), Fraction(1)),
        resize=(40, 54),
        crop=(32, 32),
        jitter="clip",
        **given,
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions])
def test_options_survive_toml(preset, kind, tmp_path):
    options = from_mapping(kind, {"data": 'a "b"\\\n\x7f\U0001f39e', "seed": 3}, preset=preset)
    path = tmp_path / "options.toml"
    path.write_text(write_toml(options), encoding="utf-8")
    assert from_mapping(kind, read_toml(path)) == options


def test_a_whole_number_is_the_same_option_as_with_a_fraction():
    assert write_toml(TrainOptions(width=1, lr=1).resolved()) == write_toml(
        from_mapping(TrainOptions, {"width": 1.0, "lr": 1.0})
    )
    assert type(ExtractOptions(decode_timeout=9).resolved().decode_timeout) is float
    with pytest.raises(OptionError, match="lr must be finite"):
        TrainOptions(lr=10**400).resolved()


def test_presets_name_real_options_and_given_ones_win():
    known = {each.name for each in fields(TrainOptions)}
    assert all(set(values) <= known for values in PRESETS.values())
    assert from_mapping(TrainOptions, {"lr": 0.5}, preset="small").lr == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lamda_ctr": 1}, "unknown option lamda_ctr; did you mean lambda_ctr?"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"lr": float("inf")}, "lr must be finite, got inf"),
        ({"lr": 10**400}, "lr must be finite, got inf"),
        ({"data": "a\0b"}, "data must be text without NUL, got 'a\\x00b'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"flip": 1.5}, "flip must be at most 1.0, got 1.5"),
        ({"jitter": 1}, "jitter must be true or false, got 1"),
        ({"crop": 200}, "crop must be at most resize (128, 171), got 200"),
        ({"resize": [128]}, "resize must be HEIGHT,WIDTH, each 1 to 4096, got (128,)"),
        ({"resize": [12.5, "a"]}, "resize must be HEIGHT,WIDTH, each 1 to 4096, got (12.5, 'a')"),
        ({"resize": "12,12"}, "resize must be HEIGHT,WIDTH, got '12,12'"),
        ({"paces": "1,fast"}, "got 'fast'"),
        ({"paces": "3"}, "paces must be two or more"),
        (
            {"batch": 1},
            "batch must be 2 or more for contrast context, or contrast none; got batch 1",
        ),
        ({"batch": 1, "contrast": "pace"}, "batch must be 2 or more for contrast pace"),
        ({"paces": "1,2", "views": 3}, "views must be at most the number of paces, 2"),
        ({"contrast": "video"}, "contrast must be one of context, pace, none, got 'video'"),
        ({"contrast": "none", "lambda_cls": 0}, "must not both be off"),
        ({"views": 1}, "views must be 2 or more for contrast context, or contrast none; got views"),
        ({"views": 1, "lambda_cls": 0}, "views must be 2 or more for contrast context"),
        ({"backbone": "r50"}, "backbone must be one of c3d, r3d, r21d, s3dg, got 'r50'"),
        (
            {"backbone": "c3d", "clip_frames": 4, "crop": 8},
            "clip_frames and crop must be at least 8 and 16 for c3d, got 4 and 8",
        ),
        ({"depth": 7}, "depth must be one of 0, 10, 18, got 7"),
        ({"backbone": "s3dg", "depth": 18}, "depth must be 0 for s3dg, got 18"),
        ({"width": 5.0}, "width must be at most 4.0, got 5.0"),
        ({"decode_timeout": 1e7}, "decode_timeout must be at most 1000000.0, got 10000000.0"),
        ({"accumulate": 31}, "accumulate must be at most batch, 30, got 31"),
    ],
)
def test_each_rule_has_its_words(values, words):
    with pytest.raises(OptionError) as caught:
        from_mapping(TrainOptions, values, source="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_smallest_clips_are_those_that_the_network_takes(name):
    """And smaller ones, which torch would refuse once all videos are read, are none of its."""
    network = build_backbone(name, width=0.01).eval()
    frames, crop = network.smallest_clip
    network.smallest_clip = (0, 0)  # torch itself shall tell
    for size in ((frames, crop), (frames - 1, crop), (frames, crop - 1)):
        fits = size == (frames, crop)
        with nullcontext() if fits else pytest.raises(RuntimeError):
            assert network(torch.zeros(1, 3, *size, size[1])).isfinite().all()
        if all(size):  # 0 stands for the usual size
            with nullcontext() if fits else pytest.raises(OptionError, match="clip_frames and cr"):
                TrainOptions(backbone=name, clip_frames=size[0], crop=size[1]).resolved()


@pytest.mark.parametrize("values", [{"contrast": "none"}, {"contrast": "pace"}, {"lambda_ctr": 0}])
def test_one_view_is_enough_without_same_context(values):
    assert from_mapping(TrainOptions, {**values, "views": 1}).views == 1


def test_dropout_is_not_drawn_once_compiled_and_once_not():
    """The two passes of accumulation would drop other features."""
    values = {"dropout": 0.5, "accumulate": 2}
    assert from_mapping(FinetuneOptions, values)
    with pytest.raises(OptionError, match="dropout does not work with compile and accumulate = 2"):
        from_mapping(FinetuneOptions, {**values, "compile": True})


def test_unreadable_toml(tmp_path):
    with pytest.raises(OptionError, match=r"none\.toml: options cannot be read"):
        read_toml(tmp_path / "none.toml")
    for text in (b"a = = 1", b"a = '\xff'", b"a = " + 5000 * b"1"):
        (tmp_path / "bad.toml").write_bytes(text)
        with pytest.raises(OptionError, match=r"bad\.toml: not a TOML file"):
            read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize("preset", ["papr", "", 3, ["small"]])  # what a TOML file can say
def test_a_wrong_preset_is_named_with_its_file(preset):
    with pytest.raises(OptionError) as caught:
        from_mapping(TrainOptions, {}, preset=preset, source="my.toml")
    names = "paper, official, modern, small, demo"
    assert str(caught.value) == f"my.toml: preset must be one of {names}, got {preset!r}"
    with pytest.raises(OptionError, match=r"^preset must be one of"):
        from_mapping(TrainOptions, {}, preset=preset)


@pytest.mark.parametrize(
    ("tells", "names"),
    [
        ("run", "checkpointing deterministic fold seed"),
        ("course", "compile graph log_every max_bad save_minutes"),
        ("place", "checkpoint data held_out out"),
        ("machine", "data_on decode_timeout device tensorboard workers"),
    ],
)
def test_all_but_these_options_tell_the_setting(tells, names):
    assert named_by(FinetuneOptions, tells) == set(names.split())
    assert named_by(TrainOptions, tells) == set(names.split()) - {"checkpoint"}
    known = {each.name for each in fields(TrainOptions)}
    of_all = named_by(TrainOptions, "setting", "run", "course", "place", "machine")
    assert of_all == known


def test_input_scale():
    assert input_scale("none") == ((0.0,) * 3, (1.0,) * 3)
    assert input_scale("unit") == ((0.0,) * 3, (255.0,) * 3)
    assert input_scale("imagenet")[0][0] == pytest.approx(0.485 * 255)


def test_values_of_numpy_and_paths_are_taken_for_what_they_stand_for(tmp_path):
    values = {"lr": np.float64(0.01), "flip": np.float32(0.5), "seed": np.int64(3)}
    values |= {"out": tmp_path, "resize": np.array([48, 64]).tolist(), "crop": np.int32(32)}
    found = from_mapping(TrainOptions, values)
    assert (found.lr, found.flip, found.seed, found.out) == (0.01, 0.5, 3, str(tmp_path))
    assert from_mapping(TrainOptions, {"resize": (np.int64(256), 300)}).resize == (256, 300)
    assert all(type(value) in (bool, int, float, str, tuple) for value in asdict(found).values())
    for values in ({"seed": np.float64(3)}, {"lr": True}, {"crop": 32.0}, {"lr": Path("1")}):
        with pytest.raises(OptionError, match="must be a"):
            from_mapping(TrainOptions, values)


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        (run_test, TestOptions(average="mean"), "average must be one of softmax, logits, got"),
        (run_test, TestOptions(amp="fp16"), "amp must be one of none, bf16, got 'fp16'"),
        (run_test, TestOptions(clips=0), "clips must be at least 1, got 0"),
        (run_test, ExtractOptions(), "test: options must be TestOptions, got ExtractOptions"),
        (run_extract, ExtractOptions(split="val"), "split must be one of all, train, test, got"),
        (run_extract, ExtractOptions(format="pt"), "format must be one of npy, safetensors, got"),
        (run_extract, {}, "extract: options must be ExtractOptions, got dict"),
        (run_retrieve, RetrieveOptions(k="0"), "k must be whole numbers from 1, such as 1,5,10"),
        (retrieve_files, RetrieveOptions(unit="frame"), "unit must be one of video, clip, got"),
        (run_attend, AttendOptions(every=0), "every must be at least 1, got 0"),
    ],
)
def test_options_of_a_measuring_verb_are_checked_by_python_too(verb, options, words):
    with pytest.raises(OptionError, match=f"^{words}"):
        verb(None, options)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (run_test, TestOptions()),
        (run_extract, ExtractOptions()),
        (run_retrieve, RetrieveOptions()),
        (run_attend, AttendOptions()),
    ],
)
def test_a_measuring_verb_wants_a_network_not_its_path(verb, options):
    name = verb.__name__.removeprefix("run_")
    with pytest.raises(PacecoreError, match=f"^{name}: the network must be what .*, got str$"):
        verb("runs/mine/last.pt", options)


def test_another_average_than_those_there_are_is_no_average_of_logits():
    with pytest.raises(PacecoreError, match=r"^average must be softmax or logits, got 'mean'$"):
        measure_actions(None, None, ("a", "b"), average="mean")


@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": ["r21d"]}, r"backbone must be text, got \['r21d'\]"),
        ({"resize": np.array([128, 171])}, "resize must be HEIGHT,WIDTH, got array"),
        ({"held_out": ""}, "held_out must be auto, none or a path, got ''"),
    ],
)
def test_a_value_that_others_depend_on_is_checked_first(kind, values, words):
    with pytest.raises(OptionError, match=words):
        from_mapping(kind, values)
