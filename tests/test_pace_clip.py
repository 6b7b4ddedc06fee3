"""pace_clip: by hand, against float64, against independent definitions."""

import colorsys

import pytest
import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.frames import FrameFormat, Frames, Matrix, concatenate
from pacecore.ops.pace_clip import pace_clip
from pacecore.reference import pace_clip as reference
from tests.conftest import ARCHITECTURES
from tests.pace_clip_cases import (
    DEVICES,  # noqa: F401
    DTYPES,
    EXACT,
    FORMATS,
    ORDERS,
    assert_rounded_once,
    both,
    frame_of,
    ints,
    random_frame,
    random_frames,
    random_jitter,
    random_plan,
    whole,
)

pytestmark = pytest.mark.usefixtures("one_thread")
_CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


# ---- By hand ----


def test_packed_pixels_come_out_as_they_are(device):
    pixels = torch.arange(2 * 3 * 3, dtype=torch.uint8).view(2, 3, 3) * 14
    frames = frame_of([pixels], FrameFormat(planar=False))
    assert torch.equal(whole(frames, (2, 3), device), pixels.permute(2, 0, 1).float())


def test_pictures_of_ones_own_come_out_as_they_are(device):
    wide = torch.arange(3 * 2 * 4 * 3, dtype=torch.uint8).view(3, 2, 4, 3).to(device)
    for pictures in (wide, wide[:, :, 1:]):  # the second is not contiguous
        height, width = pictures.shape[1:3]
        plan = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32, device=device)
        crop = torch.zeros(2, 3, dtype=torch.int32, device=device)
        size = {"resize": (height, width), "crop_size": (height, width)}
        clips = pace_clip(Frames.of_rgb(pictures), plan, crop, **size)
        assert torch.equal(clips, pictures[plan.long()].permute(0, 4, 1, 2, 3).float())


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 4, 4)])
def test_pictures_that_are_no_packed_rgb(shape):
    words = r"Frames.of_rgb: pictures must be a tensor \(F, H, W, 3\) uint8, got torch.uint8 \("
    with pytest.raises(PacecoreError, match=words):
        Frames.of_rgb(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(PacecoreError, match=r"got torch.float32 \(1, 4, 4, 3\)"):
        Frames.of_rgb(torch.zeros(1, 4, 4, 3))
    with pytest.raises(PacecoreError, match=r"must be a tensor .*, got list"):
        Frames.of_rgb([torch.zeros(4, 4, 3, dtype=torch.uint8)])


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_raw_planar_frames_are_found_plane_by_plane(size):
    generator = torch.Generator().manual_seed(0)
    for kind in FORMATS[1:]:
        parts = [random_frame(generator, *size, kind) for _ in range(3)]
        wanted = concatenate(parts)
        found = Frames.of_yuv420p(wanted.data, size, kind)
        assert torch.equal(found.table, wanted.table)
        assert found.data is wanted.data
    assert Frames.of_yuv420p(wanted.data, size).table[0, 7] == FrameFormat().code


def test_data_that_are_no_raw_planar_frames():
    bad = (torch.zeros(49, dtype=torch.uint8), torch.zeros(48), torch.zeros(4, 12).byte())
    for data in bad:
        with pytest.raises(PacecoreError, match=r"Frames.of_yuv420p: data must be .* 4 x 8"):
            Frames.of_yuv420p(data, (4, 8))
    with pytest.raises(PacecoreError, match=r"whole frames, got torch.uint8 \(48,\) for 0 x 8"):
        Frames.of_yuv420p(torch.zeros(48).byte(), (0, 8))
    with pytest.raises(PacecoreError, match=r"Frames.of_yuv420p: data must be .*, got bytes"):
        Frames.of_yuv420p(bytes(48), (4, 8))
    with pytest.raises(PacecoreError, match=r"kind must be planar, got FrameFormat\(planar=False"):
        Frames.of_yuv420p(torch.zeros(48).byte(), (4, 8), FrameFormat(planar=False))


def test_frames_are_compared_as_objects():
    frames, same = (Frames.of_rgb(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)) for _ in range(2))
    assert frames == frames
    assert frames != same


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


@pytest.mark.parametrize("turned", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
@pytest.mark.parametrize("widths", [[12, 7, 12], [12, 12, 12]])
def test_columns_are_not_those_of_the_clip_before(device, turned, widths):
    """The CPU keeps where they come from, for the next clip that is as wide and turned alike."""
    pixels = torch.randint(256, (1, 8, 12, 3), dtype=torch.uint8)
    frames, expected = Frames.of_rgb(pixels.to(device)), pixels[0].permute(2, 0, 1).float()
    for flip, width in zip(turned, widths, strict=True):
        size = {"resize": (8, 12), "crop_size": (8, width)}
        clip = pace_clip(frames, ints([0]).to(device), ints([0, 0, flip]).to(device), **size)
        part = expected[..., :width]
        assert torch.equal(clip[0, :, 0].cpu(), part.flip(-1) if flip else part)


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


@pytest.mark.parametrize("device", ["cpu", *ARCHITECTURES, _CUDA], indirect=True)
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


@pytest.mark.parametrize(
    ("size", "resize", "crop_size"),
    [
        ((20, 31), (20, 31), (17, 29)),  # as large as the resized image
        ((70, 800), (30, 40), (30, 37)),  # wider than what CUDA copies at a time
        ((66, 40), (16, 20), (14, 20)),  # so tall that CUDA copies no rows
        ((6, 1320), (4, 1380), (3, 1300)),  # more columns than CUDA threads have at once
        ((6, 300), (4, 8300), (3, 70)),  # wider than whole numbers on CUDA have room for
        ((450, 60), (128, 171), (112, 112)),  # no rows copied, in a crop that is made in parts
        ((1210, 20), (400, 400), (384, 384)),  # the same where a block's share is larger than kept
        ((30, 8), (2800, 3), (2800, 1)),  # so narrow that the rows' taps need more room than they
    ],
)
def test_ways_of_reading_the_source(device, size, resize, crop_size):
    generator = torch.Generator().manual_seed(13)
    frames = random_frames(generator, [size, size], FORMATS[:2], gap=size[1] % 3)
    _, crop = random_plan(generator, 2, 1, 2, resize, crop_size)
    arguments = [ints([0, 1]), crop, *random_jitter(generator, 1, 2)]
    got, expected = both(frames, arguments, device, resize=resize, crop_size=crop_size)
    assert (got - expected).abs().max() < EXACT


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
