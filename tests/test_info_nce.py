import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pacecore.ops import info_nce
from pacecore.reference.info_nce import info_nce as reference
from tests.info_nce_cases import (
    assert_close,
    assert_half_close,
    embeddings,
    error,
    labels,
    outcome,
    share_of_anchors,
)

DENOMINATORS = ("anchor", "batch")
# Rows, features. On CUDA 512 rows of 2048 features, or 3 of 3066, are the most for one launch,
# which then asks for more shared memory than is a kernel's from the start; others take tiles.
SIZES = [(1, 3), (2, 1), (7, 16), (60, 512), (201, 37), (530, 20)]
SIZES += [(3, 2052), (60, 2048), (512, 2048), (3, 3068)]
# For the emulated device, which is slow.
SMALL_SIZES = [(1, 3), (2, 1), (7, 600), (37, 24), (13, 33), (3, 2048)]


def on_devices(sizes, small_sizes):
    """Marks a test of (device, n, features) with the sizes that suit each device."""
    cases = [pytest.param("cpu", *size) for size in sizes]
    cases += [pytest.param("emulated", *size) for size in small_sizes]
    cases += [pytest.param("cuda", *size, marks=pytest.mark.cuda) for size in sizes]
    return pytest.mark.parametrize(("device", "n", "features"), cases, indirect=["device"])


@pytest.fixture
def few(request, device):
    """A number of rows that is quick on the device."""
    return 90 if request.node.callspec.params["device"] in ("cpu", "cuda") else 24


def test_by_hand(device):
    # Three clips on a line, 0 and 1 of one group: s(0,1) = 2, s(0,2) = 3, s(1,2) = 6.
    z = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True, device=device)
    result = info_nce(z, torch.tensor([5, 5, 9], device=device))
    first = math.log(math.exp(2) + math.exp(3)) - 2
    second = math.log(math.exp(2) + math.exp(6)) - 2
    assert result.loss.item() == pytest.approx((first + second) / 3, rel=1e-6)
    assert result.positive_similarity.item() == 2
    assert result.negative_similarity.item() == pytest.approx((3 + 6 + 3 + 6) / 4)
    assert result.nearest_is_positive.item() == 0
    result.loss.backward()
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-4))  # shares of clip 2 in the denominators
    expected = [3 * p - 2 * p - 2 * q, 3 * q - p - q, p + 2 * q]
    assert z.grad.flatten().tolist() == pytest.approx([x / 3 for x in expected], rel=1e-5)


def test_by_hand_whole_batch_denominator(device):
    z = torch.tensor([[1.0], [2.0], [3.0]], device=device)
    groups = torch.tensor([5, 5, 9], device=device)
    loss = info_nce(z, groups, denominator="batch").loss
    total = 2 * (math.exp(2) + math.exp(3) + math.exp(6))
    assert loss.item() == pytest.approx(2 * (math.log(total) - 2) / 3, rel=1e-6)


@on_devices([(6, 32), (200, 32), (600, 8)], [(6, 32), (530, 8)])
def test_rows_whose_squares_no_float32_holds(device, n, features):
    """Row by row, as the gradient of so long a row is nothing beside the others'."""
    z, groups = embeddings(n, features), labels(n, "pairs")
    z[1:5] *= torch.tensor([[1e-11], [1e20], [1e35], [1e35]])
    exact = outcome(reference, z, groups, torch.float64, normalize=True)
    got = outcome(info_nce, z.to(device), groups, normalize=True)
    assert error(got[0], exact[0]) <= 1e-6
    assert ((got[1] - exact[1]).norm(dim=1) <= 1e-5 * exact[1].norm(dim=1)).all()


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "few", "alone", "equal"])
@on_devices(SIZES, SMALL_SIZES)
def test_float32_against_float64(device, n, features, kind, normalize, denominator):
    z = embeddings(n, features).to(device)
    temperature = 0.1 if normalize else 1.0
    options = {"normalize": normalize, "denominator": denominator, "temperature": temperature}
    assert_close(z, labels(n, kind), **options)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
def test_temperatures(device, few, temperature, denominator):
    z = embeddings(few, 64, scale=0.3).to(device)
    assert_close(z, labels(few, "few"), temperature=temperature, denominator=denominator)


@on_devices([(60, 64), (600, 64)], [(13, 33)])
@pytest.mark.parametrize("temperature", [1e-30, 1e35])
def test_the_gradient_at_any_temperature_is_of_its_size(device, n, features, temperature):
    z, groups = embeddings(n, features), labels(n, "few")
    exact = outcome(reference, z, groups, torch.float64, temperature=temperature)
    got = outcome(info_nce, z.to(device), groups, temperature=temperature)
    assert error(got[0], exact[0]) <= 1e-5
    assert error(got[1], exact[1]) <= 1e-5


@pytest.mark.parametrize("n", [60, 600])
def test_subnormal_numbers_are_left_to_others(n):
    """The gradient counts them as 0 for itself alone, on each thread that it uses."""
    z = embeddings(n, 512, scale=22).requires_grad_()
    info_nce(z, labels(n, "pairs")).loss.backward()
    subnormal = torch.full((1 << 20,), 1e-40)
    assert (subnormal * 1.5 > subnormal).all()


