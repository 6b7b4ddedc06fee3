"""Files of other projects: names, shapes and outputs, on weights that a formula gives.

The outputs in PUBLISHED are what the public repositories' networks themselves gave, in float64, on
the same weights.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from pacecore.backbones import build_backbone
from pacecore.cli.convert import convert as command
from pacecore.convert import convert, load_weights, read_weights
from pacecore.errors import PacecoreError
from pacecore.trained import load_trained

from .published_weights import (
    coclr_s3dg,
    filled,
    linear,
    official_s3dg,
    prp_c3d,
    value,
    vcop_c3d,
    vcop_residual,
)
from .tiny import pretrained


def make_clips(*shape: int) -> Tensor:
    return value("clips", (1, 3, *shape)) + 0.3


# Network, depth, names and shapes, name of the head or "", size of the clip; then, of the outputs
# (with a head the classifier's, else the features), the first four and the mean of absolute values.
PUBLISHED = {
    "video-pace r21d": (
        *("r21d", 10, lambda: vcop_residual(True), "linear", (9, 40, 44)),
        (-0.15894876950403933, -0.4118824862128734, -0.42100713479041235, 0.08908628484063527),
        0.2702311688369901,
    ),
    "video-pace r3d": (
        *("r3d", 10, lambda: vcop_residual(False), "linear", (9, 40, 44)),
        (-0.19507594591433078, -0.249126925830947, 0.3201415340025503, -0.18920832281257688),
        0.23838818214010127,
    ),
    "video-pace c3d": (
        *("c3d", None, vcop_c3d, "linear", (8, 40, 36)),
        (-4.245158645546157, 0.22366419891866954, 0.01585455802757997, 0.09455653439175102),
        1.1448084842210393,
    ),
    "video-pace s3dg": (
        *("s3dg", None, official_s3dg, "fc", (13, 60, 52)),
        (0.10306851617645807, 0.05390317019289473, -0.017638162249422117, -0.11561912185783486),
        0.07255724261915245,
    ),
    "VCOP r21d, two blocks a stage": (
        *("r21d", 18, lambda: vcop_residual(True, 2), "", (8, 32, 36)),
        (0.04443142627803067, 0.0, 0.05855006597368632, 0.1985938299721316),
        0.18378253255876148,
    ),
    "PRP c3d": (
        *("c3d", None, prp_c3d, "linear", (8, 40, 36)),
        (-0.786122465892967, 0.023503384417353727, 0.08903989841565328, 0.0781380502999494),
        0.24420094975648085,
    ),
}


@pytest.mark.parametrize("title", PUBLISHED)
def test_outputs_equal_the_published_networks(title, tmp_path):
    network, depth, entries, head, size, first, mean = PUBLISHED[title]
    tensors = filled(entries())
    if head:
        tensors |= filled(linear(head, 1024 if network == "s3dg" else 512, 4))
    path = tmp_path / "weights.pth.tar"
    torch.save({"epoch": 18, "state_dict": tensors, "opt_dict": {}}, path)

    found = read_weights(path)
    assert (found.network, found.depth, found.left_over, found.missing) == (network, depth, (), ())
    assert len(found.weights) == len(tensors)
    backbone = build_backbone(network, depth).double().eval()
    backbone.load_state_dict(part(found.weights, "backbone."))
    with torch.no_grad():
        outputs = backbone(make_clips(*size))
    if head:
        outputs = outputs @ found.weights["head.weight"].T + found.weights["head.bias"]
    outputs = outputs[0]
    torch.testing.assert_close(
        outputs[:4], torch.tensor(first, dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert abs(outputs.abs().mean().item() - mean) < 1e-9


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def r21d(prefix: str = "") -> dict[str, Tensor]:
    return filled(vcop_residual(True), prefix)


HEAD = {"linear.weight": torch.zeros(4, 512), "linear.bias": torch.zeros(4)}
FILES = {
    # title: content of the file, source, classes, left over
    "video-pace": (
        lambda: {"epoch": 18, "state_dict": r21d() | HEAD, "opt_dict": {"state": {}}},
        ("video-pace, or a VCOP or PRP classifier", 4, []),
    ),
    "video-pace, several GPUs": (
        lambda: {"state_dict": {f"module.{n}": t for n, t in (r21d() | HEAD).items()}},
        ("video-pace, or a VCOP or PRP classifier", 4, []),
    ),
    "VCOP": (
        lambda: r21d("base_network.") | filled(linear("fc7", 1024, 512)),
        ("VCOP or PRP pre-training", None, ["fc7.weight", "fc7.bias"]),
    ),
    "PRP": (
        lambda: (
            filled(prp_c3d(), "module.base_network.")
            | {"module.up4_1.weight": torch.zeros(64, 64, 2, 2, 2)}
        ),
        ("PRP pre-training", None, ["up4_1.weight"]),
    ),
    "RSPNet": (
        lambda: {
            "arch": "r2plus1d-vcop",
            "epoch": 200,
            "model": {
                **r21d("module.encoder_q.encoder."),
                **{"module.encoder_q.encoder.linear.bias": torch.zeros(1)},
                **{"module.encoder_q.fc1.2.bias": torch.zeros(128)},
                **r21d("module.encoder_k.encoder."),
                **{"module.queue": torch.zeros(128, 8)},
            },
        },
        (
            "RSPNet pre-training",
            None,
            [
                *("encoder_q.encoder.linear.bias", "encoder_q.fc1.2.bias"),
                *r21d("encoder_k.encoder."),
                "queue",
            ],
        ),
    ),
    "RSPNet, fine-tuned": (
        lambda: {
            "model": r21d("encoder.")
            | {"fc.weight": torch.ones(101, 512), "fc.bias": torch.ones(101)}
        },
        ("RSPNet fine-tuned", 101, []),
    ),
}


@pytest.mark.parametrize("title", FILES)
def test_each_format_is_read(title, tmp_path):
    content, (source, classes, left_over) = FILES[title][0](), FILES[title][1]
    path = tmp_path / "file.pth"
    torch.save(content, path)
    found = read_weights(path)
    assert found.source == source
    assert sorted(found.left_over) == sorted(left_over)
    assert found.missing == ()
    head = found.weights.get("head.weight")
    assert (None if head is None else len(head)) == classes
    backbone = build_backbone(found.network, found.depth)
    backbone.load_state_dict(part(found.weights, "backbone."))
    for theirs, ours in found.renamed.items():
        assert ours in found.weights
        assert theirs in found.report(verbose=True)
    assert load_weights(path).keys() == found.weights.keys()


def test_values_land_where_they_belong(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(r21d("base_network."), path)
    weights = load_weights(path)
    pairs = {
        "conv1.spatial_conv.weight": "conv1.conv.spatial.weight",
        "conv3.block1.downsampleconv.bn.bias": "conv3.0.shortcut.conv.norm.bias",
        "conv3.block1.downsamplebn.running_mean": "conv3.0.shortcut.norm.running_mean",
        "conv5.block1.bn2.weight": "conv5.0.conv2.norm.weight",
    }
    for theirs, ours in pairs.items():
        tensor = weights[f"backbone.{ours}"]
        assert torch.equal(tensor, value(theirs, tuple(tensor.shape)))


def test_coclr_is_a_partial_load(tmp_path):
    tensors = filled(coclr_s3dg(), "encoder_q.0.")
    repeats = {n.replace("Mixed_3b", "block3.1"): t for n, t in tensors.items() if "Mixed_3b" in n}
    path = tmp_path / "coclr.pth.tar"
    torch.save({"epoch": 1, "state_dict": tensors | repeats, "optimizer": {}}, path)
    with pytest.raises(
        PacecoreError, match=r"s3dg lacks 7 of 530 weights.*conv1\.conv\.weight.*stem"
    ):
        read_weights(path)
    found = read_weights(path, partial=True)
    assert {name.split(".")[3] for name in found.left_over} == {"conv1", "conv2", "bn1", "bn2"}
    assert all(name.startswith("encoder_q.0.Conv_1a.") for name in found.left_over)
    assert {name.split(".")[1] for name in found.missing} == {"conv1", "conv2"}
    assert "another stem" in found.report()
    backbone = build_backbone("s3dg")
    backbone.load_state_dict(part(found.weights, "backbone."), strict=False)


def test_a_missing_count_of_batches_is_zero(tmp_path):
    tensors = {n: t for n, t in r21d().items() if not n.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save(tensors, path)
    build_backbone("r21d").load_state_dict(part(load_weights(path), "backbone."))


def test_a_pipe_or_a_device_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(PacecoreError, match=f"^{path}: not a file of weights: it is no file$"):
            read_weights(path)
        with pytest.raises(PacecoreError, match=f"^{path}: checkpoint cannot be read: it is no"):
            load_trained(path)


@pytest.mark.parametrize("wrapped", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_a_compiled_network_are_its_own(wrapped, tmp_path):
    ours = {f"backbone.{n}": t for n, t in build_backbone("r3d", width=0.125).state_dict().items()}
    options, path = {"backbone": "r3d", "width": 0.125}, tmp_path / "compiled.pt"
    inside = {name.replace("conv1.", "conv1._orig_mod."): tensor for name, tensor in ours.items()}
    for names in (ours, inside):
        torch.save({"model": {wrapped + n: t for n, t in names.items()}, "options": options}, path)
        assert load_weights(path).keys() == ours.keys()


@pytest.mark.parametrize("name", ["ours.pth", "ours.safetensors"])
def test_our_checkpoint_to_plain_weights(name, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    backbone = build_backbone("r3d", width=0.125)
    model = {f"backbone.{n}": t for n, t in backbone.state_dict().items()}
    model |= {"head.weight": torch.ones(4, 64), "head.bias": torch.ones(4)}
    model |= {"projection.0.weight": torch.ones(8, 64)}
    source = tmp_path / "checkpoint.pt"
    shown = {"clip_frames": 8, "resize": (48, 60), "crop": 32}
    shown |= {"channel_order": "rgb", "normalize": "unit"}
    options = {**shown, "backbone": "r3d", "width": 0.125}
    held = {**model, "other.weight": torch.ones(1)}
    torch.save({"pacecore": 1, "kind": "pretrain", "model": held, "options": options}, source)
    found = convert(source, tmp_path / name)
    assert (found.source, found.left_over, found.renamed) == ("pacecore", ("other.weight",), {})
    again = load_weights(tmp_path / name)
    assert again.keys() == model.keys()
    assert all(torch.equal(again[n], model[n]) for n in model)
    described = json.loads((tmp_path / "ours.json").read_text())
    learned = sum(weight.numel() for weight in backbone.parameters()) + 4 * 65
    projection = model["projection.0.weight"].numel()
    assert described["parameters"] == learned + projection
    assert described["network"] == "r3d"
    assert described["classes"] == 4
    assert described["width"] == 0.125
    assert described["input"] == {**shown, "resize": [48, 60]}
    again = read_weights(tmp_path / name)  # by the .json beside it
    assert (again.width, again.input) == (0.125, shown)
    trained = load_trained(tmp_path / name)
    assert trained.options.width == 0.125
    assert {name: getattr(trained.options, name) for name in shown} == shown
    with pytest.raises(PacecoreError, match=r"official files are of full width, got 0\.125"):
        convert(source, tmp_path / "official.pt", to="official")
    assert not (tmp_path / "official.pt").exists()
    (tmp_path / "ours.json").write_text('{"network": "r3d"}')  # of something else
    again = read_weights(tmp_path / name)
    assert (again.width, again.input) == (None, {})
    assert "\nof another width than 1, which ours.json does not say" in again.report()
    assert described["from"]["file"] == "checkpoint.pt"


@pytest.mark.parametrize("width", [1.0, 0.125])
def test_our_weights_of_other_shapes_than_their_width_has_are_named(tmp_path, width):
    state = build_backbone("r3d", width=width).state_dict()
    model = {f"backbone.{name}": tensor for name, tensor in state.items()}
    path, name = tmp_path / "ours.pt", "conv3.0.conv1.conv.weight"
    torch.save({"model": model, "options": {"width": width}}, path)
    assert read_weights(path).width == width
    model[f"backbone.{name}"] = model[f"backbone.{name}"][:5]
    torch.save({"model": model, "options": {"width": width}}, path)
    with pytest.raises(PacecoreError, match=rf"{re.escape(name)} of r3d must be .*, got \(5, "):
        load_weights(path)


@pytest.mark.parametrize("network", ["r21d", "c3d", "s3dg"])
def test_official_names_there_and_back(network, tmp_path):
    entries, head = {
        "r21d": (vcop_residual(True), "linear"),
        "c3d": (vcop_c3d(), "linear"),
        "s3dg": (official_s3dg(), "fc"),
    }[network]
    tensors = filled(entries) | filled(linear(head, 1024 if network == "s3dg" else 512, 4))
    torch.save({"epoch": 18, "state_dict": tensors, "opt_dict": {}}, tmp_path / "theirs.pth.tar")
    found = convert(tmp_path / "theirs.pth.tar", tmp_path / "ours.pt")
    assert found.input == {"channel_order": "bgr", "normalize": "none"}
    assert found.width == 1
    assert load_trained(tmp_path / "ours.pt").options.channel_order == "bgr"
    convert(tmp_path / "ours.pt", tmp_path / "back.pth.tar", to="official")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    assert back.keys() == {"epoch", "state_dict", "opt_dict"}
    assert back["state_dict"].keys() == tensors.keys()
    assert all(torch.equal(back["state_dict"][n], t) for n, t in tensors.items())


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_a_file_with_code_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": r21d(), "args": RunsCode()}, path)
    with pytest.raises(
        PacecoreError, match=r"bad\.pth: not a file of weights: reading it would run code"
    ):
        load_weights(path)


def test_errors(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(PacecoreError, match=r"file\.pth: no such file"):
        load_weights(path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(PacecoreError, match=r"file\.pth: not a file of weights"):
        load_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(PacecoreError, match="no state dict in it, but list"):
        load_weights(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(PacecoreError, match=r"no tensor in it.*epoch"):
        load_weights(path)
    torch.save({"layer1.0.weight": torch.zeros(1)}, path)
    with pytest.raises(PacecoreError, match=r"no network known here.*layer1\.0\.weight"):
        load_weights(path)

    tensors = r21d()
    torch.save(tensors, path)
    with pytest.raises(PacecoreError, match="holds r21d, not c3d"):
        read_weights(path, network="c3d")
    with pytest.raises(PacecoreError, match="target must be one of plain, official, got 'onnx'"):
        convert(path, tmp_path / "out.pt", to="onnx")
    with pytest.raises(PacecoreError, match="official files are torch's"):
        convert(path, tmp_path / "out.safetensors", to="official")
    with pytest.raises(PacecoreError, match=r"the \.json beside the weights"):
        convert(path, tmp_path / "out.json")
    with pytest.raises(PacecoreError, match=r"^\.: cannot be written: it is a folder$"):
        convert(path, ".")
    with pytest.raises(PacecoreError, match=r"none/out\.pt: cannot be written: No such file"):
        convert(path, tmp_path / "none" / "out.pt")
    if Path("/dev/full").is_char_device():
        (tmp_path / f".{os.getpid()}.out.pt").symlink_to("/dev/full")
        with pytest.raises(PacecoreError, match=r"out\.pt: cannot be written: No space left"):
            convert(path, tmp_path / "out.pt")
    assert not list(tmp_path.glob("*out.*"))

    tensors["bn1.weight"] = torch.zeros(63)
    torch.save(tensors, path)
    with pytest.raises(
        PacecoreError, match=r"conv1\.norm\.weight of r21d must be \(64,\), got \(63,\)"
    ):
        load_weights(path)
    for dtype in (torch.int64, torch.bool, torch.complex64):  # numbers that stand for others
        tensors["bn1.weight"] = torch.zeros(64, dtype=dtype)
        torch.save(tensors, path)
        with pytest.raises(PacecoreError, match=rf"must be floating point, got {dtype}$"):
            load_weights(path)
    del tensors["bn1.weight"]
    torch.save(tensors, path)
    with pytest.raises(
        PacecoreError, match=r"lacks 1 of 144 weights, the first backbone\.conv1\.norm"
    ):
        load_weights(path)
    assert read_weights(path, partial=True).missing == ("backbone.conv1.norm.weight",)


def test_weights_of_other_input_than_video_pace_feeds_say_so(tmp_path):
    torch.save({"state_dict": r21d(), "opt_dict": {}}, tmp_path / "theirs.pt")
    assert convert(tmp_path / "theirs.pt", tmp_path / "same.pt", to="official").note == ""
    model = {f"backbone.{n}": t for n, t in build_backbone("r21d").state_dict().items()}
    options = {"channel_order": "rgb", "normalize": "unit"}
    torch.save({"pacecore": 1, "model": model, "options": options}, tmp_path / "ours.pt")
    report = convert(tmp_path / "ours.pt", tmp_path / "out.pt", to="official").report()
    assert "trained on rgb, unit, but video-pace's code feeds bgr, none" in report


def test_input_that_a_file_does_not_say_is_told_and_can_be_given(tmp_path):
    torch.save(r21d("base_network."), tmp_path / "vcop.pt")
    words = "does not say --channel-order and --normalize, which is taken to be rgb and none"
    assert words in read_weights(tmp_path / "vcop.pt").report()
    unsaid = {"channel_order": "rgb", "normalize": "none"}
    assert load_trained(tmp_path / "vcop.pt").unsaid == unsaid
    half = convert(tmp_path / "vcop.pt", tmp_path / "half.pt", input={"normalize": "unit"})
    assert "does not say --channel-order, which is taken to be rgb\n" in half.report() + "\n"
    assert load_trained(tmp_path / "half.pt").unsaid == {"channel_order": "rgb"}
    given = {"normalize": "unit", "channel_order": "rgb", "resize": [120, 160], "crop": 100}
    found = convert(tmp_path / "vcop.pt", tmp_path / "ours.pt", input=given)
    assert "does not say" not in found.report()
    trained = load_trained(tmp_path / "ours.pt")
    assert trained.unsaid == {}
    used = trained.options
    assert (used.normalize, used.resize, used.crop, used.clip_frames) == (
        ("unit", (120, 160), 100, 16)
    )
    for wrong, rule in (
        ({"normalize": "half"}, "normalize must be one of none, unit, imagenet"),
        ({"lr": 0.1}, "input must be of clip_frames, resize, .*, got 'lr'"),
    ):
        with pytest.raises(PacecoreError, match=rule):
            convert(tmp_path / "vcop.pt", tmp_path / "ours.pt", input=wrong)


def test_input_that_is_given_fits_what_the_file_says(tmp_path):
    torch.save(r21d("base_network."), tmp_path / "vcop.pt")
    for name, side in (("large", 256), ("small", 40)):
        given = {"resize": [side, side], "crop": side - 8}
        convert(tmp_path / "vcop.pt", tmp_path / f"{name}.pt", input=given)
    assert (
        convert(tmp_path / "large.pt", tmp_path / "a.pt", input={"crop": 224}).input["crop"] == 224
    )
    with pytest.raises(PacecoreError, match=r"crop must be at most resize \(40, 40\), got 64"):
        convert(tmp_path / "small.pt", tmp_path / "b.pt", input={"crop": 64})


def test_as_official_files_weights_are_read_as_they_were_before(tmp_path):
    """Which takes the .json: without it they are video-pace's own, in BGR."""
    torch.save(r21d("base_network."), tmp_path / "vcop.pt")
    found = convert(tmp_path / "vcop.pt", tmp_path / "off.pt", to="official")
    assert "taken to be trained on rgb, none, but video-pace's code feeds bgr" in found.report()
    assert load_trained(tmp_path / "off.pt").options.channel_order == "rgb"


