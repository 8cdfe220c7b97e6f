"""Value, tangents and Laplacian of a multi-layer perceptron, all layers in one operator."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import (
    check_activations,
    check_full_precision,
    check_layers,
    check_matrix,
    check_tensor,
)
from fisherkernels.ops._layout import row_stride
from fisherkernels.ops._library import define

ACTIVATIONS = ("tanh", "sigmoid", "silu")


def mlp_laplacian(
    first: Tensor,
    tangents: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    *,
    keep_tangents: bool = False,
    keep_hidden: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""The forward Laplacian of activation, Linear, ..., activation, Linear, from the first layer's output on.

    With y_1 = ``first``, t_k its derivative along the k-th input direction, and L_1 = 0, for every layer

        y' = W a(y) + b        t_k' = W a'(y) t_k        L' = W (a'(y) L + a''(y) Σ_k t_k²)

    A block of samples goes through all layers while its rows are in the cache, K + 2 a sample, in one product a layer;
    backward the same way. Floor: 2 N (K + 2) Σ_l h_l h_(l+1) FLOPs, three times that with the backward pass. For the
    backward pass the hidden layers' rows are kept, N (K + 2) (h_2 + ... + h_L) elements, or made again.

    Args:
        first: y_1, shape [N, h_1].
        tangents: t, shape [K, N, h_1], or [K, 1, h_1]: the same for every sample.
        weights: W_2, ..., W_(L+1), shapes [h_(l+1), h_l]; one at least.
        biases: b_2, ..., b_(L+1), shapes [h_(l+1)], or None.
        activations: "tanh", "sigmoid" or "silu" before each of the weights.
        keep_tangents: also return the output's tangents.
        keep_hidden: False makes the hidden layers' rows again in backward, for a third more FLOPs.

    Returns:
        value [N, m], laplacian [N, m], and tangents [N, K, m], or None without keep_tangents. Differentiable in all
        tensors; the gradient of tangents [K, 1, h_1] is summed over the samples.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, mixed devices, or another activation.

    Source: forward Laplacian: Li et al., "A computational framework for neural network-based variational Monte Carlo
    with Forward Laplacian", 2023 (arXiv:2307.08214).
    """
    name = "mlp_laplacian"
    check_full_precision(name, "first", first, "half precision does not hold sums of second derivatives")
    check_matrix(name, "first", first)
    check_tensor(name, "tangents", tangents, first)
    rows, width = first.shape
    if tangents.dim() != 3 or tangents.shape[2] != width or tangents.shape[1] not in (1, rows):
        raise ValueError(
            f"{name}: tangents must have shape [K, {rows}, {width}] or [K, 1, {width}] beside first, "
            f"got {list(tangents.shape)}"
        )
    if not len(weights) == len(biases) == len(activations) > 0:
        raise ValueError(
            f"{name}: expected as many weights, biases and activations, one at least, "
            f"got {len(weights)}, {len(biases)} and {len(activations)}"
        )
    check_layers(name, first, width, weights, biases)
    check_activations(name, activations, ACTIVATIONS)
    none = first.new_empty(0)
    given = [none if bias is None else bias for bias in biases]
    kinds = [ACTIVATIONS.index(activation) for activation in activations]
    keep_hidden = keep_hidden and needs_graph(first, tangents, *weights, *given)
    op = torch.ops.fisherkernels.mlp_laplacian.default
    value, laplacian, pushed, _ = call(
        op, _autograd, first, tangents, list(weights), given, kinds, keep_tangents, keep_hidden
    )
    return value, laplacian, pushed if keep_tangents else None