@pytest.mark.parametrize("temperature", [0.01, 1.0, 10.0])
def test_dot_products_of_ten_thousand(device, few, temperature):
    """exp overflows float32 at 88; here logits reach 1e6. Plain torch's error bounds ours."""
    z = embeddings(few, 512, scale=4.4)
    groups = labels(few, "pairs")
    exact = outcome(reference, z, groups, torch.float64, temperature=temperature)
    plain = outcome(reference, z, groups, temperature=temperature)
    got = outcome(info_nce, z.to(device), groups, temperature=temperature)
    assert error(got[0], exact[0]) <= 1e-6
    assert error(got[1], exact[1]) <= max(1e-5, 2 * error(plain[1], exact[1]))


@on_devices([(60, 64), (400, 64), (600, 64)], [(37, 64)])
def test_logits_of_a_hundred_thousand_that_the_gradient_makes_anew(device, n, features):
    """They must have the bits of those whose largest the sums are relative to."""
    z, groups = embeddings(n, features), labels(n, "pairs")
    exact = outcome(reference, z, groups, torch.float64, temperature=1e-3)
    plain = outcome(reference, z, groups, temperature=1e-3)
    got = outcome(info_nce, z.to(device), groups, temperature=1e-3)
    assert error(got[1], exact[1]) <= 2 * error(plain[1], exact[1])


