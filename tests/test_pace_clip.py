"""pace_clip: by hand, against float64, against independent definitions, layouts, errors."""

import colorsys

import pytest
import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.frames import FrameFormat, Frames, Matrix, concatenate
from pacecore.ops.library import ops
from pacecore.ops.pace_clip import check_plan, pace_clip
from pacecore.reference import pace_clip as reference
from tests.pace_clip_cases import (
    FORMATS,
    ORDERS,
    frame_of,
    random_frame,
    random_frames,
    random_jitter,
    random_plan,
)

# Largest error of a float32 result, in levels of 0..255: 2e-3 is promised, noise with jitter at the
# ends of its range comes to about 5e-4.
EXACT = 1e-3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: handing them to threads costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DEVICES = ("cpu", "emulated", "emulated_sm86", "cuda")
_CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
# The CPU refuses what these give NaN for.
cuda_kernels = pytest.mark.parametrize(
    "device", ["emulated", "emulated_sm86", _CUDA], indirect=True
)


def ints(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def whole(frames: Frames, size: tuple[int, int], device: torch.device, **options) -> Tensor:
    """Frame 0 scaled to `size`, without crop: (3, H, W) on the CPU."""
    clips = pace_clip(
        frames.to(device),
        ints([0]).to(device),
        ints([0, 0, 0]).to(device),
        resize=size,
        crop_size=size,
        **options,
    )
    return clips[0, :, 0].cpu()


def both(frames: Frames, arguments: list[Tensor], device: torch.device, **options):
    """The op on `device`, and the float64 reference: both on the CPU."""
    expected = reference.pace_clip(frames, *arguments, **{**options, "dtype": torch.float64})
    got = pace_clip(frames.to(device), *(a.to(device) for a in arguments), **options)
    assert got.dtype == options.get("dtype", torch.float32)
    return got.cpu(), expected


def assert_rounded_once(got: Tensor, expected: Tensor) -> None:
    """`got` is the float64 value rounded to its type, but for an error that float32 also has."""
    spacing = torch.finfo(got.dtype).eps * expected.abs().clamp(min=torch.finfo(got.dtype).tiny)
    error = (got.double() - expected).abs()
    assert (error <= EXACT + (0 if got.dtype == torch.float32 else 0.5 * spacing)).all()


# ---- By hand ----


def test_packed_pixels_come_out_as_they_are(device):
    pixels = torch.arange(2 * 3 * 3, dtype=torch.uint8).view(2, 3, 3) * 14
    frames = frame_of([pixels], FrameFormat(planar=False))
    assert torch.equal(whole(frames, (2, 3), device), pixels.permute(2, 0, 1).float())


def test_bilinear_with_half_pixel_centres(device):
    pixels = ints([0, 100]).to(torch.uint8).view(1, 2, 1).expand(1, 2, 3)
    frames = frame_of([pixels], FrameFormat(planar=False))
    wide = whole(frames, (1, 4), device)[0, 0]
    assert wide.tolist() == [0, 25, 75, 100]  # at -1/4, 1/4, 3/4, 5/4 of the source
    assert whole(frames, (1, 1), device)[0, 0].tolist() == [50]
    tall = frame_of([pixels.transpose(0, 1)], FrameFormat(planar=False))
    assert whole(tall, (4, 1), device)[2, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize(
    ("centre_sited", "expected"), [(False, [10, 20, 30, 30]), (True, [10, 15, 25, 30])]
)
def test_chroma_lies_where_its_siting_says(device, centre_sited, expected):
    """Full range BT.601: R = Y + 1.402 (V - 128). V samples 10 and 30 for four columns."""
    fmt = FrameFormat(full_range=True, centre_sited=centre_sited)
    grey = torch.full((2, 4), 200, dtype=torch.uint8)
    u, v = torch.full((1, 2), 128, dtype=torch.uint8), ints([10, 30]).to(torch.uint8)
    red = whole(frame_of([grey, u, v], fmt), (2, 4), device)[0]
    torch.testing.assert_close((red - 200) / 1.402 + 128, ints(expected, expected).float())


def test_chroma_lies_between_rows(device):
    fmt = FrameFormat(full_range=True)
    grey = torch.full((4, 1), 200, dtype=torch.uint8)
    u = torch.full((2, 1), 128, dtype=torch.uint8)
    v = ints([10], [30]).to(torch.uint8)
    red = whole(frame_of([grey, u, v], fmt), (4, 1), device)[0, :, 0]
    torch.testing.assert_close((red - 200) / 1.402 + 128, ints(10, 15, 25, 30).float())


@pytest.mark.parametrize(
    ("fmt", "yuv", "rgb"),
    [  # colour bars as the standards print them, to the rounding of their 8-bit codes
        (FrameFormat(), (16, 128, 128), (0, 0, 0)),
        (FrameFormat(), (235, 128, 128), (255, 255, 255)),
        (FrameFormat(), (81, 90, 240), (255, 0, 0)),
        (FrameFormat(), (145, 54, 34), (0, 255, 0)),
        (FrameFormat(), (41, 240, 110), (0, 0, 255)),
        (FrameFormat(matrix=Matrix.BT709), (63, 102, 240), (255, 0, 0)),
        (FrameFormat(matrix=Matrix.BT709), (173, 42, 26), (0, 255, 0)),
        (FrameFormat(matrix=Matrix.BT709), (32, 240, 118), (0, 0, 255)),
        (FrameFormat(matrix=Matrix.BT2020), (74, 97, 240), (255, 0, 0)),
        (FrameFormat(full_range=True), (76, 85, 255), (255, 0, 0)),
        (FrameFormat(full_range=True), (255, 128, 128), (255, 255, 255)),
        (FrameFormat(matrix=Matrix.BT709, full_range=True), (54, 99, 255), (255, 0, 0)),
    ],
)
def test_colours_of_the_standards(device, fmt, yuv, rgb):
    planes = [torch.full((1, 1), value, dtype=torch.uint8) for value in yuv]
    colour = whole(frame_of(planes, fmt), (1, 1), device).flatten()
    assert (colour - torch.tensor(rgb).float()).abs().max() < 2


def test_gather_crop_and_flip(device):
    pixels = torch.arange(2 * 4 * 5, dtype=torch.uint8).view(2, 4, 5, 1).expand(2, 4, 5, 3)
    frames = concatenate([frame_of([p], FrameFormat(planar=False)) for p in pixels]).to(device)
    plan, crop = ints([1, 0], [0, 0]).to(device), ints([1, 2, 0], [0, 1, 1]).to(device)
    clips = pace_clip(frames, plan, crop, resize=(4, 5), crop_size=(2, 3)).cpu()
    assert clips[0, 0, 0].tolist() == [[27, 28, 29], [32, 33, 34]]
    assert clips[0, 0, 1].tolist() == [[7, 8, 9], [12, 13, 14]]
    assert clips[1, 2, 0].tolist() == clips[1, 2, 1].tolist() == [[3, 2, 1], [8, 7, 6]]


def test_normalisation_is_of_colours_and_order_of_channels(device):
    pixels = ints(10, 20, 30).to(torch.uint8).view(1, 1, 3)
    frames = frame_of([pixels], FrameFormat(planar=False))
    options = {"mean": (2, 4, 6), "std": (1, 2, 4)}
    assert whole(frames, (1, 1), device, **options).flatten().tolist() == [8, 8, 6]
    swapped = whole(frames, (1, 1), device, channel_order="bgr", **options)
    assert swapped.flatten().tolist() == [6, 8, 8]


# ---- Against float64 ----


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"format{fmt.code}")
def test_formats_and_odd_sizes(device, fmt):
    generator = torch.Generator().manual_seed(fmt.code)
    sizes = [(1, 1), (2, 3), (9, 5), (16, 16), (37, 50)]
    frames = random_frames(generator, sizes, [fmt], gap=fmt.code % 4)
    for resize, crop_size in [((9, 11), (9, 11)), ((32, 43), (21, 20)), ((5, 5), (1, 1))]:
        arguments = random_plan(generator, 5, 2, 5, resize, crop_size)
        got, expected = both(frames, arguments, device, resize=resize, crop_size=crop_size)
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_jitter_types_and_layouts(device, dtype, channels_last):
    generator = torch.Generator().manual_seed(7)
    frames = random_frames(generator, [(24, 31), (40, 33), (17, 64)], FORMATS, gap=1)
    resize, crop_size = (20, 35), (13, 33)
    arguments = [
        *random_plan(generator, 3, 2, 7, resize, crop_size),
        *random_jitter(generator, 2, 7),
    ]
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    got, expected = both(
        frames,
        arguments,
        device,
        resize=resize,
        crop_size=crop_size,
        dtype=dtype,
        memory_format=layout,
        channel_order="bgr",
    )
    assert got.is_contiguous(memory_format=layout)
    assert_rounded_once(got, expected)


def test_mean_grey_of_a_frame_that_many_blocks_share(device):
    # 4,480 pixels: more than a block keeps, so on sm_90 a cluster adds up their grey.
    generator = torch.Generator().manual_seed(9)
    frames = random_frames(generator, [(40, 48)], FORMATS[:2], gap=0)
    arguments = [
        *random_plan(generator, 2, 1, 2, (64, 70), (64, 70)),
        *random_jitter(generator, 1, 2),
    ]
    got, expected = both(frames, arguments, device, resize=(64, 70), crop_size=(64, 70))
    assert (got - expected).abs().max() < EXACT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalised_values_are_rounded_once(device, dtype):
    generator = torch.Generator().manual_seed(8)
    frames = random_frames(generator, [(30, 40)], [FrameFormat()], gap=0)
    arguments = random_plan(generator, 1, 1, 2, (21, 30), (18, 19))
    options = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    got, expected = both(
        frames, arguments, device, resize=(21, 30), crop_size=(18, 19), dtype=dtype, **options
    )
    assert_rounded_once(got, expected)


def test_half_rounds_like_torch_at_its_ends(device):
    """Subnormal, overflowing and tied values: float16 and bfloat16 as torch rounds float32."""
    pixels = torch.arange(256).to(torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    frames = frame_of([pixels], FrameFormat(planar=False))
    for std in (1e9, 3e7, 2.0**24, 513, 3e-3, 0.0039):
        options = {"std": (std, -std, 1.0), "mean": (0.0, 0.0, 100.125)}
        exact = whole(frames, (16, 16), device, **options)
        for dtype in DTYPES:
            rounded = whole(frames, (16, 16), device, dtype=dtype, **options)
            assert torch.equal(rounded, exact.to(dtype)), (std, dtype)


def test_reference_in_float32_is_as_exact(device):
    """The benchmark's baseline computes the same thing in the type that the op computes in."""
    generator = torch.Generator().manual_seed(9)
    frames = random_frames(generator, [(24, 32)], [FrameFormat()], gap=0)
    arguments = [
        *random_plan(generator, 1, 1, 4, (16, 21), (14, 14)),
        *random_jitter(generator, 1, 4),
    ]
    options = {"resize": (16, 21), "crop_size": (14, 14)}
    got, expected = both(frames, arguments, device, **options)
    single = reference.pace_clip(frames, *arguments, compute_dtype=torch.float32, **options)
    assert (single - expected).abs().max() < EXACT
    assert (got - single).abs().max() < EXACT


def test_sizes_from_1_to_300_at_random(device):
    generator = torch.Generator().manual_seed(10)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for round_number in range(6):
        top = 300 if round_number < 2 and device.type == "cpu" else 60
        sizes = [(draw(1, top), draw(1, top)) for _ in range(2)]
        fmt = FORMATS[draw(0, len(FORMATS) - 1)]
        frames = random_frames(generator, sizes, [fmt], gap=draw(0, 5))
        resize = (draw(1, top), draw(1, top))
        crop_size = (draw(1, resize[0]), draw(1, resize[1]))
        arguments = [
            *random_plan(generator, 2, 1, 2, resize, crop_size),
            *random_jitter(generator, 1, 2),
        ]
        got, expected = both(frames, arguments, device, resize=resize, crop_size=crop_size)
        assert (got - expected).abs().max() < EXACT, (sizes, fmt, resize, crop_size)


# ---- Against definitions written elsewhere ----


def test_resize_is_that_of_torch(device):
    generator = torch.Generator().manual_seed(11)
    for size, out in [((24, 32), (13, 17)), ((7, 5), (20, 31)), ((240, 320), (128, 171))]:
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
        expected = torch.nn.functional.interpolate(
            pixels.permute(2, 0, 1)[None].double(), out, mode="bilinear", align_corners=False
        )[0]
        got = whole(frame_of([pixels], FrameFormat(planar=False)), out, device)
        assert (got - expected).abs().max() < 1e-4


def jittered_by_colorsys(pixels: Tensor, factors: list[float], order: int) -> Tensor:
    """Python's own HSV, pixel by pixel. pixels: (n, 3) in 0..1."""
    values = pixels.tolist()

    def grey(p):
        return 0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2]

    def blended(p, other, factor):
        return [min(max(factor * c + (1 - factor) * other, 0), 1) for c in p]

    for place in range(4):
        step = order >> 2 * place & 3
        mean = sum(map(grey, values)) / len(values)
        if step == 0:
            values = [blended(p, 0, factors[0]) for p in values]
        elif step == 1:
            values = [blended(p, mean, factors[1]) for p in values]
        elif step == 2:
            values = [blended(p, grey(p), factors[2]) for p in values]
        else:
            hsv = [colorsys.rgb_to_hsv(*p) for p in values]
            values = [colorsys.hsv_to_rgb((h + factors[3]) % 1, s, v) for h, s, v in hsv]
    return torch.tensor(values, dtype=torch.float64)


def test_jitter_of_every_order_is_that_of_colorsys(device):
    generator = torch.Generator().manual_seed(12)
    pixels = torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8, generator=generator)
    pixels[0] = torch.tensor([90, 90, 90])  # no hue
    pixels[1, :4] = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
    pixels[1, 4:] = torch.tensor([[0, 0, 0], [255, 255, 255], [200, 10, 200]])
    frames = frame_of([pixels], FrameFormat(planar=False)).to(device)
    factors, _ = random_jitter(generator, 1, 24)
    order = torch.tensor([ORDERS], dtype=torch.int32)
    clips = pace_clip(
        frames,
        torch.zeros(1, 24, dtype=torch.int32).to(device),
        ints([0, 0, 0]).to(device),
        factors.to(device),
        order.to(device),
        resize=(6, 7),
        crop_size=(6, 7),
    ).cpu()
    for t in range(24):
        expected = jittered_by_colorsys(
            pixels.reshape(-1, 3).double() / 255, factors[0, t].tolist(), ORDERS[t]
        )
        got = clips[0, :, t].permute(1, 2, 0).reshape(-1, 3)
        assert (got - expected * 255).abs().max() < EXACT, ORDERS[t]


