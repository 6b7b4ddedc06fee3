"""The check that bf16 convolutions can be trusted: of wrong, slow and this machine's own ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pacecore.backbones import bf16, build_backbone
from pacecore.backbones.layers import Conv3d


def test_bf16_check_on_this_machine():
    """Over two frames this processor's own may be wrong: that is what the check is for."""
    check = bf16.check_bf16_conv3d("cpu")
    assert all("over two frames" in case for case in check.wrong)
    assert len(check.errors) == 12
    assert all(error > 0 for error in check.errors.values() if error == error)
    said = "is wrong" if check.wrong else "is slow" if check.slow else "agrees with fp32"
    assert said in check.report()


def test_bf16_check_finds_wrong_and_slow_convolutions():
    def drops_a_tap(x: Tensor, w: Tensor, **how) -> Tensor:
        if x.dtype == torch.bfloat16 and w.shape[2:] == (3, 1, 1):
            w = torch.cat([w[:, :, :2], torch.zeros_like(w[:, :, 2:])], dim=2)
        return F.conv3d(x, w, **how)

    check = bf16.check_bf16_conv3d("cpu", drops_a_tap)
    found = ["3x1x1 channels-last", "3x1x1 plain"]
    assert set(found) <= set(check.wrong)
    assert min(check.errors[case] for case in found) > 0.3
    assert not check.usable
    assert "is wrong: " in check.report()

    slow = bf16.Bf16Check("cuda", {"3x3x3 plain": 0.001}, bf16_seconds=4.0, fp32_seconds=1.0)
    assert slow.slow
    assert not slow.usable
    nan = bf16.Bf16Check("cuda", {"3x3x3 plain": float("nan")}, 1.0, 1.0)
    assert nan.wrong == ["3x3x3 plain"]
    good = bf16.Bf16Check("cuda", {"3x3x3 plain": 0.004}, 0.5, 1.0)
    assert good.usable


@pytest.mark.parametrize(
    ("busy", "errors", "slow", "rounds"),
    [(0, {}, False, 1), (2, {}, False, 3), (9, {}, True, 5), (9, {"3x3x3": 1.0}, True, 1)],
    ids=["quiet", "busy for two rounds", "always", "wrong, so never mind"],
)
def test_bf16_is_slow_only_where_it_stays_so(monkeypatch, busy, errors, slow, rounds):
    """Of two steps one is held up in bf16 while the machine is busy; fp32 is held up later."""
    timed = []

    def seconds(step: str, _) -> float:
        timed.append(step)
        held_up = step == "bf16" and timed.count(step) <= busy
        return 5.0 if held_up or (step == "fp32" and timed.count(step) > 1) else 1.0

    monkeypatch.setattr(bf16, "_seconds", seconds)
    steps = {torch.bfloat16: ["bf16", "other"], torch.float32: ["fp32", "other"]}
    check = bf16._timed("cpu", errors, steps)
    assert (check.slow, timed.count("bf16"), check.fp32_seconds) == (slow, rounds, 2.0)
    assert check.bf16_seconds == (6.0 if slow else 2.0)


def test_bf16_check_looks_at_the_last_stage():
    """Its two frames: the weight gradient alone is off, as with torch 2.13 on some processors."""

    class OffOverTwoFrames(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, how):
            ctx.save_for_backward(x, w)
            ctx.how = how
            return F.conv3d(x, w, **how)

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                inputs = [each.detach().float().requires_grad_() for each in ctx.saved_tensors]
                outputs = F.conv3d(*inputs, **ctx.how)
            x_grad, w_grad = torch.autograd.grad(outputs, inputs, grad.float())
            off = torch.inf if grad.dtype == torch.bfloat16 and inputs[0].shape[2] == 2 else 1.0
            return x_grad.to(grad.dtype), (w_grad * off).to(grad.dtype), None

    check = bf16.check_bf16_conv3d("cpu", lambda x, w, **how: OffOverTwoFrames.apply(x, w, how))
    kinds = ("3x3x3 over two frames", "3x1x1 over two frames")
    layouts = ("channels-last", "plain")
    assert check.wrong == [f"{kind} {layout}" for kind in kinds for layout in layouts]


@pytest.mark.parametrize("gradients", [True, False])
def test_bf16_is_tried_on_each_kind_of_layer_of_a_network(monkeypatch, gradients):
    run = Conv3d.forward

    def off_in_bf16(layer, x, *given, **named):
        out = run(layer, x, *given, **named)
        return out + layer.in_channels * (x.dtype == torch.bfloat16 and layer.kernel_size[0] == 3)

    with torch.device("meta"):
        network = build_backbone("r21d", width=0.125)
    errors = bf16.errors_of_layers(network, (2, 3, 4, 16, 16), gradients)
    convolutions = [layer for layer in network.modules() if isinstance(layer, Conv3d)]
    assert len(errors) == 21 < len(convolutions)  # some are alike
    assert "conv1.conv.spatial of 2 x 3 x 4 x 16 x 16" in errors
    assert all(error == error for error in errors.values())
    monkeypatch.setattr(Conv3d, "forward", off_in_bf16)
    with torch.device("meta"):
        network = build_backbone("r21d", width=0.125)
    off = bf16.errors_of_layers(network, (2, 3, 4, 16, 16), gradients)
    over_time = {name for name in errors if "conv.temporal" in name and "shortcut" not in name}
    assert {name for name in off if off[name] > 0.3} >= over_time
    others = off.keys() - over_time
    assert {name: off[name] for name in others} == {name: errors[name] for name in others}


def test_bf16_gradients_of_a_layer_are_looked_at_where_it_is_trained(monkeypatch):
    class OffBack(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad if grad.dtype == torch.bfloat16 else grad

    run = Conv3d.forward
    monkeypatch.setattr(
        Conv3d, "forward", lambda layer, x, **named: OffBack.apply(run(layer, x, **named))
    )
    errors = {}
    for gradients in (True, False):
        with torch.device("meta"):
            network = build_backbone("r3d", width=0.125)
        errors[gradients] = bf16.errors_of_layers(network, (2, 3, 4, 16, 16), gradients)
    assert min(errors[True].values()) > 0.9
    assert max(errors[False].values()) < 0.01