def test_well_separated_pairs_keep_relative_precision(device, few):
    """1 - p(positive) is near 1e-5: made by subtraction, float32 would lose 1 % of the gradient."""
    base = torch.nn.functional.normalize(embeddings(few // 2, 64), dim=1)
    z = torch.cat([base, base + 0.02 * embeddings(few // 2, 64, seed=1)])
    groups = torch.arange(few // 2).repeat(2)
    exact = outcome(reference, z, groups, torch.float64, temperature=0.06)
    assert exact[0] < 1e-3
    got = outcome(info_nce, z.to(device), groups, temperature=0.06)
    assert error(got[0], exact[0]) <= 1e-5
    assert error(got[1], exact[1]) <= 1e-5


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalize", [False, True])
def test_zero_vectors_and_duplicates(device, normalize, denominator):
    z = embeddings(24, 8)
    z[3:6] = 0
    z[10:14] = z[9]
    z[20] = 1e-20
    assert_close(z.to(device), labels(24, "few"), normalize=normalize, denominator=denominator)
    zeros, groups = torch.zeros(6, 8, device=device), labels(6, "pairs").to(device)
    result = info_nce(zeros, groups, normalize=normalize)
    assert result.loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert result.nearest_is_positive.item() == 0  # ties are not nearer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("normalize", "temperature"), [(False, 1.0), (True, 0.1)])
@on_devices([(60, 48), (521, 40)], [(25, 24), (11, 21)])
def test_half_precision_against_plain_torch(
    device, n, features, normalize, temperature, denominator, dtype
):
    options = {"normalize": normalize, "temperature": temperature, "denominator": denominator}
    assert_half_close(embeddings(n, features, dtype).to(device), labels(n, "pairs"), **options)


@on_devices([(60, 48), (512, 64), (514, 64)], [(24, 24), (16, 21)])
def test_a_scaled_loss_lifts_float16_gradients_above_zero(device, n, features):
    z = embeddings(n, features, torch.float16, scale=1e-3).to(device)
    assert_half_close(z, labels(n, "pairs"), loss_scale=1024.0)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("start", "count"), [(0, 0), (0, 1), (5, 20), (300, 260), (559, 1)])
def test_share_of_anchors(start, count, denominator):
    share_of_anchors(embeddings(560, 24), start, count, denominator)


@pytest.mark.parametrize(
    ("n", "start", "count", "denominator"),
    [(20, 7, 5, "anchor"), (20, 7, 5, "batch"), (20, 3, 0, "anchor")],
)
def test_share_of_anchors_on_devices(device, n, start, count, denominator):
    share_of_anchors(embeddings(n, 8).to(device), start, count, denominator)


@pytest.mark.parametrize("start", [0, 40])
def test_log_figures(device, few, start):
    start = min(start, few // 2)
    z, groups = embeddings(few, 16).to(device), labels(few, "few").to(device)
    got = info_nce(z, groups, anchor_start=start)
    exact = reference(z.double(), groups, anchor_start=start)
    for value, expected in zip(got, exact, strict=True):
        assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    lonely = info_nce(z, labels(few, "alone").to(device))
    assert lonely.loss.item() == 0
    assert math.isnan(lonely.positive_similarity)
    assert math.isnan(lonely.nearest_is_positive)


def test_strides_types_of_labels_and_empty(device):
    z, groups = embeddings(20, 40).to(device), labels(20, "few").to(device)
    expected = info_nce(z, groups)
    for other in (z.T.contiguous().T, torch.stack([z, z], 2)[:, :, 0], z.repeat(2, 1)[:20]):
        assert info_nce(other, groups.to(torch.uint8))[:3] == expected[:3]
    assert info_nce(z, torch.stack([groups, groups], 1)[:, 0]).loss == expected.loss
    empty = torch.zeros(0, 8, requires_grad=True, device=device)
    result = info_nce(empty, torch.zeros(0, dtype=torch.int64, device=device))
    assert result.loss == 0
    result.loss.backward()
    assert empty.grad.shape == (0, 8)


def test_not_a_number_shows(device):
    z = embeddings(20, 8).to(device)
    z[7, 3] = math.nan
    assert math.isnan(info_nce(z, labels(20, "pairs").to(device)).loss)


@pytest.mark.parametrize("n", [60, 700])
def test_same_bits_whatever_the_threads(n):
    z, groups = embeddings(n, 70), labels(n, "few")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 1):
            torch.set_num_threads(count)
            results.append(outcome(info_nce, z, groups, temperature=0.3))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_loss_without_gradient_and_weighted_loss(device):
    z, groups = embeddings(30, 32).to(device), labels(30, "pairs").to(device)
    _, grad, slope = outcome(info_nce, z, groups)
    with torch.no_grad():
        assert info_nce(z.requires_grad_(), groups).loss.grad_fn is None
    temperature = torch.ones(1, requires_grad=True, device=device)
    (0.1 * info_nce(z, groups, temperature=temperature).loss).backward()
    torch.testing.assert_close(z.grad.double().cpu(), 0.1 * grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        temperature.grad.double().cpu()[0], 0.1 * slope, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n", [9, 515])
def test_gradcheck(n, normalize, denominator):
    z = embeddings(n, 3, torch.float64).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    options = {"normalize": normalize, "denominator": denominator, "anchor_start": 2}

    def loss(z, temperature):
        return info_nce(z, labels(n, "few"), temperature=temperature, **options).loss

    assert torch.autograd.gradcheck(loss, (z, temperature), fast_mode=n > 9)


@pytest.mark.parametrize("leave_gradient", [True, False])
def test_opcheck(leave_gradient):
    z = embeddings(30, 12).requires_grad_()
    temperature = torch.tensor(0.5, requires_grad=True)
    arguments = (labels(30, "few"), temperature, 1.0, False, True, 0, 30, leave_gradient)
    torch.library.opcheck(torch.ops.pacecore.info_nce.default, (z, *arguments))
    rows = torch.ops.pacecore.info_nce(z.detach(), *arguments)[3].detach()
    torch.library.opcheck(
        torch.ops.pacecore.info_nce_backward.default,
        (torch.tensor(0.3), z.detach(), arguments[0], rows, temperature.detach(), *arguments[2:7]),
    )


@pytest.mark.parametrize("n", [60, 530])
def test_compiles_without_a_break(n):
    z, groups = embeddings(n, 16), labels(n, "pairs")

    def loss(z, groups, temperature, **options):
        return (info_nce(2 * z, groups, temperature=temperature, **options).loss,)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = outcome(compiled, z, groups, normalize=True)
    for value, expected in zip(got, outcome(loss, z, groups, normalize=True), strict=True):
        torch.testing.assert_close(value, expected)


def test_batches_of_changing_size_share_one_compiled_graph():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda z, groups: info_nce(z, groups).loss, fullgraph=True, dynamic=True, backend=counter
    )
    compiled(embeddings(20, 16), labels(20, "pairs"))
    compilations = counter.frame_count
    for n in (21, 34, 60):
        z, groups = embeddings(n, 16), labels(n, "pairs")
        torch.testing.assert_close(compiled(z, groups), info_nce(z, groups).loss)
    assert counter.frame_count == compilations


def test_exports_with_any_number_of_rows():
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, z, groups):
            return info_nce(self.scale * z, groups).loss

    rows = {0: torch.export.Dim("n", min=2)}
    example = embeddings(20, 16), labels(20, "pairs")
    exported = torch.export.export(Loss(), example, dynamic_shapes=(rows, rows)).module()
    for n in (34, 700):
        z, groups = embeddings(n, 16), labels(n, "pairs")
        of_export, of_module = exported(z, groups), Loss()(z, groups)
        torch.testing.assert_close(of_export, of_module)


@pytest.mark.cuda
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("n", [60, 2000])
def test_in_a_cuda_graph_and_without_waiting(device, n):
    z, groups = embeddings(n, 64).to(device).requires_grad_(), labels(n, "pairs").to(device)
    temperature = torch.tensor(0.5, device=device, requires_grad=True)
    expected = outcome(info_nce, z, groups, temperature=0.5)

    def step():
        z.grad = temperature.grad = None
        loss = info_nce(z, groups, temperature=temperature).loss
        loss.backward()
        return loss.detach()

    torch.cuda.set_sync_debug_mode("error")
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(3):
        graph.replay()
    for value, bits in zip((loss, z.grad, temperature.grad), expected, strict=True):
        assert torch.equal(value.double().cpu(), bits)
