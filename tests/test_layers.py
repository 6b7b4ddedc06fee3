"""The layers as they run on tensor cores, filled up with channels of zeros; batch norm on a CPU."""

import copy

import pytest
import torch
from torch import nn

from pacecore.backbones import BACKBONES, build_backbone, layers, residual
from pacecore.backbones.layers import BatchNorm3d, Conv3d, ConvNorm, conv3d
from pacecore.backbones.tuning import MEMORY_FORMAT


@pytest.fixture
def as_on_tensor_cores(monkeypatch):
    """Has the layers take a CPU's channels-last maps for a GPU's."""

    def wanted(x: torch.Tensor) -> bool:
        return x.is_contiguous(memory_format=MEMORY_FORMAT)

    for module in (layers, residual):
        monkeypatch.setattr(module, "on_tensor_cores", wanted)


def clips(device="cpu", shape=(2, 3, 8, 32, 32)):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x.to(device).contiguous(memory_format=MEMORY_FORMAT)


def outcome(network, x):
    """Features, all gradients, all buffers, after a step in training and one look in evaluation."""
    features = network(x)
    features.square().sum().backward()
    gradients = [weight.grad for weight in network.parameters()]
    looked = network.eval()(x)
    found = [features.detach(), looked.detach(), *gradients, *network.buffers()]
    return [value.double().cpu() for value in found]


@pytest.mark.parametrize("name", BACKBONES)
def test_networks_are_the_same_with_their_channels_filled_up(name, as_on_tensor_cores, monkeypatch):
    torch.manual_seed(0)
    network = build_backbone(name).double().to(memory_format=MEMORY_FORMAT)
    filled = outcome(copy.deepcopy(network), clips())
    monkeypatch.undo()
    for got, expected in zip(filled, outcome(network, clips()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_networks_on_a_gpu_are_those_on_the_cpu(device, name):
    # Of small clips S3D-G's last maps are two values a channel, between which its batch norms make
    # of rounding, one after the other, anything at all.
    shape = (4, 3, 16, 64, 64) if name == "s3dg" else (2, 3, 8, 32, 32)
    torch.manual_seed(0)
    network = build_backbone(name).double().to(memory_format=MEMORY_FORMAT)
    expected = outcome(copy.deepcopy(network), clips(shape=shape))
    got = outcome(network.to(device), clips(device, shape))
    for value, exact in zip(got, expected, strict=True):
        # C3D's biases have no gradient before their batch norms: what is there is rounding, 1e-14.
        assert (value - exact).norm() <= 1e-8 * exact.norm() + 1e-9


def test_filled_channels_are_zeros_from_the_convolution_to_the_next():
    torch.manual_seed(0)
    conv, norm, after = Conv3d(4, 5, 1), BatchNorm3d(5), Conv3d(5, 6, 1)
    x = torch.randn(2, 4, 2, 3, 3)
    filled = conv(x, fills=True)
    assert filled.shape[1] == 8
    assert not filled[:, 5:].any()
    normed = norm(filled)
    assert not normed[:, 5:].any()
    assert norm.running_mean.shape == (5,)
    plain = nn.BatchNorm3d(5)
    torch.testing.assert_close(normed[:, :5], plain(nn.Conv3d.forward(conv, x)))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(after(normed), after(normed[:, :5]))


def test_a_norm_that_was_replaced_is_given_no_channels_of_zeros(as_on_tensor_cores):
    network = build_backbone("r21d", width=1.0)
    for part in network.modules():
        if isinstance(part, residual.Factored):
            part.norm = nn.BatchNorm3d(part.norm.num_features)  # as SyncBatchNorm does
    network = network.double().to(memory_format=MEMORY_FORMAT)
    assert network(clips()).isfinite().all()


def test_a_norm_may_be_replaced_by_none():
    """Of wide channels-last maps the convolution over time is a view of what it was made of."""
    layer = ConvNorm(conv3d(48, 48, (3, 1, 1)), 48).double()
    layer.norm = nn.Identity()
    x = clips(shape=(2, 48, 4, 3, 3)) - 0.5
    found = layer(x)
    found.sum().backward()
    expected = nn.Conv3d.forward(layer.conv, x).relu()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(expected.sum(), layer.conv.weight)
    torch.testing.assert_close(layer.conv.weight.grad, gradient)


@pytest.mark.parametrize("shape", [(3, 5, 7, 13, 11), (2, 16, 8, 28, 28), (1, 3, 1, 1, 4099)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_batch_norm_of_many_rows_on_a_cpu_is_that_of_float64(shape, kind):
    torch.manual_seed(0)
    x = (torch.randn(shape) + 0.5).relu().to(kind, memory_format=MEMORY_FORMAT)
    gradient = torch.randn(shape).to(kind, memory_format=MEMORY_FORMAT)
    norm = BatchNorm3d(shape[1])
    nn.init.uniform_(norm.weight)
    exact = nn.BatchNorm3d(shape[1]).double()
    exact.load_state_dict(norm.state_dict())
    results = []
    for each, maps in ((norm, x), (exact, x.double())):
        maps = maps.detach().requires_grad_()
        y = each(maps)
        y.backward(gradient.to(y.dtype))
        moments = each.running_mean, each.running_var
        results.append((moments, (each.weight.grad, each.bias.grad), (y, maps.grad)))
        assert y.is_contiguous(memory_format=MEMORY_FORMAT)
        assert each.num_batches_tracked == 1
    # torch adds up the parameters' gradients, as long as they are, in float32.
    bounds = 1e-6, 1e-5, {torch.float32: 2e-6, torch.bfloat16: 8e-3}[kind]
    for bound, ours, wanted in zip(bounds, *results, strict=True):
        for value, true in zip(ours, wanted, strict=True):
            assert (value - true).abs().max() <= bound * true.abs().max()
    norm.eval(), exact.eval()
    torch.testing.assert_close(norm(x).double(), exact(x.double()), atol=2e-2, rtol=0)


def test_batch_norm_of_many_rows_has_its_gradients_and_theirs(monkeypatch):
    monkeypatch.setattr(layers, "GROUP", 4)
    torch.manual_seed(0)
    norm = BatchNorm3d(3).double()
    x = torch.randn(2, 3, 1, 3, 3, dtype=torch.float64).to(memory_format=MEMORY_FORMAT)
    values = [each.detach().requires_grad_() for each in (x, norm.weight, norm.bias)]

    def normed(maps, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (maps,))

    assert normed(*values).grad_fn.name() == "_NormalisedBackward"
    torch.autograd.gradcheck(normed, values)
    torch.autograd.gradgradcheck(normed, values)
