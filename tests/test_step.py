"""One step of training in each of its ways: in parts, compiled, from a graph; and dropout."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pacecore.checkpoint import load_checkpoint
from pacecore.config import FinetuneOptions, TrainOptions, from_mapping
from pacecore.errors import PacecoreError
from pacecore.rules import OptionError
from pacecore.step import TrainingStep
from tests.ranks import run_ranks
from tests.tiny_runs import TINY, assert_close, assert_same, run, weights

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZES = (4, 6, 4, 6, 4)  # clips a step


class Net(nn.Module):
    """A convolution with batch norm, and two outputs as pre-training has them."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(7)
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(8, 4)

    def forward(self, clips):
        features = self.dropout(self.stem(clips).mean(dim=(2, 3, 4)))
        return self.head(features), features


class Task:
    """Classification, and a term that couples the clips of a batch."""

    def __init__(self, dropout: float = 0.0):
        self.model = Net(dropout).train()

    def loss(self, outputs, batch):
        logits, z = outputs
        loss = F.cross_entropy(logits, batch.labels) + 0.1 * (z @ z.T).logsumexp(1).mean()
        return loss, {"largest": logits.detach().max()}


def batch_of(count, number, device=CPU):
    generator = torch.Generator().manual_seed(100 * count + number)
    clips = torch.rand((count, 3, 4, 8, 8), generator=generator)
    return clips.to(device), SimpleNamespace(labels=(torch.arange(count) % 4).to(device))


def train(device=CPU, sizes=SIZES, dropout=0.0, captured=(), **changes):
    """Losses of a few steps and the state after them."""
    options = from_mapping(TrainOptions, {**TINY, "lr": 0.1, **changes})
    task = Task(dropout)
    step = TrainingStep(task, options, device)
    step.capture([(count, 3, 4, 8, 8) for count in captured], torch.float32)
    losses = []
    for number, count in enumerate(sizes):
        clips, batch = batch_of(count, number, device)
        clips = clips.contiguous(memory_format=step.layout)
        loss, _ = step(clips, batch, number, rate=0.1 / (1 + number))
        losses.append(float(loss))
    return losses, {name: value.cpu() for name, value in task.model.state_dict().items()}


