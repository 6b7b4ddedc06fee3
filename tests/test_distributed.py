import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pacecore import distributed
from pacecore.config import FinetuneOptions, TrainOptions
from pacecore.distributed import (
    fewest,
    gather_rows,
    rank,
    share_of,
    usual_defaults,
    world_size,
    wrap,
)
from pacecore.errors import PacecoreError
from pacecore.finetune import _ActionTask
from pacecore.losses import pretraining_loss
from tests.ranks import run_ranks
from tests.test_losses import batch


def shares(counts):
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]


def loss_of_share(rank_number, counts, options):
    """This rank's loss, the gradients of its own rows as the mean over ranks makes them, and its
    figures for the log.
    """
    share = shares(counts)[rank_number]
    logits, z, labels, videos = (tensor[share] for tensor in batch(sum(counts)))
    logits, z = logits.clone().requires_grad_(), z.clone().requires_grad_()
    loss, metrics = pretraining_loss(logits, z, labels, videos, options)
    loss.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (logits, z)]
    return loss.detach(), *(grad / len(counts) for grad in grads), metrics


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.head, self.projection = nn.Linear(16, 4), nn.Linear(16, 8)

    def forward(self, features):
        return self.head(features), self.projection(features)


def weight_gradients(model, counts, rank_number):
    share = shares(counts)[rank_number]
    _, features, labels, videos = (tensor[share] for tensor in batch(sum(counts)))
    loss, _ = pretraining_loss(*model(features), labels, videos, TrainOptions(lambda_ctr=1.0))
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def actions_of_share(rank_number, counts):
    """Loss, gradients and accuracy of this rank's clips of actions, as loss_of_share has them."""
    logits, _, labels, _ = batch(sum(counts))
    mine = shares(counts)[rank_number]
    logits, videos = logits[mine].clone().requires_grad_(), torch.arange(len(labels))[mine]
    device = torch.device("cpu")
    task = _ActionTask(FinetuneOptions(), None, labels, None, tuple("abcd"), {}, device)
    loss, metrics = task.loss((logits,), SimpleNamespace(videos=videos))
    loss.backward()
    return loss.detach(), logits.grad / len(counts), metrics["accuracy"]


def gathered(rank_number, dtype):
    rows = torch.full((rank_number + 1, 2), float(rank_number), dtype=dtype, requires_grad=True)
    result = gather_rows(rows, torch.arange(rank_number + 1) + 10 * rank_number)
    (result.rows.sum() * (rank_number + 1)).backward()
    return result.rows.detach(), result.groups, result.start, rows.grad


# Clips of each rank, and options of the loss.
CASES = [
    ((6, 6), TrainOptions()),
    ((3, 8), TrainOptions(contrast="pace", denominator="batch", temperature=0.5)),
    ((2, 5), TrainOptions(contrast="none")),
    ((0, 4), TrainOptions(contrast="pace")),
    ((5, 1, 6), TrainOptions(contrast="pace", z_norm=True, temperature=0.1)),
    ((4, 0, 7), TrainOptions(contrast="context")),
    ((1, 6, 3), TrainOptions(denominator="batch")),
]
WEIGHT_COUNTS = {2: (3, 9), 3: (5, 8, 3)}


def everything(rank_number, ranks):
    """Every case of a number of ranks in one start of the processes, which takes seconds."""
    assert (rank(), world_size()) == (rank_number, ranks)
    model = wrap(TwoHeads(), torch.device("cpu"))
    return {
        "losses": [
            loss_of_share(rank_number, *case) if len(case[0]) == ranks else None for case in CASES
        ],
        "weights": weight_gradients(model, WEIGHT_COUNTS[ranks], rank_number),
        "weights again": weight_gradients(model, WEIGHT_COUNTS[ranks], rank_number),
        "actions": actions_of_share(rank_number, WEIGHT_COUNTS[ranks]),
        "share": share_of(3 + rank_number),
        "fewest": fewest(5 - rank_number),
        "gathered": [gathered(rank_number, kind) for kind in (torch.float32, torch.bfloat16)],
    }


