"""pace_clip: what it refuses on the CPU, and what comes out as NaN on CUDA."""

import pytest
import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.frames import FrameFormat, Frames
from pacecore.ops.pace_clip import check_plan, pace_clip
from tests.pace_clip_cases import DEVICES, ORDERS, case, ints, random_frame  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

_CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
# The CPU refuses what these give NaN for.
cuda_kernels = pytest.mark.parametrize(
    "device", ["emulated", "emulated_sm86", _CUDA], indirect=True
)


def changed(tensor: Tensor, index: tuple, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


WRONG_SHAPES = [
    ("plan", lambda t: t.long(), "plan must be (B, T) int32"),
    ("plan", lambda t: t[0], "plan must be (B, T) int32"),
    ("plan", lambda t: t.to("meta"), "plan must be on the device of frames.data, "),
    ("jitter_order", lambda t: t.to("meta"), "jitter_order must be on the device of frames.data"),
    ("table", lambda t: t.to("meta"), "frames.table must be on the device of frames.data, "),
    ("crop", lambda t: t[:1], "crop must be (B, 3) int32"),
    ("crop", lambda t: t.float(), "crop must be (B, 3) int32"),
    ("jitter", lambda t: t[:, 1:], "jitter must be (B, T, 4) float32"),
    ("jitter", lambda t: t.double(), "jitter must be (B, T, 4) float32"),
    ("jitter", lambda t: None, "jitter and jitter_order must be given together"),
    ("jitter_order", lambda t: None, "jitter and jitter_order must be given together"),
    ("jitter_order", lambda t: t.long(), "jitter_order must be (B, T) int32"),
    ("data", lambda t: t.int(), "frames.data must be (N,) uint8, got int32"),
    ("data", lambda t: t.view(1, -1), "frames.data must be (N,) uint8, got uint8 (1, "),
    ("table", lambda t: t.int(), "frames.table must be (F, 8) int64"),
    ("table", lambda t: t[:, :7], "frames.table must be (F, 8) int64"),
    ("resize", lambda s: (0, 5), "resize must be two numbers from 1 to 65536"),
    ("resize", lambda s: (70000, 5), "got (70000, 5)"),
    ("resize", lambda s: (5, 0), "got (5, 0)"),
    ("resize", lambda s: (5, 70000), "got (5, 70000)"),
    ("crop_size", lambda s: (1, 2, 3), "crop_size must be two numbers"),
    ("crop_size", lambda s: (20, 26), "crop_size must not exceed resize (19, 26), got (20, 26)"),
    ("crop_size", lambda s: (19, 27), "crop_size must not exceed resize (19, 26), got (19, 27)"),
    ("mean", lambda s: (1.0,), "mean must be three finite numbers"),
    ("mean", lambda s: (float("nan"), 0, 0), "mean must be three finite numbers"),
    ("std", lambda s: (1.0, 0.0, 1.0), "std must be three finite numbers not 0"),
    ("std", lambda s: (1.0, 1e-37, 1.0), "(255 - mean) / std within 1e+38, got mean ("),
    ("mean", lambda s: (0.0, 0.0, -1e40), "must leave (0 - mean) / std and (255 - mean) / std"),
    (
        "dtype",
        lambda s: torch.float64,
        "dtype must be float32, float16 or bfloat16, got torch.float64",
    ),
    ("dtype", lambda s: "bfloat16", "dtype must be float32, float16 or bfloat16, got 'bfloat16'"),
    ("plan", lambda t: None, "plan must be (B, T) int32 on the device of frames.data, got None"),
    ("crop", lambda t: t.cpu().numpy(), "crop must be of type Tensor, got ndarray"),
    ("jitter", lambda t: t.tolist(), "jitter must be of type Optional[Tensor], got list"),
    ("resize", lambda s: torch.ones(2, 2).numpy(), "resize must be of type List[int], got ndarray"),
    ("resize", lambda s: 19, "resize must be of type List[int], got 19"),
    ("mean", lambda s: 5, "mean must be of type List[float], got 5"),
    ("channel_order", lambda s: "grb", "channel_order must be rgb or bgr, got 'grb'"),
    ("memory_format", lambda s: torch.channels_last, "memory_format must be"),
]
WRONG_CONTENTS = [
    ("plan", (1, 2), 3, "plan[1, 2] must be a row of frames.table, from 0 to 2, got 3"),
    ("plan", (0, 0), -1, "plan[0, 0] must be a row"),
    ("crop", (1, 0), 4, "top of crop 1 must be from 0 to 3, got 4"),
    ("crop", (0, 1), -1, "left of crop 0 must be from 0 to 6, got -1"),
    ("crop", (0, 1), 7, "left of crop 0 must be from 0 to 6, got 7"),
    ("crop", (0, 2), 2, "flip of crop 0 must be 0 or 1, got 2"),
    ("jitter_order", (1, 5), -2, "jitter_order[1, 5] must be -1 or four different steps"),
    ("jitter_order", (0, 0), 0, "jitter_order[0, 0]"),
    ("jitter_order", (0, 0), ORDERS[3] + 256, "jitter_order[0, 0]"),
    ("table", (0, 3), 0, "row 0 of frames.table: height must be from 1 to 65536"),
    ("table", (0, 4), 65537, "row 0 of frames.table: width must be from 1 to 65536"),
    ("table", (0, 5), 92, "row 0 of frames.table: stride must be at least 3 * width"),
    ("table", (0, 0), 10**18, "row 0 of frames.table: pixels must lie inside data"),
    ("table", (0, 0), -1, "row 0 of frames.table: pixels must lie inside data"),
    ("table", (1, 7), 64, "row 1 of frames.table: format must be a FrameFormat code"),
    ("table", (1, 7), 7, "row 1 of frames.table: format must be a FrameFormat code"),
    ("table", (1, 7), 2, "row 1 of frames.table: format must be a FrameFormat code"),
    ("table", (1, 5), 19, "row 1 of frames.table: stride must be at least width"),
    ("table", (1, 6), 9, "row 1 of frames.table: chroma_stride must be at least (width + 1) / 2"),
    ("table", (1, 5), 2**62, "row 1 of frames.table: luma must lie inside data"),
    ("table", (1, 1), 2**40, "row 1 of frames.table: chroma must lie inside data"),
    ("table", (1, 2), -5, "row 1 of frames.table: chroma must lie inside data"),
]
WRONG_FACTORS = [
    ((0, 1, 0), -0.1, "jitter[0, 1, 0] must be a finite factor of at least 0, got -0.1"),
    ((0, 1, 1), float("nan"), "jitter[0, 1, 1] must be a finite factor"),
    ((1, 3, 2), float("inf"), "jitter[1, 3, 2] must be a finite factor"),
    ((1, 3, 3), 0.6, "jitter[1, 3, 3] must be a hue from -0.5 to 0.5 turns, got 0.6"),
    ((1, 3, 3), -0.6, "jitter[1, 3, 3] must be a hue"),
]


def named_case(device: torch.device) -> dict:
    frames, tensors, options = case(device)
    names = ("plan", "crop", "jitter", "jitter_order")
    values = dict(zip(names, tensors, strict=True), data=frames.data, table=frames.table)
    return {**values, **options}


def call(function, values: dict):
    frames = Frames(values.pop("data"), values.pop("table"))
    return function(frames, **values)


@pytest.mark.parametrize(("name", "change", "message"), WRONG_SHAPES)
def test_wrong_types_and_sizes_are_refused(device, name, change, message):
    values = named_case(device)
    values[name] = change(values.get(name))
    with pytest.raises(PacecoreError) as caught:
        call(pace_clip, values)
    assert str(caught.value).startswith("pace_clip: ")
    assert message in str(caught.value)


def test_pictures_by_themselves_are_refused():
    values = named_case(torch.device("cpu"))
    data, _ = values.pop("data"), values.pop("table")
    with pytest.raises(PacecoreError, match="pace_clip: frames must be Frames, got Tensor"):
        pace_clip(data, **values)


def test_a_gradient_is_refused(device):
    values = named_case(device)
    values["jitter"].requires_grad_()
    with pytest.raises(PacecoreError, match="pace_clip: jitter must not require a gradient"):
        call(pace_clip, values)
    values = named_case(device)
    jitter = values.pop("jitter")
    with pytest.raises(PacecoreError, match="pace_clip: jitter must not require a gradient"):
        torch.func.jvp(lambda j: call(pace_clip, {**values, "jitter": j}), (jitter,), (jitter,))


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    WRONG_CONTENTS + [("jitter", *rest) for rest in WRONG_FACTORS],
)
def test_wrong_contents_are_refused_on_cpu(name, index, value, message):
    values = named_case(torch.device("cpu"))
    values["jitter_order"] = torch.where(
        values["jitter_order"] == -1, ORDERS[0], values["jitter_order"]
    ).int()
    values[name] = changed(values[name], index, value)
    for function in (pace_clip, check_plan):
        with pytest.raises(PacecoreError) as caught:
            call(function, dict(values))
        assert message in str(caught.value)