def _derivatives(kind: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The activation and its first three derivatives."""
    if ACTIVATIONS[kind] == "tanh":
        value = torch.tanh(x)
        slope = 1 - value.square()
        return value, slope, -2 * value * slope, slope * (6 * value.square() - 2)
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    odd = 1 - 2 * s
    curvature, third = slope * odd, slope * (odd.square() - 2 * slope)
    if ACTIVATIONS[kind] == "sigmoid":
        return s, slope, curvature, third
    return x * s, s + x * slope, 2 * slope + x * curvature, 3 * curvature + x * third


def _rows(value: Tensor, laplacian: Tensor, tangents: Tensor) -> Tensor:
    """[N, K + 2, h] of value and laplacian [N, h] and tangents [K, N, h]."""
    return torch.cat([value[:, None], laplacian[:, None], tangents.transpose(0, 1)], 1)


def _before_activations(first: Tensor, tangents: Tensor, weights, biases, kinds) -> list[Tensor]:
    """Rows [N, K + 2, h_l] before every activation, then those of the output."""
    rows = [_rows(first, torch.zeros_like(first), tangents.expand(-1, len(first), -1))]
    for weight, bias, kind in zip(weights, biases, kinds, strict=True):
        after = _after(rows[-1], kind) @ weight.t()
        if bias.numel():
            after[:, 0] += bias
        rows.append(after)
    return rows


def _after(before: Tensor, kind: int) -> Tensor:
    value, slope, curvature, _ = (part[:, None] for part in _derivatives(kind, before[:, 0]))
    tangents = before[:, 2:]
    laplacian = slope * before[:, 1:2] + curvature * tangents.square().sum(1, keepdim=True)
    return torch.cat([value, laplacian, slope * tangents], 1)


def _forward(first, tangents, weights, biases, activations, keep_tangents, keep_hidden):
    rows = _before_activations(first, tangents, weights, biases, activations)
    output = rows[-1]
    hidden = [F.pad(part, (0, row_stride(part.shape[2]) - part.shape[2])).flatten() for part in rows[1:-1]]
    hidden = hidden if keep_hidden else []
    pushed = output[:, 2:].clone() if keep_tangents else first.new_empty(0)
    return output[:, 0].clone(), output[:, 1].clone(), pushed, torch.cat(hidden) if hidden else first.new_empty(0)


def _backward(
    grad_value, grad_laplacian, grad_tangents, first, tangents, weights, biases, hidden, activations, keep_tangents,
    of_weights,
):  # fmt: skip
    before = _before_activations(first, tangents, weights, biases, activations)
    given = (grad_value, grad_laplacian)
    grad = torch.zeros_like(before[-1])  # [N, K + 2, m]
    for i, part in enumerate(given):
        if part is not None:
            grad[:, i] = part
    if keep_tangents and grad_tangents is not None:
        grad[:, 2:] = grad_tangents
    none, to_weights, to_biases = first.new_empty(0), [], []
    for weight, bias, rows, kind in reversed(list(zip(weights, biases, before, activations, strict=False))):
        if of_weights:
            to_weights.append(grad.flatten(0, 1).t() @ _after(rows, kind).flatten(0, 1))
            to_biases.append(grad[:, 0].sum(0) if bias.numel() else none)
        grad = _pulled(rows, kind, grad @ weight)
    if not of_weights:
        to_weights, to_biases = [none.clone() for _ in weights], [none.clone() for _ in biases]
    to_tangents = grad[:, 2:].transpose(0, 1).sum_to_size(tangents.shape)
    return (
        grad[:, 0].contiguous(),
        to_tangents.contiguous(),
        [t.contiguous() for t in reversed(to_weights)],
        [t.clone() for t in reversed(to_biases)],
    )


def _pulled(before: Tensor, kind: int, grad: Tensor) -> Tensor:
    """The gradient before an activation of the one behind it."""
    _, slope, curvature, third = _derivatives(kind, before[:, 0])
    tangents, by_laplacian = before[:, 2:], grad[:, 1]
    by_slope = (grad[:, 2:] * tangents).sum(1) + by_laplacian * before[:, 1]
    by_curvature = by_laplacian * tangents.square().sum(1)
    value = slope * grad[:, 0] + curvature * by_slope + third * by_curvature
    pulled = slope[:, None] * grad[:, 2:] + (2 * curvature * by_laplacian)[:, None] * tangents
    return torch.cat([value[:, None], (slope * by_laplacian)[:, None], pulled], 1)


def _hidden_size(first, tangents, weights) -> int:
    return sum(len(first) * (len(tangents) + 2) * row_stride(len(weight)) for weight in weights[:-1])


def _forward_fake(first, tangents, weights, biases, activations, keep_tangents, keep_hidden):
    outputs = (len(first), len(weights[-1]))
    return (
        first.new_empty(outputs),
        first.new_empty(outputs),
        first.new_empty((outputs[0], len(tangents), outputs[1]) if keep_tangents else (0,)),
        first.new_empty(_hidden_size(first, tangents, weights) if keep_hidden else 0),
    )


def _backward_fake(
    grad_value, grad_laplacian, grad_tangents, first, tangents, weights, biases, hidden, activations, keep_tangents,
    of_weights,
):  # fmt: skip
    parts = [[t.new_empty(t.shape if of_weights else (0,)) for t in group] for group in (weights, biases)]
    return first.new_empty(first.shape), tangents.new_empty(tangents.shape), *parts


class _MlpLaplacian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, activations, keep_tangents, keep_hidden, first, tangents, *parameters):
        count = len(activations)
        weights, biases = list(parameters[:count]), list(parameters[count:])
        op = torch.ops.fisherkernels.mlp_laplacian.default
        results = below_autograd(op, first, tangents, weights, biases, activations, keep_tangents, keep_hidden)
        ctx.save_for_backward(first, tangents, *parameters, results[3])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(results[3])
        ctx.activations, ctx.keep_tangents = activations, keep_tangents
        return results

    @staticmethod
    def backward(ctx, grad_value, grad_laplacian, grad_tangents, _):
        first, tangents, *parameters, hidden = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if not ctx.keep_tangents:
            grad_tangents = None
        grads = (grad_value, grad_laplacian, grad_tangents)
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(needed))
        count = len(ctx.activations)
        weights, biases = parameters[:count], parameters[count:]
        op = torch.ops.fisherkernels.mlp_laplacian_backward.default
        to_first, to_tangents, to_weights, to_biases = below_autograd(
            op, *grads, first, tangents, weights, biases, hidden, ctx.activations, ctx.keep_tangents, any(needed[2:])
        )
        results = (to_first, to_tangents, *to_weights, *to_biases)
        sources = (*grads, first, tangents, *parameters)
        return None, None, None, *single_backward("mlp_laplacian", needed, results, sources)


def _autograd(first, tangents, weights, biases, activations, keep_tangents, keep_hidden):
    tensors = (first, tangents, *weights, *biases)
    if needs_graph(*tensors):
        return _MlpLaplacian.apply(activations, keep_tangents, keep_hidden, *tensors)
    op = torch.ops.fisherkernels.mlp_laplacian.default
    return below_autograd(op, first, tangents, weights, biases, activations, keep_tangents, keep_hidden)


define(
    "mlp_laplacian",
    "(Tensor first, Tensor tangents, Tensor[] weights, Tensor[] biases, int[] activations, bool keep_tangents,"
    " bool keep_hidden) -> (Tensor value, Tensor laplacian, Tensor new_tangents, Tensor hidden)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "mlp_laplacian_backward",
    "(Tensor? grad_value, Tensor? grad_laplacian, Tensor? grad_tangents, Tensor first, Tensor tangents,"
    " Tensor[] weights, Tensor[] biases, Tensor hidden, int[] activations, bool keep_tangents, bool of_weights)"
    " -> (Tensor to_first, Tensor to_tangents, Tensor[] to_weights, Tensor[] to_biases)",
    twin=_backward,
    fake=_backward_fake,
)