@functools.cache
def results(ranks):
    return run_ranks(everything, ranks, ranks)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_ranks_together_equal_one_process(case):
    counts, options = CASES[case]
    logits, z, labels, videos = batch(sum(counts))
    logits.requires_grad_(), z.requires_grad_()
    whole, metrics = pretraining_loss(logits, z, labels, videos, options)
    whole.backward()
    parts = list(zip(*(result["losses"][case] for result in results(len(counts))), strict=True))
    losses, logits_grads, z_grads, figures = parts
    torch.testing.assert_close(torch.stack(losses).mean(), whole.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat(logits_grads), logits.grad, rtol=1e-5, atol=1e-8)
    if options.contrast == "none":
        assert not torch.cat(z_grads).any()
    else:
        torch.testing.assert_close(torch.cat(z_grads), z.grad, rtol=1e-5, atol=1e-7)
    for name, expected in metrics.items():
        mean = torch.stack([each[name] for each in figures]).float().mean()
        torch.testing.assert_close(mean, expected.float(), rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("ranks", [2, 3])
def test_averaged_weight_gradients_equal_one_process(ranks):
    expected = weight_gradients(TwoHeads(), (sum(WEIGHT_COUNTS[ranks]),), 0)
    for result in results(ranks):
        torch.testing.assert_close(result["weights"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ranks", [2, 3])
def test_of_actions_too_ranks_of_uneven_shares_equal_one_process(ranks):
    parts = [result["actions"] for result in results(ranks)]
    losses, gradients, accuracies = zip(*parts, strict=True)
    loss, gradient, accuracy = actions_of_share(0, (sum(WEIGHT_COUNTS[ranks]),))
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    torch.testing.assert_close(torch.cat(gradients), gradient)
    torch.testing.assert_close(torch.stack(accuracies).mean(), accuracy)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_gradients_of_a_runs_first_step_are_the_bits_of_any_other(ranks):
    """Else a resumed run would end with other weights."""
    for result in results(ranks):
        for one, other in zip(result["weights"], result["weights again"], strict=True):
            assert torch.equal(one, other)


def test_a_share_weighs_a_rank_by_its_clips():
    shares = [result["share"] for result in results(2)]  # 3 clips and 4, of 3.5 on the mean
    assert shares == pytest.approx([3 / 3.5, 4 / 3.5])
    assert share_of(3) == 1


def test_the_fewest_clips_of_a_rank_are_known_to_all():
    assert [result["fewest"] for result in results(3)] == [3, 3, 3]
    assert fewest(4) == 4


@pytest.mark.parametrize("kind", [0, 1])
def test_gather_of_uneven_shares(kind):
    for number, result in enumerate(results(3)):
        rows, groups, start, grad = result["gathered"][kind]
        assert rows[:, 0].tolist() == [0, 1, 1, 2, 2, 2]
        assert groups.tolist() == [0, 10, 11, 20, 21, 22]
        assert start == (0, 1, 3)[number]
        assert grad.dtype == rows.dtype
        assert grad.tolist() == [[6.0, 6.0]] * (number + 1)


def test_the_default_type_of_a_user_outlives_threads_that_measure_at_once():
    began, may_end = threading.Barrier(2), threading.Event()

    def measure(stays):
        with usual_defaults():
            began.wait(10)
            if stays:
                may_end.wait(10)
                return torch.zeros(1).dtype

    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(2) as threads:
            longer, shorter = (threads.submit(measure, stays) for stays in (True, False))
            shorter.result()
            may_end.set()
            assert longer.result() == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_alone_nothing_is_gathered():
    rows, groups = torch.zeros(3, 2), torch.arange(3)
    result = gather_rows(rows, groups)
    assert result.rows is rows
    assert result.start == 0


def _idle_threads(rank: int) -> tuple[int, float]:
    dist.all_reduce(torch.ones(1000))
    began = time.monotonic()
    distributed.let_go()
    return len(distributed._threads_of_gloo()), time.monotonic() - began


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are seen under Linux")
def test_a_group_is_destroyed_when_its_threads_are_idle(monkeypatch):
    """Else a rank may hang at its end: it holds Python's lock, for which a thread waits."""
    for threads, seconds in run_ranks(_idle_threads, 2):
        assert threads > 0
        assert seconds < 9  # it gives up after 10
    # Runs; waits for the lock and has it; is idle, which is known when it is seen again.
    states = [("R", ("1",)), ("S", ("1",)), ("S", ("2",)), ("S", ("2",)), ("S", ("9",))]
    shown = iter(states)
    monkeypatch.setattr(distributed, "_threads_of_gloo", lambda: {"7": next(shown)})
    distributed.let_go()
    assert next(shown) == states[4]


def checked(rank_number, gpus):
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(uuid=gpus[rank_number])
    try:
        distributed._check_gpus(torch.device("cuda"))
    except PacecoreError as error:
        return str(error)
    return "fine"


def test_ranks_that_share_a_gpu_are_told():
    shared = "each rank needs a GPU of its own, got 1 for 2 ranks; start one for each GPU, with"
    assert run_ranks(checked, 2, "aa") == [f"{shared} --device cuda"] * 2
    assert run_ranks(checked, 2, "ab") == ["fine"] * 2
