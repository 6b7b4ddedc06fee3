"""The contrastive loss of Eq. 2 and Eq. 3, exact, without the matrix of similarities."""

import math
import sys
from contextlib import nullcontext
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from pacecore.errors import PacecoreError
from pacecore.ops.library import NAMESPACE, expected_errors, has_tangent, ops

__all__ = ["InfoNCE", "info_nce"]

DENOMINATORS = ("anchor", "batch")
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Up to this many rows the forward leaves the gradient behind: on a GPU one launch, or a few.
_FEW_ROWS = 512
# Of temperature: it and its inverse, by which the kernels multiply, are normal numbers of float32.
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, 1 / torch.finfo(torch.float32).tiny


class InfoNCE(NamedTuple):
    """What `info_nce` returns: the loss, and three figures for the log. Each is a tensor ()."""

    loss: Tensor  # differentiable in z, and in temperature where that is a tensor
    positive_similarity: Tensor  # mean of s(i, j) over anchors i and positives j; NaN without any
    negative_similarity: Tensor  # mean of s(i, j) over anchors i and negatives j; NaN without any
    nearest_is_positive: Tensor  # share of the anchors with a positive that have it nearer than
    #                              every negative; NaN where none has a positive


def info_nce(
    z: Tensor,
    groups: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    denominator: str = "anchor",
    normalize: bool = False,
    anchor_start: int = 0,
    anchor_count: int | None = None,
) -> InfoNCE:
    """Contrastive loss over group labels: Eq. 2 (groups = videos) and Eq. 3 (groups = paces).

    With s(i, j) = z(i) . z(j), l = s / temperature, and the positives P(i) the other rows with i's
    label, the loss is the mean over the anchors i of

        denominator="anchor":  logsumexp over j != i of l(i, j)         -  mean over P(i) of l(i, j)
        denominator="batch":   logsumexp over all pairs i != j of l     -  mean over P(i) of l(i, j)

    where an anchor without positives adds 0 and still counts in the mean. Without anchors it is 0.

        z = encoder(clips)                               # (60, 512): two views of 30 videos
        info_nce(z, video).loss.backward()               # video: (60,) int64, each number twice

    z: (n, D) float32, bfloat16, float16 or, on the CPU, float64; sums are float32, for float64
        float64.
    groups: (n,) integers, any values, on z's device.
    temperature: from 2^-126 to 2^126, a number or a tensor of one element, then learnable; on CUDA
        a tensor's value is not looked at.
    normalize: s is the cosine. A row with a norm below 1e-12 counts as zeros, with no gradient.
    anchor_start, anchor_count: the anchors are rows [anchor_start, anchor_start + anchor_count) of
        z, by default all from anchor_start on; every row is a key. So one rank's share of a batch
        gathered from several. The "batch" denominator runs over all rows whatever the anchors.

    Memory grows as n D, time as n^2 D: of the similarities a square exists at a time that fits the
    cache, which for few rows (192; on a GPU 512, of 16 bits 384) is all of them. Pairs of two rows
    that are no anchors take none, unless the denominator is "batch". Results are the same bits in
    every run and with any number of threads. Nothing waits for the GPU. There is no second
    derivative and none by forward mode or torch.func: to ask for one is an error.
    Raises PacecoreError for a wrong shape, type, device or value.
    """
    count = _check(z, groups, temperature, denominator, anchor_start, anchor_count)
    compute_type = torch.float64 if z.dtype == torch.float64 else torch.float32
    learnable = None
    if isinstance(temperature, Tensor):
        learnable = temperature.to(dtype=compute_type, device=z.device).reshape(())
    tracked = torch.is_grad_enabled() and z.requires_grad
    # What is left is rounded before it is multiplied by the gradient of the loss, and in float16
    # that is what lifts it above 0.
    leave_gradient = (
        tracked
        and z.dtype != torch.float16
        and not torch.compiler.is_exporting()  # for any number of rows
        and z.shape[0] <= _FEW_ROWS
    )
    # What compiles or exports sees the op itself.
    eager = tracked and not torch.compiler.is_compiling()
    with expected_errors("info_nce"):
        loss, summary, *_ = (_Eager.apply if eager else ops().info_nce)(
            z,
            groups if groups.dtype == torch.int64 else groups.to(torch.int64),
            learnable,
            1.0 if learnable is not None else float(temperature),
            denominator == "batch",
            normalize,
            anchor_start,
            count,
            leave_gradient,
        )
    return InfoNCE(loss, *summary.unbind())


