"""The networks: sizes, maps by name, layouts, compilation, checkpointing, and tuning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.backbones import multiply_adds
from pacecore.backbones import (
    BACKBONES,
    build_backbone,
    convolution,
    layers,
    stage_features,
    tuning,
)
from pacecore.backbones.layers import Conv3d, ConvNorm
from pacecore.errors import PacecoreError

NAMES = list(BACKBONES)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def thin(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, width=0.125)


def some_clips(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "depth", "trunk", "with_head"),
    [
        ("c3d", None, 27_661_440, 27_663_492),
        ("r3d", None, 14_361_792, 14_363_844),
        ("r21d", None, 14_365_303, 14_367_355),
        ("s3dg", None, 9_125_072, 9_129_172),
        ("r3d", 18, 33_166_272, 33_168_324),
        ("r21d", 18, 33_178_423, 33_180_475),
        ("r21d", (1, 1, 1, 1), 14_365_303, 14_367_355),
    ],
)
def test_parameter_counts(name, depth, trunk, with_head):
    with torch.device("meta"):
        backbone = build_backbone(name, depth)
        head = nn.Linear(backbone.feature_dim, 4)
    assert parameters(backbone) == trunk
    assert parameters(backbone) + parameters(head) == with_head


def test_middle_channels_of_r21d():
    with torch.device("meta"):
        backbone = build_backbone("r21d")
    middle = {
        n: m.spatial.out_channels for n, m in backbone.named_modules() if hasattr(m, "spatial")
    }
    assert middle == {
        "conv1.conv": 83,
        "conv2.0.conv1.conv": 144,
        "conv2.0.conv2.conv": 144,
        "conv3.0.conv1.conv": 230,
        "conv3.0.conv2.conv": 288,
        "conv3.0.shortcut.conv": 42,
        "conv4.0.conv1.conv": 460,
        "conv4.0.conv2.conv": 576,
        "conv4.0.shortcut.conv": 85,
        "conv5.0.conv1.conv": 921,
        "conv5.0.conv2.conv": 1152,
        "conv5.0.shortcut.conv": 170,
    }


@pytest.mark.parametrize(
    ("name", "giga"), [("c3d", 38.50), ("r3d", 19.89), ("r21d", 21.36), ("s3dg", 64.18)]
)
def test_multiply_adds(name, giga):
    shape = (1, 3, 64, 224, 224) if name == "s3dg" else (1, 3, 16, 112, 112)
    total = multiply_adds(name, 1.0, torch.empty(shape, device="meta"))
    assert round(total / 1e9, 2) == giga


@pytest.mark.parametrize(
    ("name", "last", "p4", "p5"),
    [
        ("c3d", (512, 2, 7, 7), 512 * 2 * 7 * 7, 9216),
        ("r3d", (512, 2, 7, 7), 256 * 2 * 7 * 7, 9216),
        ("r21d", (512, 2, 7, 7), 256 * 2 * 7 * 7, 9216),
        ("s3dg", (1024, 8, 7, 7), 832 * 8 * 7 * 7, 1024 * 8 * 3 * 3),
    ],
)
def test_maps_and_features_at_the_papers_size(name, last, p4, p5):
    shape = (2, 3, 64, 224, 224) if name == "s3dg" else (2, 3, 16, 112, 112)
    with torch.device("meta"):
        backbone, clips = build_backbone(name), torch.empty(shape)
        maps = backbone.maps(clips, backbone.stage_names)
        assert list(maps) == list(backbone.stage_names)
        assert maps[backbone.stage_names[-1]].shape == (2, *last)
        assert stage_features(backbone, clips, "p4").shape == (2, p4)
        assert stage_features(backbone, clips, "p5").shape == (2, p5)
        assert stage_features(backbone, clips, "gap").shape == (2, backbone.feature_dim)
        assert stage_features(backbone, clips, "p5", pool="gap").shape == (2, last[0])
        assert backbone.feature_dim == last[0]


def test_features_are_pooled_maps():
    backbone = thin("r21d").eval()
    clips = some_clips(2, 3, 8, 32, 32)
    maps = backbone.maps(clips, ["conv4", "conv5"])
    p4 = F.max_pool3d(maps["conv4"], 2).flatten(1)
    p5 = maps["conv5"].amax(dim=(3, 4)).flatten(1)  # 1 x 2 x 2 in space: one window
    assert torch.equal(stage_features(backbone, clips, "p4"), p4)
    assert torch.equal(stage_features(backbone, clips, "p5"), p5)
    assert torch.equal(backbone(clips), maps["conv5"].mean(dim=(2, 3, 4)))
    c3d = thin("c3d").eval()
    clips = some_clips(1, 3, 8, 16, 16)
    pool4 = c3d.maps(clips, ["pool4"])["pool4"]
    assert torch.equal(stage_features(c3d, clips, "p4"), pool4.flatten(1))


def test_stages_past_the_last_named_do_not_run():
    backbone = thin("r3d")
    backbone.conv4 = None
    assert list(backbone.maps(some_clips(1, 3, 4, 16, 16), ["conv3", "conv1"])) == [
        "conv1",
        "conv3",
    ]


@pytest.mark.parametrize("size", [(7, 16, 16), (8, 15, 16), (8, 16, 15)])
def test_a_clip_that_no_pooling_leaves_anything_of_is_refused(size):
    c3d = thin("c3d").eval()
    rule = r"C3D: clips must have 8 frames of 16 x 16 or more, got \(.*\) \(T, H, W\)"
    for run in (c3d, lambda clips: stage_features(c3d, clips, "p4")):
        with pytest.raises(PacecoreError, match=rule):
            run(some_clips(1, 3, *size))
    assert c3d(some_clips(1, 3, 8, 16, 16)).isfinite().all()
    others = [name for name in NAMES if name != "c3d"]
    assert all(thin(name).eval()(some_clips(1, 3, 1, 1, 1)).isfinite().all() for name in others)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0.25, 0.1, 2])
def test_width(name, width):
    with torch.device("meta"):
        thinned, full = build_backbone(name, width=width), build_backbone(name)
        thinned(torch.empty(1, 3, 16, 64, 64))
    channels = [m.out_channels for m in thinned.modules() if isinstance(m, nn.Conv3d)]
    assert all(c % 8 == 0 for c in channels)
    ratio = parameters(thinned) / parameters(full)
    assert 0.5 * width**2 < ratio < 2 * width**2 + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name):
    first, again, other = thin(name), thin(name), thin(name, seed=1)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same_results_and_gradients(name):
    plain = thin(name).double().train()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    clips = some_clips(2, 3, 9, 40, 36, dtype=torch.float64)
    results = []
    for network, x in ((plain, clips), (last, clips.to(memory_format=torch.channels_last_3d))):
        x = x.detach().requires_grad_()
        features = network(x)
        features.square().sum().backward()
        results.append([features, x.grad, *(p.grad for p in network.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wide", [1, 99])
@pytest.mark.parametrize("kernel", [(3, 1, 1), (1, 3, 3), (3, 3, 3), (1, 7, 7)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 6, 3), (3, 4, 5, 8, 8), (1, 4, 1, 1, 1), (2, 3, 4, 1, 5), (0, 4, 4, 3, 3)]
)
def test_convolutions_of_channels_last_clips(shape, stride, kernel, wide, monkeypatch):
    monkeypatch.setattr(layers, "WIDE", wide)
    monkeypatch.setattr(convolution, "_ROWS", 24)
    torch.manual_seed(0)
    strides = tuple(stride if k > 1 else 1 for k in kernel)
    padding = tuple(k // 2 for k in kernel)
    conv = Conv3d(shape[1], 6, kernel, strides, padding).double()
    clips = torch.randn(shape, dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = clips.to(memory_format=layout).requires_grad_()
        out = conv(x) if layout is torch.channels_last_3d else nn.Conv3d.forward(conv, x)
        wave = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
        inputs = (x, conv.weight, conv.bias)
        results.append([out, *torch.autograd.grad(out, inputs, wave, retain_graph=True)])
        if shape[0]:  # of no clips torch has no second derivative
            once = torch.autograd.grad(out, inputs, wave, create_graph=True)
            penalty = sum(gradient.square().sum() for gradient in once[:2])
            results[-1] += [*once, *torch.autograd.grad(penalty, inputs[:2])]
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_convolutions_of_channels_last_clips_in_float32(monkeypatch):
    monkeypatch.setattr(layers, "WIDE", 1)
    torch.manual_seed(0)
    conv = Conv3d(9, 16, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
    x = torch.randn(2, 9, 4, 11, 10).to(memory_format=torch.channels_last_3d)
    found = conv(x)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    (grad,) = torch.autograd.grad(found.square().sum(), conv.weight)

    def loss(weight):
        return torch.func.functional_call(conv, {"weight": weight}, x).square().sum()

    torch.testing.assert_close(torch.func.grad(loss)(conv.weight.detach()), grad)
    conv.double()
    out = nn.Conv3d.forward(conv, x.double())
    (expected,) = torch.autograd.grad(out.square().sum(), conv.weight)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_only(name):
    plain, kept = thin(name).train(), thin(name).train()
    kept.checkpointing = True
    clips = some_clips(2, 3, 8, 16, 16)
    saved = {}
    for network in (plain, kept):
        held = [0]

        def pack(tensor: Tensor, held=held) -> Tensor:
            held[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network(clips)
        saved[network] = held[0]
        features.square().sum().backward()
    assert saved[kept] < 0.5 * saved[plain]
    for (key, expected), found in zip(
        plain.state_dict().items(), kept.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), key
    for expected, found in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_checkpointing_of_norms_without_running_averages():
    network = thin("c3d").train()
    network.checkpointing = True
    for part in network.modules():
        if isinstance(part, ConvNorm):
            part.norm = nn.BatchNorm3d(part.norm.num_features, track_running_stats=False)
    network(some_clips(2, 3, 8, 16, 16)).square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_checkpointing_within_torch_compile():
    plain, kept = thin("r3d").train(), thin("r3d").train()
    kept.checkpointing = True
    clips = some_clips(2, 3, 8, 16, 16)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="R3D: checkpointing is not compiled, got True"):
        torch.compile(kept, backend="eager", fullgraph=True)(clips)
    compiled = torch.compile(kept, backend="eager")
    for network in (plain, compiled):
        network(clips).square().sum().backward()
    torch._dynamo.reset()  # what it took for no use to compile
    for name, expected in plain.named_buffers():
        assert torch.equal(kept.get_buffer(name), expected), name
    for expected, found in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_checkpointing_takes_two_backward_passes_through_one_graph():
    plain, kept = thin("r3d").train(), thin("r3d").train()
    kept.checkpointing = True
    clips = some_clips(2, 3, 8, 16, 16)
    for network in (plain, kept):
        loss = network(clips).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for name, expected in plain.named_buffers():
        assert torch.equal(kept.get_buffer(name), expected), name
    for expected, found in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    network = thin(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = network(some_clips(1, 3, 8, 16, 16))
    assert torch.isfinite(features).all()


def test_compiles_as_one_graph():
    network = thin("r21d").eval().to(memory_format=torch.channels_last_3d)
    clips = some_clips(1, 3, 4, 16, 16).to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(clips), network(clips))


def test_is_exported_in_training_for_any_number_of_clips():
    network = thin("c3d").train()
    batch = torch.export.Dim("batch")
    clips = some_clips(2, 3, 8, 16, 16)
    exported = torch.export.export(network, (clips,), dynamic_shapes=({0: batch},))
    assert exported.module()(some_clips(5, 3, 8, 16, 16)).shape == (5, network.feature_dim)


def test_errors():
    with pytest.raises(
        PacecoreError, match="backbone must be one of c3d, r3d, r21d, s3dg, got 'i3d'"
    ):
        build_backbone("i3d")
    with pytest.raises(PacecoreError, match=r"backbone must be one of .*, got \['r3d'\]"):
        build_backbone(["r3d"])
    for width in (0, 5, float("nan"), "a", None):
        words = rf"width of a backbone must be a number in \(0, 4\], got {width!r}"
        with pytest.raises(PacecoreError, match=words):
            build_backbone("r3d", width=width)
    with pytest.raises(PacecoreError, match="c3d has one depth only"):
        build_backbone("c3d", depth=18)
    for depth in (34, 18.0, "18", (1, 1, 1), (1, 1, 1, 0)):
        with pytest.raises(PacecoreError, match="depth must be one of 10, 18 or four block counts"):
            build_backbone("r21d", depth=depth)
    backbone = thin("r21d").eval()
    with pytest.raises(PacecoreError, match=r"the stages are conv1, .*, got 'conv6'"):
        backbone.maps(some_clips(1, 3, 4, 16, 16), ["conv6"])
    with pytest.raises(
        PacecoreError, match=r"clips must be \(B, 3, T, H, W\), got \(1, 4, 16, 16\)"
    ):
        backbone(some_clips(1, 4, 16, 16))
    with pytest.raises(PacecoreError, match="features must be one of p4, p5, gap, got 'p6'"):
        stage_features(backbone, some_clips(1, 3, 4, 16, 16), "p6")
    with pytest.raises(PacecoreError, match="pool must be max or gap, got 'mean'"):
        stage_features(backbone, some_clips(1, 3, 4, 16, 16), "p5", pool="mean")
    with pytest.raises(PacecoreError, match=r"leave a conv5 map of \(1, 1, 1\), smaller than"):
        stage_features(backbone, some_clips(1, 3, 4, 16, 16), "p5")


def test_prepare_lays_weights_out():
    network = tuning.prepare(thin("r3d"), "cpu")
    assert network.conv1.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("capability", "of_r3d"),
    [("AVX2", torch.channels_last_3d), ("AVX512", torch.contiguous_format)],
)
def test_layout_by_device_and_network(monkeypatch, capability, of_r3d):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with torch.device("meta"):
        r21d, r3d, c3d, thin_c3d = (
            nn.Sequential(build_backbone(name, width=width))
            for name, width in (("r21d", 1), ("r3d", 1), ("c3d", 1), ("c3d", 0.25))
        )
    assert tuning.memory_format(r3d, "cpu") is of_r3d
    assert tuning.memory_format(r21d, "cpu") is torch.channels_last_3d
    assert tuning.memory_format(thin_c3d, "cpu") is torch.channels_last_3d
    assert tuning.memory_format(c3d, "cpu") is torch.contiguous_format
    assert tuning.memory_format(c3d, "cuda") is torch.channels_last_3d