def test_the_command_takes_the_input_of_the_weights(tmp_path):
    torch.save(r21d("base_network."), tmp_path / "vcop.pt")
    words = [str(tmp_path / "vcop.pt"), str(tmp_path / "ours.pt"), "--normalize", "unit"]
    result = CliRunner().invoke(command, [*words, "--resize", "120,160"])
    assert result.exit_code == 0, result.output
    options = load_trained(tmp_path / "ours.pt").options
    assert (options.normalize, options.resize) == ("unit", (120, 160))
    shown = CliRunner().invoke(command, ["--help"]).output.split("--resize")[1]
    assert "default:" not in shown  # what is not given is as the file says
    result = CliRunner().invoke(command, [words[0], "--crop", "100"])
    assert str(result.exception) == "crop is written down beside OUT, which is not given"


def test_neither_the_source_nor_a_checkpoint_is_replaced(tmp_path):
    last = pretrained(tmp_path / "last.pt")
    link = tmp_path / "link.pt"
    link.symlink_to(last)
    weights = tmp_path / "weights.pt"
    convert(last, weights)
    kept = last.read_bytes()
    for source, out, message in (
        (last, last, r"last\.pt: OUT must be another file than SOURCE, which is .*last\.pt"),
        (last, link, r"link\.pt: OUT must be another file than SOURCE, which is .*last\.pt"),
        (weights, weights, r"weights\.pt: OUT must be another file than SOURCE"),
        (weights, last, r"last\.pt: is a checkpoint of pacecore, which weights do not replace"),
    ):
        with pytest.raises(PacecoreError, match=message):
            convert(source, out)
    assert last.read_bytes() == kept
    assert not last.with_suffix(".json").exists()
    convert(last, weights)  # weights are replaced as before


