"""A stack of tangents and a Laplacian through an elementwise activation, in one read of the tangents."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import check_full_precision, check_matrix, check_same_shape, check_tensor
from fisherkernels.ops._library import define


def activation_tangents(
    tangents: Tensor, laplacian: Tensor | None, slope: Tensor, curvature: Tensor, *, keep_tangents: bool = True
) -> tuple[Tensor | None, Tensor]:
    r"""One step of the forward Laplacian through y = a(x), elementwise, with slope a'(x) and curvature a''(x):

        tangents'_k = a'(x) tangents_k        laplacian' = a'(x) laplacian + a''(x) Σ_k tangents_k²

    where tangents_k and laplacian are the derivative of x along the k-th input direction and the sum of its second
    derivatives along all of them.

    Args:
        tangents: shape [K, N, M], or [K, 1, M]: the same tangents for every sample, never repeated in memory.
        laplacian: shape [N, M], or None for zeros.
        slope: shape [N, M].
        curvature: shape [N, M].
        keep_tangents: False where only the Laplacian is wanted: nothing of the size of the tangents is written.

    Returns:
        tangents' [K, N, M], or None without keep_tangents, and laplacian' [N, M]. Differentiable in all tensors; the
        gradient of tangents [K, 1, M] is summed over the samples.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.

    Source: forward Laplacian: Li et al., "A computational framework for neural network-based variational Monte Carlo
    with Forward Laplacian", 2023 (arXiv:2307.08214).
    """
    name = "activation_tangents"
    check_full_precision(name, "slope", slope, "half precision does not hold sums of second derivatives")
    check_matrix(name, "slope", slope)
    check_tensor(name, "curvature", curvature, slope)
    check_same_shape(name, "curvature", curvature, "slope", slope)
    if laplacian is not None:
        check_tensor(name, "laplacian", laplacian, slope)
        check_same_shape(name, "laplacian", laplacian, "slope", slope)
    check_tensor(name, "tangents", tangents, slope)
    rows, columns = slope.shape
    shape = tangents.shape
    if len(shape) != 3 or shape[2] != columns or (shape[1] != rows and shape[1] != 1):
        raise ValueError(
            f"{name}: tangents must have shape [K, {rows}, {columns}] or [K, 1, {columns}] beside slope, "
            f"got {list(shape)}"
        )
    op = torch.ops.fisherkernels.activation_tangents.default
    scaled, laplacian = call(op, _autograd, tangents, laplacian, slope, curvature, keep_tangents)
    return scaled if keep_tangents else None, laplacian


def _forward(tangents, laplacian, slope, curvature, keep_tangents) -> tuple[Tensor, Tensor]:
    updated = curvature * tangents.square().sum(0)  # [N, M]
    if laplacian is not None:
        updated = updated + slope * laplacian
    scaled = slope * tangents if keep_tangents else tangents.new_empty(0)  # [K, N, M]
    return scaled.contiguous(), updated.contiguous()


def _backward(grad_tangents, grad_laplacian, tangents, laplacian, slope, curvature, output_mask) -> tuple[Tensor, ...]:
    grads = [tangents.new_empty(0) for _ in output_mask]
    to_tangents, to_slope = torch.zeros_like(tangents), torch.zeros_like(slope)
    if grad_tangents is not None:
        through = slope * grad_tangents  # [K, N, M]
        to_tangents = to_tangents + through.sum_to_size(tangents.shape)
        to_slope = to_slope + (grad_tangents * tangents).sum(0)
    if grad_laplacian is not None:
        twice = 2 * curvature * grad_laplacian  # [N, M]
        to_tangents = to_tangents + twice.sum_to_size(tangents.shape[1:]) * tangents
        if laplacian is not None:
            to_slope = to_slope + grad_laplacian * laplacian
        if output_mask[1]:
            grads[1] = slope * grad_laplacian
        if output_mask[3]:
            grads[3] = grad_laplacian * tangents.square().sum(0)
    if output_mask[0]:
        grads[0] = to_tangents
    if output_mask[2]:
        grads[2] = to_slope
    return tuple(grad.contiguous() for grad in grads)


def _forward_fake(tangents, laplacian, slope, curvature, keep_tangents) -> tuple[Tensor, Tensor]:
    shape = (tangents.shape[0], *slope.shape) if keep_tangents else (0,)
    return tangents.new_empty(shape), slope.new_empty(slope.shape)


def _backward_fake(grad_tangents, grad_laplacian, tangents, laplacian, slope, curvature, output_mask):
    through = grad_laplacian is not None
    wanted = (output_mask[0], output_mask[1] and through, output_mask[2], output_mask[3] and through)
    inputs = (tangents, slope, slope, slope)
    return tuple(t.new_empty(t.shape if want else (0,)) for t, want in zip(inputs, wanted, strict=True))


class _ActivationTangents(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tangents, laplacian, slope, curvature, keep_tangents):
        ctx.save_for_backward(tangents, laplacian, slope, curvature)
        ctx.set_materialize_grads(False)
        ctx.keep_tangents = keep_tangents
        op = torch.ops.fisherkernels.activation_tangents.default
        return below_autograd(op, tangents, laplacian, slope, curvature, keep_tangents)

    @staticmethod
    def backward(ctx, grad_tangents, grad_laplacian):
        if not ctx.keep_tangents:
            grad_tangents = None
        if grad_tangents is None and grad_laplacian is None:
            return (None,) * 5
        sources = (grad_tangents, grad_laplacian, *ctx.saved_tensors)
        through = grad_laplacian is not None
        tangents, laplacian, slope, curvature, _ = ctx.needs_input_grad
        mask = (tangents, laplacian and through, slope, curvature and through)
        op = torch.ops.fisherkernels.activation_tangents_backward.default
        return *single_backward("activation_tangents", mask, below_autograd(op, *sources, mask), sources), None


def _autograd(tangents, laplacian, slope, curvature, keep_tangents) -> tuple[Tensor, Tensor]:
    args = (tangents, laplacian, slope, curvature)
    if needs_graph(*args):
        return _ActivationTangents.apply(*args, keep_tangents)
    return below_autograd(torch.ops.fisherkernels.activation_tangents.default, *args, keep_tangents)


define(
    "activation_tangents",
    "(Tensor tangents, Tensor? laplacian, Tensor slope, Tensor curvature, bool keep_tangents)"
    " -> (Tensor new_tangents, Tensor new_laplacian)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "activation_tangents_backward",
    "(Tensor? grad_tangents, Tensor? grad_laplacian, Tensor tangents, Tensor? laplacian, Tensor slope,"
    " Tensor curvature, bool[4] output_mask)"
    " -> (Tensor to_tangents, Tensor to_laplacian, Tensor to_slope, Tensor to_curvature)",
    twin=_backward,
    fake=_backward_fake,
)
