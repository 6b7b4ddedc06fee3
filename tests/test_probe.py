"""The linear probe: features standardised in training, and a head like any other afterwards."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pacecore.checkpoint import load_checkpoint, save_checkpoint
from pacecore.config import FinetuneOptions, TestOptions
from pacecore.convert import convert, load_weights
from pacecore.distributed import share_buffers, wrap
from pacecore.errors import PacecoreError
from pacecore.finetune import action_model, finetune
from pacecore.probe import Probe, folded, is_probe
from pacecore.recognition import _Scores, run_test
from pacecore.trained import load_trained

from .ranks import run_ranks
from .test_finetune import tiny_options
from .tiny import CLASSES, finetuned, pretrained, tiny_set

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("probe") / "set")


@pytest.fixture(scope="module")
def probed(videos, tmp_path_factory):
    """The folder of a probe's run, of six steps."""
    folder = tmp_path_factory.mktemp("probed")
    finetune(probing(videos, folder / "run", pretrained(folder / "pre.pt")))
    return folder / "run"


def probing(videos, out, checkpoint, **changes) -> FinetuneOptions:
    return tiny_options(
        videos, out, checkpoint=str(checkpoint), freeze="backbone", dropout=0.2, **changes
    )


def features_of(classes: torch.Tensor, deviation: float) -> torch.Tensor:
    """(B, 16): about 0.5 in each dimension, the class a deviation or so to the side."""
    sides = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    return 0.5 + deviation * (sides[classes] + torch.randn(len(classes), 16))


def learnt(head: nn.Module, deviation: float, steps: int = 60) -> float:
    """The share of right answers on other features, after training as `finetune` does."""
    torch.manual_seed(0)
    descent = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        classes = torch.randint(3, (16,))
        descent.zero_grad()
        F.cross_entropy(head(features_of(classes, deviation)), classes).backward()
        descent.step()
    classes = torch.randint(3, (300,))
    right = head.eval()(features_of(classes, deviation)).argmax(dim=1) == classes
    return float(right.float().mean())


@pytest.mark.parametrize("deviation", [3e-3, 0.3, 100.0])
def test_a_probe_learns_whatever_the_scale_of_the_features(deviation):
    assert learnt(Probe(16, 3), deviation) > 0.9


def test_features_as_they_are_of_small_deviation_teach_nothing():
    """What the probe is there for; the same features that it learns."""
    torch.manual_seed(0)
    assert learnt(nn.Linear(16, 3), 3e-3) < 0.6