def test_contrast_is_about_the_grey_of_the_crop(device):
    pixels = torch.zeros(2, 4, 3, dtype=torch.uint8)
    pixels[:, :2] = 100
    frames = frame_of([pixels], FrameFormat(planar=False)).to(device)
    order = ints([0b11_10_00_01]).to(device)  # contrast first
    jitter = torch.tensor([[[1.0, 0.5, 1.0, 0.0]]]).to(device)
    clips = pace_clip(
        frames, ints([0]).to(device), ints([0, 1, 0]).to(device), jitter, order,
        resize=(2, 4), crop_size=(2, 3),
    )  # fmt: skip
    mean = 100 / 3 * (0.2989 + 0.587 + 0.114)
    expected = torch.tensor([50 + mean / 2, mean / 2, mean / 2])
    torch.testing.assert_close(clips[0, 0, 0, 0].cpu(), expected)


# ---- Layouts, sharing, threads, builds ----


def case(device: torch.device, seed: int = 20):
    generator = torch.Generator().manual_seed(seed)
    frames = random_frames(generator, [(24, 31), (15, 20), (16, 9)], FORMATS[:3], gap=2)
    resize, crop_size = (19, 26), (16, 20)
    tensors = [
        *random_plan(generator, 3, 2, 6, resize, crop_size),
        *random_jitter(generator, 2, 6),
    ]
    options = {"resize": resize, "crop_size": crop_size}
    return frames.to(device), [t.to(device) for t in tensors], options


