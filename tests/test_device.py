"""The device of an option, on machines with and without GPUs."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from pacecore.backbones.bf16 import Bf16Check
from pacecore.config import TestOptions, TrainOptions
from pacecore.device import pick_device, repeatable_or_fast, true_fp32, trusted
from pacecore.errors import PacecoreError
from tests.gpus import gpus


def test_the_cpu_and_what_is_no_device():
    assert pick_device("cpu").type == "cpu"
    for wish in ("tpu", "cpu:3", "cpu:0", "cuda:", "cuda:-1", "cuda:999", "meta", ""):
        with pytest.raises(PacecoreError, match=f"device must be auto, cpu, cuda .*got '{wish}'"):
            pick_device(wish)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(PacecoreError, match="device cuda: this torch finds no CUDA device"):
        pick_device("cuda")


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch, wish):
    """Before the processes are joined, so that only the launcher's variables tell them apart."""
    devices = gpus(monkeypatch, (9, 0), (9, 0))
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert pick_device(wish) == torch.device("cuda", number)
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    gpus(monkeypatch, (9, 0))  # as where the launcher shows each process its own
    assert pick_device(wish) == torch.device("cuda", 0)


def test_a_number_stands_for_itself(monkeypatch):
    gpus(monkeypatch, (9, 0), (9, 0))
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(PacecoreError, match="device cuda:2: there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_words_that_nobody_reads_end_nothing(monkeypatch, nobody_reads):
    gpus(monkeypatch, (3, 5))
    with nobody_reads():
        assert pick_device("auto").type == "cpu"
        assert bf16_after(monkeypatch, False) == "bf16"


def bf16_after(monkeypatch, elsewhere, resume=False, layers=None, measures=None, **figures):
    check = Bf16Check("cpu", **{"errors": {}, "bf16_seconds": 1.0, "fp32_seconds": 1.0, **figures})
    monkeypatch.setattr("pacecore.device.check_bf16_conv3d", lambda _: check)
    monkeypatch.setattr("pacecore.device.errors_of_layers", lambda *_, gradients: layers or {})
    monkeypatch.setattr("pacecore.device.any_rank", lambda flag: (flag or elsewhere,))
    options = TestOptions(amp="bf16") if measures else TrainOptions(amp="bf16").resolved()
    return trusted(options, torch.device("cpu"), resume=resume, measures=measures).amp


def test_the_ranks_and_a_resumed_run_are_of_one_mind_about_bf16(monkeypatch, capsys):
    """How fast it is differs from one measuring to the next."""
    assert bf16_after(monkeypatch, False) == "bf16"
    assert "agrees with fp32" in capsys.readouterr().out
    for resume in (False, True):
        assert bf16_after(monkeypatch, True, resume=resume) == "none"
        words = "bf16 conv3d is wrong or slow on another rank's device; fp32 is used\n"
        assert capsys.readouterr().out == words
    assert bf16_after(monkeypatch, False, bf16_seconds=2.0) == "none"
    assert bf16_after(monkeypatch, False, resume=True, bf16_seconds=2.0) == "bf16"
    assert bf16_after(monkeypatch, False, resume=True, errors={"3x3x3": 1.0}) == "none"


def test_bf16_is_that_of_the_networks_own_layers(monkeypatch, capsys):
    off = {"conv1.conv of 4 x 3 x 1 x 56 x 56": 1.0}
    assert bf16_after(monkeypatch, False, layers=off) == "none"
    assert "is wrong: conv1.conv of 4 x 3 x 1 x 56 x 56 is off by 1" in capsys.readouterr().out
    measures = TrainOptions().resolved()
    assert bf16_after(monkeypatch, False, layers=off, measures=measures) == "none"
    capsys.readouterr()
    # Where it is slow in any case the layers, which would be slow too, are not tried.
    assert bf16_after(monkeypatch, False, layers=off, bf16_seconds=2.0) == "none"
    assert "is slow" in capsys.readouterr().out
    # What is wrong of another network's layers or of gradients, or slow, is so of no measurement.
    assert bf16_after(monkeypatch, False, errors={"3x3x3": 1.0}, measures=measures) == "bf16"
    assert bf16_after(monkeypatch, False, bf16_seconds=2.0, measures=measures) == "bf16"
    assert capsys.readouterr().out == ""


def test_the_layers_that_bf16_is_tried_on_are_those_of_the_network_measured(monkeypatch):
    seen = []

    def tried(network, clips, gradients):
        seen.append((type(network).__name__, network.feature_dim, clips, gradients))
        return {}

    monkeypatch.setattr("pacecore.device.errors_of_layers", tried)
    trained = TrainOptions(backbone="r3d", width=0.25, clip_frames=8, crop=56).resolved()
    trusted(replace(trained, amp="bf16"), torch.device("cpu"))
    trusted(TestOptions(amp="bf16"), torch.device("cpu"), measures=trained)
    assert seen == [("R3D", 128, (4, 3, 8, 56, 56), wanted) for wanted in (True, False)]


def test_a_gpu_that_the_kernels_do_not_serve(monkeypatch, capsys):
    """auto is content with the CPU, and says why; cuda is a wish that cannot be met."""
    gpus(monkeypatch, (9, 0), architectures="")
    assert pick_device("auto").type == "cpu"
    words = "this pacecore has no CUDA kernels; put nvcc 12.0 or later on PATH"
    assert f"warning: the GPU is left unused: {words}" in capsys.readouterr().err
    with pytest.raises(PacecoreError, match=f"device cuda: {words}"):
        pick_device("cuda")


@pytest.mark.parametrize("of_all", ["highest", "high", "medium"])
@pytest.mark.parametrize("own", [None, "tf32", "ieee"])
def test_fp32_is_true_for_a_while_however_it_was_set(of_all, own):
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(of_all)
    try:
        if own:  # as torch's newer settings have it, of one backend
            backends[0].fp32_precision = own
        wanted = [each.fp32_precision for each in backends]
        with suppress(KeyError), true_fp32():
            assert [each.fp32_precision for each in backends] == ["ieee", "ieee"]
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert [each.fp32_precision for each in backends] == wanted
        if not own:
            assert torch.get_float32_matmul_precision() == of_all
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("repeatable", [True, False])
def test_torch_is_after_a_run_as_it_was_before(monkeypatch, repeatable):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", repeatable)
    with suppress(KeyError), repeatable_or_fast(repeatable):
        assert torch.are_deterministic_algorithms_enabled() == repeatable
        assert torch.backends.cudnn.benchmark != repeatable
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == repeatable
