import math

import pytest
import torch
from torch.nn import functional

from pacecore.backbones import build_backbone
from pacecore.config import TrainOptions
from pacecore.losses import pretraining_loss
from pacecore.reference.info_nce import info_nce as reference


def batch(clips=12, seed=0):
    """Logits, embeddings, pace labels and video numbers of two views of each video."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(clips, 4, generator=generator)
    z = 0.4 * torch.randn(clips, 16, generator=generator)
    labels = torch.randint(4, (clips,), generator=generator)
    return logits, z, labels, torch.arange(clips) // 2 + 100


@pytest.mark.parametrize("contrast", ["context", "pace"])
def test_embeddings_of_an_untrained_network_do_not_overflow(contrast):
    """Their squares are about 160, and in float32 exp overflows from 88.7 on."""
    torch.manual_seed(0)
    with torch.no_grad():
        z = build_backbone("r21d").train()(255 * torch.rand(4, 3, 16, 112, 112))
    assert (z @ z.T).min() > 100
    assert not torch.isfinite((z @ z.T).exp()).any()
    z.requires_grad_()
    groups = torch.tensor([0, 0, 1, 1])
    loss, _ = pretraining_loss(
        torch.zeros(4, 4), z, groups, groups, TrainOptions(contrast=contrast)
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("contrast", ["none", "context", "pace"])
@pytest.mark.parametrize(("z_norm", "temperature"), [(False, 1.0), (True, 0.1)])
def test_sum_of_both_terms(contrast, z_norm, temperature):
    logits, z, labels, videos = batch()
    how = {"contrast": contrast, "z_norm": z_norm, "temperature": temperature}
    options = TrainOptions(lambda_cls=2.0, lambda_ctr=0.3, **how)
    loss, metrics = pretraining_loss(logits, z, labels, videos, options)
    expected = 2.0 * functional.cross_entropy(logits, labels)
    if contrast != "none":
        groups = videos if contrast == "context" else labels
        figures = reference(z, groups, normalize=z_norm, temperature=temperature)
        expected = expected + 0.3 * figures[0]
        assert metrics["loss_ctr"].item() == pytest.approx(figures[0].item(), rel=1e-5)
        assert metrics["positive_similarity"].item() == pytest.approx(figures[1].item(), rel=1e-4)
    else:
        assert set(metrics) == {"loss_cls", "accuracy", "z_spread"}
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("denominator", ["anchor", "batch"])
def test_the_denominator_is_that_of_the_option(denominator):
    logits, z, labels, videos = batch()
    options = TrainOptions(lambda_cls=0.0, lambda_ctr=1.0, denominator=denominator)
    loss, _ = pretraining_loss(logits, z, labels, videos, options)
    expected = reference(z, videos, denominator=denominator)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("z", "spread"),
    [
        ([[3.0, 0.0], [1.0, 0.0]], 0.2**0.5),  # 1 from the mean, of lengths whose squares average 5
        ([[2.0, 1.0], [2.0, 1.0]], 0.0),
        ([[1.0, 0.0], [-1.0, 0.0]], 1.0),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_spread_of_embeddings_by_hand(z, spread):
    labels = torch.tensor([0, 1])
    options = TrainOptions(contrast="none")
    _, metrics = pretraining_loss(torch.zeros(2, 4), torch.tensor(z), labels, labels, options)
    assert metrics["z_spread"].item() == pytest.approx(spread, abs=1e-7)


def test_untrained_network_by_hand():
    """Equal logits give log(classes), equal embeddings log(clips - 1)."""
    _, _, labels, videos = batch()
    loss, _ = pretraining_loss(
        torch.zeros(12, 4), torch.ones(12, 8), labels, videos, TrainOptions()
    )
    assert loss.item() == pytest.approx(math.log(4) + 0.1 * math.log(11), rel=1e-6)


def test_gradient_reaches_both_heads_and_metrics_none():
    logits, z, labels, videos = batch()
    loss, metrics = pretraining_loss(
        logits.requires_grad_(), z.requires_grad_(), labels, videos, TrainOptions()
    )
    loss.backward()
    assert logits.grad.abs().sum() > 0
    assert z.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in metrics.values())


def test_contrast_off_leaves_embeddings_alone():
    logits, z, labels, videos = batch()
    z[0, 0] = math.nan
    loss, _ = pretraining_loss(logits, z, labels, videos, TrainOptions(contrast="none"))
    assert math.isfinite(loss)