def assert_equal_runs(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert_close(one[1], other[1])


def test_losses_fall_and_the_rate_is_the_steps_own():
    losses, _ = train(sizes=(4,) * 8)
    assert losses[-1] < losses[0]
    assert train(sizes=(4,) * 8)[0] == losses


def test_the_optimiser_is_that_of_torch(monkeypatch):
    one = train(weight_decay=0.01, nesterov=True)
    monkeypatch.setattr("pacecore.step._SGD", torch.optim.SGD)
    other = train(weight_decay=0.01, nesterov=True)
    assert one[0] == other[0]
    assert_same(one[1], other[1])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_is_that_of_sgd_written_out(nesterov):
    values = {"lr": 7.0, "momentum": 0.5, "weight_decay": 0.1, "nesterov": nesterov}
    task, plain, kept = Task(), Task(), {}
    step = TrainingStep(task, from_mapping(TrainOptions, {**TINY, **values}), CPU)
    for number, rate in enumerate((0.1, 0.03, 0.2)):  # each step's own, not lr
        clips, batch = batch_of(4, number)
        step(clips, batch, number, rate)
        plain.model.zero_grad()
        plain.loss(plain.model(clips), batch)[0].backward()
        with torch.no_grad():
            for name, weight in plain.model.named_parameters():
                slope = weight.grad + 0.1 * weight
                kept[name] = 0.5 * kept[name] + slope if name in kept else slope
                weight -= rate * (slope + 0.5 * kept[name] if nesterov else kept[name])
    assert_close(task.model.state_dict(), plain.model.state_dict())


def test_bf16_is_that_of_the_option():
    plain, low = train()[0], train(amp="bf16")[0]
    assert low != plain
    assert low == pytest.approx(plain, rel=0.05)


def test_training_does_not_load_what_compiles_unless_it_is_asked_to():
    script = (
        "import sys; from tests.test_step import train; train(sizes=(4, 4));"
        "assert 'torch' in sys.modules; sys.exit('torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0


def test_nesterov_without_momentum_is_plain_descent():
    assert train(momentum=0.0, nesterov=True)[0] == train(momentum=0.0)[0]


def test_dropout_is_drawn_by_seed_step_and_part():
    whole = train(dropout=0.5)
    assert train(dropout=0.5)[0] == whole[0]
    assert train(dropout=0.5, seed=1)[0][0] != whole[0][0]
    assert train(dropout=0.0)[0][0] != whole[0][0]


def test_each_rank_drops_its_own(monkeypatch):
    first = train(sizes=(4,), dropout=0.5)[0]
    monkeypatch.setattr("pacecore.step.rank", lambda: 1)
    assert train(sizes=(4,), dropout=0.5)[0] != first


def test_both_passes_over_a_part_drop_the_same():
    """The loss's gradient belongs to the outputs that the second pass gives again."""
    options = from_mapping(TrainOptions, {**TINY, "accumulate": 2})
    task = Task(dropout=0.5)
    seen = []
    task.model.dropout.register_forward_hook(lambda _, __, out: seen.append(out.detach() == 0))
    clips, batch = batch_of(4, 0)
    TrainingStep(task, options, CPU)(clips, batch, 0, rate=0.1)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_averages_move_once_for_each_part():
    """In one of the two passes over it."""
    task = Task()
    step = TrainingStep(task, from_mapping(TrainOptions, {**TINY, "accumulate": 2}), CPU)
    clips, batch = batch_of(4, 0)
    step(clips, batch, 0, rate=0.1)
    assert task.model.stem[1].num_batches_tracked == 2


def test_a_part_more_than_another_rank_has_is_not_taken(monkeypatch):
    """Synchronised batch norm would wait for the others for ever."""
    monkeypatch.setattr("pacecore.step.fewest", lambda count: 2)
    options = from_mapping(TrainOptions, {**TINY, "accumulate": 3})
    task = Task()
    seen = []
    task.model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    clips, batch = batch_of(4, 0)
    TrainingStep(task, options, CPU)(clips, batch, 0, rate=0.1)
    assert seen == [2, 2, 2, 2]  # two parts, twice


@pytest.mark.parametrize("values", [{"batch": 1}, {"batch": 3, "accumulate": 2}])
@pytest.mark.parametrize("compiles", [False, True])
def test_one_clip_of_one_place_is_told(tmp_path, monkeypatch, values, compiles):
    """Batch norm has nothing to take a variance of."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    got = f"batch {values['batch']}, accumulate {values.get('accumulate', 1)}, views 1, crop 16"
    with pytest.raises(PacecoreError, match=f"a part of the batch is one clip.*; got {got}$"):
        run(tmp_path, views=1, contrast="none", compile=compiles, **values)


def test_one_clip_of_one_place_is_told_of_fine_tuning_which_has_no_views():
    step = TrainingStep(Task(), from_mapping(FinetuneOptions, {"crop": 16}), CPU)
    with pytest.raises(PacecoreError, match=r"; got batch 30, accumulate 1, crop 16$"):
        step(torch.zeros(1, 3, 1, 1, 1), None, 0, rate=0.1)


def test_a_compiled_network_trains_as_it_is():
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler for the CPU")
    assert_equal_runs(train(sizes=(4,) * 3), train(sizes=(4,) * 3, compile=True))


def test_a_compiled_network_is_made_for_each_size_of_a_batch(monkeypatch):
    """The last of an epoch is shorter; for any size at once, batch norms here lack a form."""
    inputs = []

    def backend(graph, examples):
        inputs.extend(examples)
        return graph

    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiled)
    assert_equal_runs(train(sizes=(4, 3, 4)), train(sizes=(4, 3, 4), compile=True))
    assert {len(each) for each in inputs if each.shape[1:] == (3, 4, 8, 8)} == {4, 3}


def of_rank(rank_number, **changes):
    # Forward and backward as graphs, parted where gradients travel, but no C++ made of them.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    return train(sizes=((4, 6, 4), (6, 4, 5))[rank_number], **changes)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_train_a_compiled_network_as_it_is(accumulate):
    plain, made = (
        run_ranks(functools.partial(of_rank, accumulate=accumulate, compile=compiled), 2)
        for compiled in (False, True)
    )
    for one, other in zip(plain, made, strict=True):
        assert_equal_runs(one, other)
    learnt = dict(Net().named_parameters())
    assert_same(*({name: state[name] for name in learnt} for _, state in made))


def test_a_compiler_that_fails_is_told(monkeypatch):
    def failing(*_):
        raise ValueError("no compiler here")

    compiled = functools.partial(torch.compile, backend=failing)
    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(PacecoreError, match=r"compile: torch cannot compile here: .*no compiler"):
        train(sizes=(4,), compile=True)


def test_a_compiled_run_resumes_and_its_checkpoint_has_plain_names(tmp_path, monkeypatch):
    # Traced, but without the C++ that is made for a CPU, which takes a minute.
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    changes = {"held_out": "none", "batch": 7, "epochs": 3}
    run(tmp_path / "whole", compile=True, **changes)
    run(tmp_path / "parts", compile=True, max_steps=2, **changes)
    run(tmp_path / "parts", compile=True, resume=True, **changes)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    run(tmp_path / "eager", **changes)
    assert weights(tmp_path / "whole").keys() == weights(tmp_path / "eager").keys()
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "eager"))
    assert load_checkpoint(tmp_path / "whole" / "last.pt")["options"]["compile"]


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("graph", "accumulate", 2),
        ("graph", "checkpointing", True),
        ("graph", "compile", True),
        ("compile", "checkpointing", True),
    ],
)
def test_what_does_not_work_together_is_refused(option, name, value):
    told = f"{option} does not work with {name}, got {name} = {value}"
    with pytest.raises(OptionError, match=told):
        from_mapping(TrainOptions, {**TINY, option: True, name: value})


def test_a_graph_needs_cuda():
    with pytest.raises(PacecoreError, match="graph needs a CUDA device, got cpu"):
        train(graph=True)


def pretend_graphs(monkeypatch):
    """torch.cuda.make_graphed_callables as far as the CPU shows it: trial runs, then a `forward`
    that takes one shape alone. Gives the shapes that were run from a graph.
    """
    used = []

    def make(module, arguments, pool):
        for _ in range(3):
            outputs = module(*arguments)
            torch.autograd.grad([o.sum() for o in outputs], list(module.parameters()))
        plain, shape = module.forward, arguments[0].shape

        def forward(clips):
            assert clips.shape == shape
            used.append(len(clips))
            return plain(clips)

        module.forward = forward
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr("pacecore.step.check_device", lambda *_: None)
    return used


def test_graphs_serve_their_shapes_and_leave_no_trace_of_their_recording(monkeypatch):
    used = pretend_graphs(monkeypatch)
    plain = train()
    graphed = train(graph=True, captured=(4,))
    assert used == [4, 4, 4]
    assert graphed[0] == plain[0]
    assert_same(graphed[1], plain[1])
    used.clear()
    assert train(graph=True, captured=(4, 6))[0] == plain[0]
    assert used == list(SIZES)


def test_a_run_records_graphs_for_every_size_of_its_batches(tmp_path, monkeypatch):
    used = pretend_graphs(monkeypatch)
    run(tmp_path / "graphed", graph=True, epochs=1)  # measuring at its end uses the plain network
    run(tmp_path / "plain", epochs=1)
    assert sorted(used) == [4, 4, 6]  # 7 videos in three batches, two views
    assert_same(weights(tmp_path / "graphed"), weights(tmp_path / "plain"))


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_graphs_on_a_gpu_train_as_the_network_does(device, amp):
    sizes = (4, 6, 4, 6, 5, 4)  # 5 is not recorded
    plain = train(device, sizes, amp=amp)
    graphed = train(device, sizes, amp=amp, graph=True, captured=(4, 6))
    tolerance = 1e-5 if amp == "none" else 2e-2
    assert graphed[0] == pytest.approx(plain[0], rel=tolerance)
    for name, value in plain[1].items():
        torch.testing.assert_close(graphed[1][name], value, rtol=tolerance, atol=tolerance)
    again = train(device, sizes, amp=amp, graph=True, captured=(4, 6), dropout=0.5)
    assert again[0] == pytest.approx(
        train(device, sizes, amp=amp, graph=True, captured=(4, 6), dropout=0.5)[0], rel=tolerance
    )