def test_the_json_of_other_weights_is_not_replaced(tmp_path):
    one, other = (pretrained(tmp_path / f"run{n}.pt", seed=n, crop=32 - n) for n in (0, 1))
    plain, same = tmp_path / "w.pt", tmp_path / "w.pth"
    convert(one, plain)
    convert(one, same)  # the same is true of both
    convert(one, plain)
    with pytest.raises(PacecoreError, match=r"w\.pt: w\.json is of w\.pth; give another name"):
        convert(other, plain)
    assert read_weights(plain).input == read_weights(same).input
    same.unlink()
    convert(other, plain)
    assert read_weights(plain).input["crop"] == 31
    (tmp_path / "test.json").write_text('{"top1": 0.5}')
    with pytest.raises(PacecoreError, match=r"test\.pt: test\.json is there and not of weights;"):
        convert(one, tmp_path / "test.pt")
    assert (tmp_path / "test.json").read_text() == '{"top1": 0.5}'


def test_command_line(tmp_path):
    torch.save(r21d("base_network.") | {"fc7.bias": torch.zeros(1)}, tmp_path / "vcop.pt")
    out = tmp_path / "ours.pt"
    shown = CliRunner().invoke(command, [str(tmp_path / "vcop.pt")], catch_exceptions=False)
    assert "r21d, depth 10, written by VCOP or PRP pre-training" in shown.output
    assert "loaded 144, 144 of them renamed; left over 1, missing 0" in shown.output
    assert "left over fc7.bias" in shown.output
    assert not out.exists()
    done = CliRunner().invoke(
        command, [str(tmp_path / "vcop.pt"), str(out), "-v"], catch_exceptions=False
    )
    assert "renamed base_network.bn1.weight -> backbone.conv1.norm.weight" in done.output
    assert load_weights(out).keys() == load_weights(tmp_path / "vcop.pt").keys()
    assert json.loads(out.with_suffix(".json").read_text())["left_over"] == ["fc7.bias"]