def test_layout_changes_no_bit(device):
    frames, tensors, options = case(device)
    for dtype in DTYPES:
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


@pytest.mark.parametrize("build", ["scalar", "vector", "avx2", "avx512", "none such"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_each_build_of_the_loops(monkeypatch, build, layout):
    """PACECORE_CPU picks one; what this processor cannot run is refused, not run."""
    frames, tensors, options = case(torch.device("cpu"))
    options["crop_size"] = (15, 19)  # no whole number of vectors
    expected = reference.pace_clip(frames, *tensors, dtype=torch.float64, **options)
    monkeypatch.setenv("PACECORE_CPU", build)
    capability = torch.backends.cpu.get_cpu_capability()
    runs = {"none such": False, "avx512": capability == "AVX512", "avx2": "AVX" in capability}
    if not runs.get(build, True):
        with pytest.raises(PacecoreError, match="PACECORE_CPU must be scalar, vector, or"):
            pace_clip(frames, *tensors, **options)
        return
    got = pace_clip(frames, *tensors, memory_format=layout, **options)
    assert (got - expected).abs().max() < EXACT
    for dtype in (torch.float16, torch.bfloat16):
        low = pace_clip(frames, *tensors, memory_format=layout, dtype=dtype, **options)
        assert torch.equal(low, got.to(dtype))


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


# ---- Errors ----


def changed(tensor: Tensor, index: tuple, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


WRONG_SHAPES = [
    ("plan", lambda t: t.long(), "plan must be (B, T) int32"),
    ("plan", lambda t: t[0], "plan must be (B, T) int32"),
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
    ("crop_size", lambda s: (1, 2, 3), "crop_size must be two numbers"),
    ("crop_size", lambda s: (20, 20), "crop_size must not exceed resize (19, 26), got (20, 20)"),
    ("mean", lambda s: (1.0,), "mean must be three finite numbers"),
    ("mean", lambda s: (float("nan"), 0, 0), "mean must be three finite numbers"),
    ("std", lambda s: (1.0, 0.0, 1.0), "std must be three finite numbers not 0"),
    ("dtype", lambda s: torch.float64, "dtype must be float32, float16 or bfloat16, got float64"),
    ("channel_order", lambda s: "grb", "channel_order must be rgb or bgr, got 'grb'"),
    ("memory_format", lambda s: torch.channels_last, "memory_format must be"),
]
WRONG_CONTENTS = [
    ("plan", (1, 2), 3, "plan[1, 2] must be a row of frames.table, from 0 to 2, got 3"),
    ("plan", (0, 0), -1, "plan[0, 0] must be a row"),
    ("crop", (1, 0), 4, "top of crop 1 must be from 0 to 3, got 4"),
    ("crop", (0, 1), -1, "left of crop 0 must be from 0 to 6, got -1"),
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