def test_averages_are_those_of_all_batches_which_count_alike():
    probe = Probe(16, 3).train()
    batches = [features_of(torch.randint(3, (count,)), 3e-3) for count in (6, 5, 5, 6)]
    for number, batch in enumerate(batches, 1):
        probe(batch)
        means = torch.stack([each.double().mean(0) for each in batches[:number]])
        spreads = torch.stack([each.double().var(0) for each in batches[:number]])
        kept = probe.norm.running_mean.double(), probe.norm.running_var.double()
        torch.testing.assert_close(kept[0], means.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(kept[1], spreads.mean(0), rtol=1e-4, atol=0)
        assert probe.norm.num_batches_tracked == number


def test_in_training_a_batch_is_standardised_by_itself():
    batch = features_of(torch.randint(3, (8,)), 1.0)
    probe = Probe(16, 3).train()
    expected = (batch - batch.mean(0)) / (batch.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(probe.norm(batch), expected)


# What is folded is rounded to float32, and means are far above small deviations.
@pytest.mark.parametrize(("deviation", "tolerance"), [(3e-3, 2e-5), (0.3, 1e-6), (100.0, 1e-6)])
def test_the_folded_head_gives_what_the_probe_does(deviation, tolerance):
    torch.manual_seed(0)
    probe = Probe(16, 3, dropout=0.5).train()
    for _ in range(5):
        probe(features_of(torch.randint(3, (8,)), deviation))
    state = {f"head.{name}": value for name, value in probe.state_dict().items()}
    kept = {"backbone.a": torch.ones(2)}
    plain = folded(state | kept)
    assert set(plain) == {"head.weight", "head.bias", "backbone.a"}
    assert plain["head.weight"].dtype == plain["head.bias"].dtype == torch.float32
    features = features_of(torch.randint(3, (20,)), deviation).double()
    found = F.linear(features, plain["head.weight"].double(), plain["head.bias"].double())
    probe = probe.double().eval()
    expected = probe.linear(probe.norm(features))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert folded(plain) == plain
    assert not is_probe(plain)


def test_bf16_features_are_standardised_in_fp32():
    probe = Probe(16, 3).train()
    seen = []
    probe.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    batch = features_of(torch.randint(3, (8,)), 0.3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        probe(batch)
    (out,) = seen
    assert out.dtype == torch.float32
    double = batch.double()
    expected = (double - double.mean(0)) / (double.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_dropout_comes_after_the_standardising():
    probe = Probe(16, 3, dropout=0.5).train()
    seen = []
    probe.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    probe(features_of(torch.randint(3, (64,)), 0.3))
    dropped = (seen[0] == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_nothing_asks_a_tensor_for_its_value():
    """Which no CUDA graph can record, and where a compiled network would be cut in two."""
    compiled = torch.compile(Probe(16, 3).train(), backend="eager", fullgraph=True)
    plain = Probe(16, 3).train()
    batches = [features_of(torch.randint(3, (8,)), 3e-3) for _ in range(3)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in batches:
            compiled(batch)
            plain(batch)
    torch.testing.assert_close(compiled.norm.running_var, plain.norm.running_var)
    assert compiled.norm.num_batches_tracked == 3


def of_a_rank(number: int) -> tuple:
    """What a rank standardises by, after steps on its own share of the clips."""
    torch.manual_seed(0)
    probe = Probe(16, 3).train()
    network = wrap(probe, torch.device("cpu"))
    torch.manual_seed(10 + number)
    for _ in range(3):
        network(features_of(torch.randint(3, (8 + number,)), 0.3)).sum().backward()
    share_buffers(probe)
    return probe.norm.running_mean, probe.norm.running_var, probe.norm.num_batches_tracked


def test_ranks_standardise_by_the_same():
    one, other = run_ranks(of_a_rank, 2)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
    assert one[2] == 3
    assert 0.4 < one[0].mean() < 0.6


def test_a_checkpoint_is_read_as_the_network_that_was_trained(videos, probed):
    trained = load_trained(probed / "last.pt")
    content = load_checkpoint(probed / "last.pt")
    model = action_model(trained.options, len(CLASSES), None)
    model.load_state_dict(content["model"])
    clips = torch.rand(4, 3, 8, 32, 32)
    with torch.no_grad():
        (expected,) = model.eval()(clips)
        found = trained.head(trained.backbone.eval()(clips))
    assert isinstance(trained.head, nn.Linear)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (
        run_test(trained, TestOptions(workers=0, device="cpu", clips=2).resolved())["videos"] == 6
    )


def test_a_folded_head_computes_in_fp32_whatever_the_network_does(probed):
    trained = load_trained(probed / "last.pt")
    model, clips = _Scores(trained).eval(), torch.rand(2, 3, 8, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model(clips)
        features = trained.backbone(clips).float()
    assert torch.equal(found, trained.head(features))


def test_converted_weights_have_a_head_like_any_other(probed, tmp_path):
    head = load_trained(probed / "last.pt").head
    convert(probed / "last.pt", tmp_path / "plain.pt")
    for path in (probed / "last.pt", tmp_path / "plain.pt"):
        weights = load_weights(path)
        assert {name for name in weights if name.startswith("head")} == {"head.weight", "head.bias"}
        assert torch.equal(weights["head.weight"], head.weight)
        assert torch.equal(weights["head.bias"], head.bias)


def test_a_resumed_probe_ends_with_the_same_weights(videos, probed, tmp_path):
    options = probing(videos, tmp_path / "halves", probed.parent / "pre.pt", max_steps=3)
    finetune(options)
    finetune(replace(options, max_steps=0), resume=True)
    one, other = (load_checkpoint(path / "last.pt") for path in (probed, tmp_path / "halves"))
    assert one["totals"]["step"] == other["totals"]["step"] == 6
    assert int(one["model"]["head.norm.num_batches_tracked"]) == 6
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


def test_parts_of_a_batch_are_counted_once(videos, probed, tmp_path):
    """The first pass over them leaves no trace in the averages."""
    options = probing(videos, tmp_path / "run", probed.parent / "pre.pt", accumulate=2, max_steps=2)
    finetune(options)
    model = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    assert int(model["head.norm.num_batches_tracked"]) == 4


def old_probe(out):
    """A run's folder with a probe of features that were not standardised, as there were once."""
    return finetuned(out / "last.pt", freeze="backbone", out=str(out))


def test_a_probe_of_features_as_they_are_is_read_as_before(videos, tmp_path):
    path = old_probe(tmp_path / "run")
    trained = load_trained(path)
    assert torch.equal(trained.head.weight, load_checkpoint(path)["model"]["head.weight"])
    options = TestOptions(data=str(videos), workers=0, device="cpu", clips=2)
    assert run_test(trained, options.resolved())["videos"] == 6


def test_a_probe_of_features_as_they_are_does_not_go_on(videos, probed, tmp_path):
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    content = load_checkpoint(probed / "last.pt")
    options = probing(videos, path.parent, probed.parent / "pre.pt")
    save_checkpoint(path, content | {"model": folded(content["model"])})
    with pytest.raises(PacecoreError, match=r"last\.pt: a checkpoint of another model: "):
        finetune(options, resume=True)


@pytest.mark.parametrize("values", [{"batch": 1}, {"batch": 2, "accumulate": 2}])
@pytest.mark.parametrize("compiles", [False, True])
def test_one_clip_has_no_deviation(videos, probed, tmp_path, monkeypatch, values, compiles):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    values = values | {"compile": compiles, "dropout": 0.0}
    options = replace(probing(videos, tmp_path / "run", probed.parent / "pre.pt"), **values)
    words = (
        "is one clip, and a linear probe standardises features over clips; take a larger batch, "
    )
    with pytest.raises(PacecoreError, match=words):
        finetune(options)
