"""How the benchmarks measure: what they count, with clocks and networks of known answers."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import backbones, evaluate, info_nce, pretrain, train_step
from benchmarks.common import Timing, peak_extra_bytes
from benchmarks.memory import LiveBytes
from benchmarks.official import Shape
from benchmarks.pretrain import Setting

CPU = torch.device("cpu")
SETTING = Setting(CPU, Shape(clip_frames=4, resize=(24, 32), crop=16), 3, workers=1, timed_steps=6)


def took(seconds):
    return Timing(seconds / 2, seconds, 2 * seconds, 5)


def write_log(out, *lines):
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_memory_held_before_is_not_counted_as_extra():
    before = torch.ones(32 * 2**20)  # 128 MiB
    extra = peak_extra_bytes(lambda: torch.ones(16 * 2**20)) / 2**20
    assert 56 < extra < 72
    assert before.sum() == 32 * 2**20


def test_live_bytes_fall_when_a_storage_goes():
    with LiveBytes() as live:
        a = torch.empty(1000, dtype=torch.uint8)
        part = a[:10]
        del a
        assert live.now == 1000  # a view holds it all
        del part
        b = torch.empty(600, dtype=torch.uint8)
    assert (live.now, live.peak) == (b.numel(), 1000)


def test_an_overhead_leaves_out_what_the_loop_waits_for(tmp_path, monkeypatch):
    write_log(
        tmp_path,
        {"step": 2, "clips": 16, "clips_per_second": 4.0, "waiting_share": 0.25},  # 1 s of 4
        {"step": 6, "clips": 48, "clips_per_second": 4.0, "waiting_share": 0.25},  # 3 s of 12
    )
    monkeypatch.setattr(train_step, "run", lambda *_: [(3.0, 1.0), (11.0, 9.0)])
    options = SimpleNamespace(device="cpu", max_steps=6, out=str(tmp_path))
    bare = {"seconds": 1.25, "processor_seconds": 1.6}
    found = train_step.compared(options, None, bare, 2)
    assert found == {
        "bare_step_seconds": 1.25,
        "step_seconds": 2.0,
        "waiting_seconds": 0.5,
        "overhead_share": pytest.approx(0.2),
        "overhead_with_waiting_share": pytest.approx(0.6),
        "processor_seconds": 2.0,
        "processor_overhead_share": pytest.approx(0.25),
    }


@pytest.mark.parametrize(("device", "repeatable"), [("cpu", False), ("cuda:0", True)])
def test_the_network_whose_memory_is_read_is_trained_without_a_search_on_a_gpu(
    tmp_path, monkeypatch, device, repeatable
):
    trained = []
    monkeypatch.setattr(train_step, "open_inputs", lambda options: SimpleNamespace(train=[0, 0]))
    monkeypatch.setattr(
        train_step, "run", lambda options, *_: trained.append(options) or [(3.0, 1.0), (4.0, 1.0)]
    )
    arguments = SimpleNamespace(
        data="videos", device=device, batch=None, memory_steps=20, folder=tmp_path
    )
    (case,) = train_step.memory(arguments)
    assert case["grown_megabytes"] == 1
    assert trained[0].deterministic is repeatable


def test_a_test_s_share_is_of_the_network_s_rates_around_it(monkeypatch):
    alone = iter([2.0, 4.0, 1.0])  # 8 clips: 4, 2 and 8 a second
    whole = iter([10.0, 8.0, 2.0])  # 20 clips: 2, 2.5 and, without the network, 10 a second
    monkeypatch.setattr(evaluate, "time_function", lambda *_, **__: took(next(alone)))
    monkeypatch.setattr(evaluate, "seconds_of", lambda _: next(whole))
    source = type("Two", (list,), {"classes": ("a", "b"), "num_frames": lambda *_: 30})([1, 2])
    found = evaluate.case(source, "files", "small", CPU, 2)
    assert found["rounds"]["shares"] == [pytest.approx(2 / 3), pytest.approx(0.5)]
    assert found["share_of_network_rate"] == pytest.approx(7 / 12)
    assert found["largest_share_possible"] == pytest.approx(10 / 14)
    rates = {"test": 2.25, "network_alone": 4.0, "without_network": 10.0}
    assert (found["clips_per_second"], found["frames"]) == (rates, 60)


def test_the_loss_s_rate_counts_two_products_of_its_matrix(monkeypatch):
    monkeypatch.setattr(info_nce, "peak_extra_bytes", lambda *_: 7)
    monkeypatch.setattr(info_nce, "time_in_turn", lambda steps, *_, **__: {"pacecore": took(1e-6)})
    functions = {"pacecore": lambda z, groups: z.sum()}
    (case,) = info_nce.measure(functions, 100, 50, torch.float32, 1.0, CPU)
    assert case["tflops"] == pytest.approx(2.0)  # twice 100 x 100 x 50 multiply-adds
    assert case["peak_extra_bytes"] == 7


def test_a_network_s_rate_counts_forward_and_backward_of_each_layer(monkeypatch):
    def network(name, width):
        return nn.Sequential(nn.Conv3d(3, 5, 2), nn.Flatten(), nn.Linear(375, 7))

    monkeypatch.setattr(backbones, "build_backbone", network)
    monkeypatch.setattr(backbones, "Apart", lambda *_: lambda runs: (1e-6, 9))
    options = {"device": "cpu", "width": 1.0, "batch": 2, "frames": 4, "crop": 6}
    arguments = SimpleNamespace(**options, ways=["layout"], rounds=1, runs=1)
    ((case,),) = backbones.network_cases("r3d", arguments)
    # 2 x 5 x 3 x 5 x 5 numbers of 3 x 8 products each, then 2 x 7 of 375; backward is two forwards.
    assert case["tflop_per_second"] == pytest.approx(3 * 2 * (18_000 + 5_250) / 1e6)
    assert case["clips_per_second"] == 2e6


def test_what_ours_waits_for_is_of_the_time_between_two_lines(tmp_path, monkeypatch):
    write_log(
        tmp_path,
        {"step": 3, "clips_per_second": 1.8, "waiting_share": 0.6},  # 9 clips, 3 s of 5
        {"epoch": 1, "accuracy": 0.5},
        {"step": 9, "clips_per_second": 2.7, "waiting_share": 0.4},  # 27 clips, 4 s of 10
    )
    monkeypatch.setattr(pretrain, "pretrain", lambda options: {"options": {"amp": "none"}})
    found = pretrain.ours(SETTING, tmp_path, tmp_path, {})
    shares = {"clips_per_second": pytest.approx(3.6), "waiting_share": pytest.approx(0.2)}
    assert found == {"steps": 6, **shares}


def test_the_authors_clock_starts_after_the_steps_that_are_slow(monkeypatch):
    clock = []

    class Network(nn.Module):
        """Takes 100 seconds for each of the first three steps, then 2."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, clips):
            clock.append(100.0 if len(clock) < 3 else 2.0)
            return self.linear(clips.mean((2, 3, 4)))

    def loader(*given, num_workers, multiprocessing_context, **how):
        return DataLoader(*given, **how)  # no processes

    monkeypatch.setattr(pretrain, "DataLoader", loader)
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    clips = TensorDataset(torch.zeros(5, 3, 2, 4, 4, dtype=torch.uint8), torch.arange(5) % 4)
    found = pretrain.authors(SETTING, SimpleNamespace(network=Network), clips, True)
    assert found == {"clips_per_second": 1.5, "steps": 6}  # 18 clips in 12 seconds
    assert len(clock) == 9
