"""info_nce: what it refuses, and what becomes of a failure of torch's within it."""

import math

import numpy
import pytest
import torch

from pacecore.errors import PacecoreError
from pacecore.ops import info_nce, library
from tests.info_nce_cases import embeddings, labels


@pytest.mark.parametrize("n", [20, 520])
def test_second_derivative_is_refused(n):
    z = embeddings(n, 4).requires_grad_()
    loss = info_nce(z, labels(n, "pairs")).loss
    with pytest.raises(PacecoreError, match="info_nce: has no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("n", [20, 520])
def test_other_ways_to_differentiate_are_refused(n):
    z, groups = embeddings(n, 4), labels(n, "pairs")
    temperature = torch.tensor(0.5)
    with pytest.raises(PacecoreError, match="info_nce: has no forward-mode derivative"):
        torch.func.jvp(lambda z: info_nce(z, groups).loss, (z,), (z,))
    with pytest.raises(PacecoreError, match="info_nce: has no forward-mode derivative"):
        torch.func.jvp(
            lambda t: info_nce(z, groups, temperature=t).loss, (temperature,), (temperature,)
        )
    with pytest.raises(PacecoreError, match=r"info_nce: has no derivative by torch\.func"):
        torch.func.grad(lambda z: info_nce(z, groups).loss)(z)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.eye(4).to_sparse()}, "has no kernel for SparseCPU tensors; pacecore doctor"),
        ({"z": [[1.0], [2.0]]}, "z must be a tensor, got list"),
        ({"groups": numpy.zeros(4, numpy.int64)}, "groups must be a tensor, got ndarray"),
        ({"anchor_start": 1.0}, "anchor_start must be an integer, got 1.0"),
        ({"anchor_start": None}, "anchor_start must be an integer, got None"),
        ({"anchor_count": "all"}, "anchor_count must be an integer, got 'all'"),
        ({"z": torch.zeros(4)}, r"z must be \(n, D\).*got torch.float32 \(4,\)"),
        ({"z": torch.zeros(4, 0)}, r"D >= 1, got torch.float32 \(4, 0\)"),
        ({"z": torch.zeros(4, 2, dtype=torch.int32)}, "got torch.int32"),
        ({"groups": torch.zeros(5, dtype=torch.int64)}, r"groups must be \(4,\).*got .*\(5,\)"),
        ({"groups": torch.zeros(4)}, "groups must be .*integers.*got torch.float32"),
        ({"groups": torch.zeros(4, dtype=torch.int64, device="meta")}, "on meta"),
        ({"temperature": 0.0}, r"must be a number from 1.18e-38 to 8.51e\+37 or a .*, got 0.0"),
        ({"temperature": "0.1"}, "temperature must be a number .*, got '0.1'"),
        ({"temperature": None}, "temperature must be a number .*, got None"),
        ({"temperature": math.nan}, "temperature must be .*, got nan"),
        ({"temperature": 1e-39}, "temperature must be .*, got 1e-39"),
        ({"temperature": 8.6e37}, r"temperature must be .*, got 8.6e\+37"),
        ({"temperature": 10**400}, "temperature must be .*, got inf"),
        ({"temperature": torch.tensor(-1.0)}, r"temperature must be .*e\+37, got -1"),
        ({"temperature": torch.tensor(8.6e37)}, r"temperature must be .*e\+37, got 8.6e\+37"),
        ({"temperature": torch.ones((), device="meta")}, "temperature must have a value.*on meta"),
        ({"temperature": torch.tensor(math.inf)}, "temperature must be .*, got inf"),
        ({"temperature": torch.ones(2)}, "temperature must be one .*got .*(2,)"),
        ({"denominator": "row"}, "denominator must be one of anchor, batch, got 'row'"),
        ({"anchor_start": -1}, "anchors must lie within the 4 rows of z, got anchor_start -1"),
        ({"anchor_count": []}, r"anchor_count must be an integer, got \[\]"),
        ({"anchor_count": 0.0}, r"anchor_count must be an integer, got 0\.0"),
        ({"anchor_start": 2, "anchor_count": 3}, "anchor_start 2, anchor_count 3"),
    ],
)
def test_errors(change, message):
    arguments = {"z": torch.zeros(4, 2), "groups": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(PacecoreError, match=f"info_nce: .*{message}"):
        info_nce(arguments.pop("z"), arguments.pop("groups"), **arguments)


def test_a_number_that_was_compiled_for_any_is_named_too():
    def loss(temperature):
        return info_nce(torch.zeros(4, 2), torch.zeros(4).long(), temperature=temperature).loss

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for number in (0.5, 0.25):  # by the second it is a variable
        compiled(number)
    with pytest.raises(RuntimeError, match=r"temperature must be a number from .*, got -1\.0"):
        compiled(-1.0)


@pytest.mark.parametrize(
    "words",
    [
        "no kernel image is available for execution on the device",
        "the provided PTX was compiled with an unsupported toolchain.",
        "CUDA driver version is insufficient for CUDA runtime version",
    ],
)
def test_a_gpu_that_the_kernels_do_not_serve(words):
    """The verbs look beforehand; who calls an op is told by CUDA."""
    said = f"info_nce: prepare_kernel<T>: {words}; pacecore doctor says what was built"
    with pytest.raises(PacecoreError) as caught, library.expected_errors("info_nce"):
        raise RuntimeError(f"prepare_kernel<T>: {words}\nException raised from")
    assert str(caught.value) == said


def test_the_kernel_checks_for_itself():
    z, groups = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    op = library.ops().info_nce
    with pytest.raises(RuntimeError, match=r"groups must be .*got int64 \(3,\)"):
        op(z, groups[:3], None, 1.0, False, False, 0, 4, False)
    with pytest.raises(RuntimeError, match="4 anchors from 2 on must lie within the 4 rows"):
        op(z, groups, None, 1.0, False, False, 2, 4, False)
    with pytest.raises(RuntimeError, match="must lie within the 4 rows"):  # their sum is -2^63
        op(z, groups, None, 1.0, False, False, 2**62, 2**62, False)
    with pytest.raises(RuntimeError, match=r"temperature must be from .*, got -1"):
        op(z, groups, torch.tensor(-1.0), 1.0, False, False, 0, 4, False)
    backward, options = library.ops().info_nce_backward, (None, 1.0, False, False, 0, 4)
    with pytest.raises(RuntimeError, match=r"rows must be \(5, n\) .*got float32 \(5, 3\)"):
        backward(torch.ones(()), z, groups, torch.zeros(5, 3), *options)
    with pytest.raises(RuntimeError, match=r"grad_loss must be one float32 .*got float32 \(2,\)"):
        backward(torch.ones(2), z, groups, torch.zeros(5, 4), *options)


def test_float64_is_for_the_cpu(device, request):
    if request.node.callspec.params["device"] == "cpu":
        assert (
            info_nce(torch.ones(2, 2).double(), torch.zeros(2).long()).loss.dtype == torch.float64
        )
        return
    z, groups = torch.ones(2, 2).double().to(device), torch.zeros(2).long().to(device)
    with pytest.raises(PacecoreError, match="float64 is computed on the CPU only, got z float64"):
        info_nce(z, groups)


def too_large() -> None:
    """Its copy would be a pebibyte."""
    info_nce(torch.ones(1, 1).expand(2**24, 2**24), torch.zeros(2**24, dtype=torch.int64))


def test_torchs_own_words_are_said():
    of_torch = "(can't allocate|not enough) memory"  # the latter on ARM
    words = of_torch if torch.__version__ >= "2.13" else "out of memory"
    with pytest.raises(RuntimeError, match=rf"^info_nce: .*{words}"):
        too_large()


def test_a_full_gpu_is_torchs_own_error(monkeypatch):
    """Which callers look for: to go on with less, or to say what needs less."""
    monkeypatch.setattr(library, "_words", lambda: "CUDA out of memory. Tried to allocate 1 PiB.")
    with pytest.raises(torch.OutOfMemoryError, match=r"^info_nce: CUDA out of memory"):
        too_large()

    def full(*_):
        raise RuntimeError('torch_call_dispatcher("aten::empty") API call failed at ops.h, line 1')

    loss = info_nce(embeddings(520, 4).requires_grad_(), labels(520, "pairs")).loss
    monkeypatch.setattr(torch.ops.pacecore, "info_nce_backward", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"^info_nce: CUDA out of memory"):
        loss.backward()