def test_rows_that_no_clip_shows_may_hold_anything(device):
    """As those of a store whose video did not decode: zeros."""
    values = named_case(device)
    expected = call(pace_clip, dict(values))
    count, zeros = values["table"].shape[0], torch.zeros_like(values["table"][:1])
    values["table"] = torch.cat([zeros, values["table"], zeros])
    values["plan"] = values["plan"] + 1
    assert int(values["plan"].max()) <= count
    assert torch.equal(call(pace_clip, values), expected)


@cuda_kernels
@pytest.mark.parametrize(
    ("name", "index", "value"), [wrong[:3] for wrong in WRONG_CONTENTS if wrong[0] != "table"]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_wrong_contents_give_nan_on_cuda(device, name, index, value, layout):
    """The frames concerned are NaN, all others as they would be without the wrong entry."""
    values = named_case(device)
    expected = call(pace_clip, dict(values, memory_format=layout))
    values[name] = changed(values[name], index, value)
    clips = call(pace_clip, dict(values, memory_format=layout))
    wrong = clips.isnan()
    assert wrong[index[0]].flatten(2)[:, index[1] if name != "crop" else 0].all()
    assert wrong.sum() == 3 * 16 * 20 * (6 if name == "crop" else 1)
    assert torch.equal(clips[~wrong], expected[~wrong])


@cuda_kernels
@pytest.mark.parametrize(
    ("index", "value"), [wrong[1:3] for wrong in WRONG_CONTENTS if wrong[0] == "table"]
)
def test_wrong_rows_of_the_table_give_nan_on_cuda(device, index, value):
    values = named_case(device)
    expected = call(pace_clip, dict(values))
    values["table"] = changed(values["table"], index, value)
    clips = call(pace_clip, dict(values)).transpose(1, 2)
    shown = values["plan"] == index[0]
    assert clips[shown].isnan().all()
    assert torch.equal(clips[~shown], expected.transpose(1, 2)[~shown])


def test_last_row_may_end_with_its_pixels():
    """The gap after the last row is not needed; one byte less is refused."""
    generator = torch.Generator().manual_seed(1)
    frames = random_frame(generator, 5, 7, FrameFormat(), gap=6)
    size = {"resize": (5, 7), "crop_size": (5, 7)}
    pace_clip(frames, ints([0]), ints([0, 0, 0]), **size)
    with pytest.raises(PacecoreError, match="chroma must lie inside data"):
        pace_clip(Frames(frames.data[:-1], frames.table), ints([0]), ints([0, 0, 0]), **size)


def test_check_plan_accepts_what_pace_clip_does():
    call(check_plan, named_case(torch.device("cpu")))


@pytest.mark.parametrize("function", [pace_clip, check_plan])
def test_frames_that_are_none_and_tensors_of_other_devices_are_refused(function):
    frames = random_frame(torch.Generator().manual_seed(1), 5, 7, FrameFormat())
    size = {"resize": (5, 7), "crop_size": (5, 7)}
    wrong = [
        ((frames.data, frames.table), ints([0]), "frames must be Frames, got tuple"),
        (Frames(frames.data.numpy(), frames.table), ints([0]), "frames.data must be a tensor, got"),
        (frames, ints([0]).to("meta"), "plan must be on the device of frames.data, cpu, got meta"),
    ]
    for given, plan, words in wrong:
        with pytest.raises(PacecoreError, match=f"^pace_clip: {words}"):
            function(given, plan, ints([0, 0, 0]), **size)
