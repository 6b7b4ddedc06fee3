"""pace_clip: layouts, shared frames, threads, builds of the CPU loops, and the dispatcher."""

import pytest
import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.frames import Frames
from pacecore.ops.library import ops
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference import pace_clip as reference
from tests.pace_clip_cases import (
    DEVICES,  # noqa: F401
    DTYPES,
    EXACT,
    FORMATS,
    case,
    ints,
    random_frame,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("jittered", [True, False])
@pytest.mark.parametrize("width", [20, 19])  # in fours, and not
def test_layout_changes_no_bit(device, width, jittered):
    frames, tensors, options = case(device)
    tensors = tensors if jittered else tensors[:2]
    options["crop_size"] = (16, width)
    for dtype, order in zip(DTYPES, ("rgb", "bgr", "rgb"), strict=True):
        options["channel_order"] = order
        plain = pace_clip(frames, *tensors, dtype=dtype, **options)
        last = pace_clip(
            frames, *tensors, dtype=dtype, memory_format=torch.channels_last_3d, **options
        )
        assert torch.equal(plain, last)


def test_shared_frames_are_as_if_alone(device):
    """Equal neighbours share a resize; on their own rows of the table they do not."""
    frames, tensors, options = case(device)
    plan = ints([0, 0, 0, 1, 1, 0], [2, 2, 2, 2, 2, 2]).to(device)
    apart = Frames(frames.data, frames.table[plan.flatten().long()])
    rows = torch.arange(12, dtype=torch.int32, device=plan.device).view(2, 6)
    shared = pace_clip(frames, plan, *tensors[1:], **options)
    assert torch.equal(shared, pace_clip(apart, rows, *tensors[1:], **options))


def test_strided_inputs_and_other_offsets(device):
    frames, tensors, options = case(device)
    expected = pace_clip(frames, *tensors, **options)
    odd = [torch.stack([t, t], dim=-1)[..., 0] for t in tensors]
    assert not odd[0].is_contiguous()
    shifted = Frames(torch.cat([frames.data.new_zeros(3), frames.data])[3:], frames.table)
    assert torch.equal(pace_clip(shifted, *odd, **options), expected)


def test_no_jitter_is_jitter_of_order_minus_one(device):
    frames, (plan, crop, factors, order), options = case(device)
    none = torch.full_like(order, -1)
    clips = pace_clip(frames, plan, crop, factors * float("nan"), none, **options)
    assert torch.equal(clips, pace_clip(frames, plan, crop, **options))


@pytest.mark.parametrize(("batch", "clip_frames"), [(0, 4), (2, 0), (0, 0)])
def test_empty(device, batch, clip_frames):
    frames, _, options = case(device)
    plan = torch.zeros(batch, clip_frames, dtype=torch.int32, device=frames.data.device)
    crop = torch.zeros(batch, 3, dtype=torch.int32, device=frames.data.device)
    clips = pace_clip(frames, plan, crop, **options)
    assert clips.shape == (batch, 3, clip_frames, 16, 20)


def test_no_frames_and_no_clips(device):
    frames = Frames(torch.empty(0, dtype=torch.uint8), torch.empty(0, 8, dtype=torch.int64))
    plan, crop = torch.empty(0, 4, dtype=torch.int32), torch.empty(0, 3, dtype=torch.int32)
    clips = pace_clip(
        frames.to(device), plan.to(device), crop.to(device), resize=(4, 4), crop_size=(2, 2)
    )
    assert clips.shape == (0, 3, 4, 2, 2)


def test_threads_change_no_bit():
    frames, tensors, options = case(torch.device("cpu"))
    tensors[0] = torch.zeros_like(tensors[0])  # one run a clip, cut for the threads
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(pace_clip(frames, *tensors, **options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


BUILDS = ["scalar", "vector", "avx2", "avx512"]


def runs_here(build: str) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return {"avx512": capability == "AVX512", "avx2": "AVX" in capability}.get(build, True)


@pytest.mark.parametrize("build", [*BUILDS, "none such"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_each_build_of_the_loops(monkeypatch, build, layout):
    """PACECORE_CPU picks one; what this processor cannot run is refused, not run."""
    frames, tensors, options = case(torch.device("cpu"))
    options["crop_size"] = (15, 19)  # no whole number of vectors
    expected = reference.pace_clip(frames, *tensors, dtype=torch.float64, **options)
    monkeypatch.setenv("PACECORE_CPU", build)
    if build == "none such" or not runs_here(build):
        with pytest.raises(PacecoreError, match="PACECORE_CPU must be scalar, vector, or"):
            pace_clip(frames, *tensors, **options)
        return
    got = pace_clip(frames, *tensors, memory_format=layout, **options)
    assert (got - expected).abs().max() < EXACT
    for dtype in (torch.float16, torch.bfloat16):
        low = pace_clip(frames, *tensors, memory_format=layout, dtype=dtype, **options)
        assert torch.equal(low, got.to(dtype))


@pytest.mark.parametrize("build", [build for build in BUILDS if runs_here(build)])
def test_columns_about_half_as_many_as_the_source(monkeypatch, build):
    """To there AVX-512 permutes two vectors, beyond it loads pixel by pixel: luma from width 96 on,
    chroma, of half the width, from 192 on.
    """
    monkeypatch.setenv("PACECORE_CPU", build)
    generator = torch.Generator().manual_seed(26)
    plan, crop = ints([0], [0]), ints([1, 2, 0], [0, 11, 1])  # the last columns, flipped, too
    for width in (30, 48, *range(88, 104), *range(184, 202), 300):
        frames = random_frame(generator, 4, width, FORMATS[1])
        options = {"resize": (6, 48), "crop_size": (3, 37)}
        expected = reference.pace_clip(frames, plan, crop, dtype=torch.float64, **options)
        assert (pace_clip(frames, plan, crop, **options) - expected).abs().max() < EXACT, width


@pytest.mark.parametrize("build", [build for build in BUILDS if runs_here(build)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("crop_size", [(112, 112), (112, 104)], ids=str)
def test_large_clips_are_as_if_alone(monkeypatch, build, layout, crop_size):
    """More than a cache holds is stored past it, where rows are whole vectors: the same bits."""
    monkeypatch.setenv("PACECORE_CPU", build)
    frames, tensors, options = case(torch.device("cpu"))
    options |= {"resize": (128, 171), "crop_size": crop_size, "memory_format": layout}
    plan, crop, jitter, order = (t.repeat(12, *[1] * (t.dim() - 1)) for t in tensors)
    crop[:, 0] = torch.arange(len(crop)) % 16
    for dtype in DTYPES:
        got = pace_clip(frames, plan, crop, jitter, order, dtype=dtype, **options)
        assert got.numel() * got.element_size() > 2 * 2**22
        for clip in range(len(plan)):
            one = slice(clip, clip + 1)
            alone = pace_clip(
                frames, plan[one], crop[one], jitter[one], order[one], dtype=dtype, **options
            )
            assert torch.equal(got[one], alone)


# ---- The dispatcher ----


def op_arguments(frames: Frames, tensors: list[Tensor], options: dict) -> tuple:
    sizes = [list(options["resize"]), list(options["crop_size"])]
    return (frames.data, frames.table, *tensors, *sizes, [0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(device, channels_last):
    frames, tensors, options = case(device)
    arguments = op_arguments(frames, tensors, options)
    torch.library.opcheck(
        ops().pace_clip.default, (*arguments, False, torch.bfloat16, channels_last)
    )


def test_opcheck_without_jitter(device):
    frames, tensors, options = case(device)
    arguments = op_arguments(frames, [*tensors[:2], None, None], options)
    torch.library.opcheck(ops().pace_clip.default, (*arguments, True, torch.float32, False))


def test_compiles_into_one_graph(device):
    frames, tensors, options = case(device)

    def function(data, table, *tensors):
        return pace_clip(Frames(data, table), *tensors, **options) * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = compiled(frames.data, frames.table, *tensors)
    assert torch.equal(got, pace_clip(frames, *tensors, **options) * 2)