def _check(
    z: Tensor,
    groups: Tensor,
    temperature: float | Tensor,
    denominator: str,
    anchor_start: int,
    anchor_count: int | None,
) -> int:
    """The number of anchors. Raises PacecoreError for what info_nce does not take."""

    def require(holds: bool, rule: str, got: object) -> None:
        if not holds:
            raise PacecoreError(f"info_nce: {rule}, got {got}")

    def describe(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"

    for name, tensor in (("z", z), ("groups", groups)):
        require(isinstance(tensor, Tensor), f"{name} must be a tensor", type(tensor).__name__)
    forward_mode = any(has_tangent(x) for x in (z, temperature) if isinstance(x, Tensor))
    require(not forward_mode, "has no forward-mode derivative", "a tensor with a tangent")
    if z.dim() != 2 or z.shape[1] < 1 or z.dtype not in _TYPES:
        kinds = "float32, bfloat16, float16 or float64"
        require(False, f"z must be (n, D) {kinds} with D >= 1", describe(z))
    if (
        groups.shape != z.shape[:1]
        or groups.device != z.device
        or groups.is_floating_point()
        or groups.is_complex()
    ):
        rule = f"groups must be ({z.shape[0]},) integers on {z.device}, as z has rows"
        require(False, rule, describe(groups))
    given = 0 if anchor_count is None else anchor_count
    for name, number in (("anchor_start", anchor_start), ("anchor_count", given)):
        if not isinstance(number, (int, Integral, torch.SymInt)):
            require(False, f"{name} must be an integer", repr(number))
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            require(False, "temperature must be one floating-point value", describe(temperature))
        if temperature.device.type == "meta" != z.device.type:
            require(False, "temperature must have a value, as z has", describe(temperature))
    elif not isinstance(temperature, (float, Real)) or not _SMALLEST <= temperature <= _LARGEST:
        rule = f"temperature must be a number from {_SMALLEST:.3g} to {_LARGEST:.3g} or a tensor"
        # What torch.compile takes for a variable has no repr.
        plain = temperature
        if isinstance(temperature, Real):  # that of an int may be beyond all floats
            plain = math.inf if abs(temperature) > sys.float_info.max else temperature.__float__()
        require(False, rule, repr(plain))
    if denominator not in DENOMINATORS:
        require(False, f"denominator must be one of {', '.join(DENOMINATORS)}", repr(denominator))
    count = z.shape[0] - anchor_start if anchor_count is None else anchor_count
    if min(anchor_start, count) < 0 or anchor_start + count > z.shape[0]:
        rule = f"anchors must lie within the {z.shape[0]} rows of z"
        require(False, rule, f"anchor_start {anchor_start}, anchor_count {anchor_count}")
    return count


def _fake(z, *options):
    leave_gradient = options[-1]
    kind = torch.float64 if z.dtype == torch.float64 else torch.float32
    n, features = z.shape
    return (
        z.new_empty((), dtype=kind),
        z.new_empty((3,), dtype=kind),
        z.new_empty((), dtype=kind),
        z.new_empty((5, n), dtype=kind),
        z.new_empty((n if leave_gradient else 0, features)),
    )


def _fake_backward(grad_loss, z, *_):
    return z.new_empty(z.shape)


def _save(ctx, inputs, output) -> None:
    z, groups, temperature, *options, leave_gradient = inputs
    _, _, grad_temperature, rows, grad_z = output
    ctx.set_materialize_grads(False)
    ctx.options, ctx.leave_gradient = options, leave_gradient
    if leave_gradient:
        ctx.save_for_backward(grad_temperature, grad_z)
    else:
        ctx.save_for_backward(grad_temperature, z, groups, temperature, rows)


def _gradients(ctx, grad_loss, namespace) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise PacecoreError("info_nce: has no second derivative, got create_graph=True")
    result = [None] * 9
    if grad_loss is None:
        return tuple(result)
    grad_temperature, *saved = ctx.saved_tensors
    if ctx.needs_input_grad[0]:
        if ctx.leave_gradient:
            result[0] = saved[0] * grad_loss
        else:
            z, groups, temperature, rows = saved
            with expected_errors("info_nce"):
                result[0] = namespace.info_nce_backward(
                    grad_loss, z, groups, rows, temperature, *ctx.options
                )
    if ctx.needs_input_grad[2]:
        result[2] = grad_temperature * grad_loss
    return tuple(result)


# As torch.library does it; without it torch looks, in Python, for a gradient that is not wanted.
_kernels_alone = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)


class _Eager(torch.autograd.Function):
    """The op with the backward that `_register` gives it, without what torch does in Python to
    get there, some 40 microseconds each time.
    """

    @staticmethod
    def forward(ctx, *inputs):
        ctx.namespace = ops()
        with _kernels_alone():
            output = ctx.namespace.info_nce(*inputs)
        _save(ctx, inputs, output)
        loss, summary = output[:2]
        ctx.mark_non_differentiable(summary)
        return loss, summary

    @staticmethod
    def backward(ctx, grad_loss, _):
        return _gradients(ctx, grad_loss, ctx.namespace)


def register(namespace: str) -> None:
    """Gives the op of `namespace` its fake kernel and its backward."""

    def setup_context(ctx, inputs, output):
        _save(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])

    def backward(ctx, grad_loss, *_):
        return _gradients(ctx, grad_loss, getattr(torch.ops, namespace))

    torch.library.register_fake(f"{namespace}::info_nce", _fake)
    torch.library.register_fake(f"{namespace}::info_nce_backward", _fake_backward)
    torch.library.register_autograd(f"{namespace}::info_nce", backward, setup_context=setup_context)


register(NAMESPACE)
