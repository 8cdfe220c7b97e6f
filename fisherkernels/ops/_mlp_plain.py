"""Perceptrons in plain tensor operations, which autograd, torch.compile and torch.func's transforms see through."""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._layout import row_stride

SWEEP_ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu")
CURVED = (0, 1)  # with a second derivative

aten = torch.ops.aten


def plain_value(constants, count, x, *parameters):
    weights, biases = parameters[:count], parameters[count:]
    rows = []
    for weight, bias, kind, slope in zip_longest(weights, biases, *constants):
        x = F.linear(x, weight, bias)
        x = x if kind is None else _activated(x, kind, slope)
        rows.append(x if kind is None else padded(x))
    return *rows, *(weight.view_as(weight) for weight in weights)


def plain_vjp(constants, cotangent, *tensors):
    active = len(constants[0])
    hidden, weights = tensors[:active], tensors[active:]
    for h, weight, kind, slope in reversed(list(zip_longest(hidden, weights, *constants))):
        if h is not None:
            cotangent = scaled(cotangent, h[:, : len(weight)], kind, slope)
        cotangent = cotangent @ weight
    return cotangent


def _activated(x: Tensor, kind: int, slope: float) -> Tensor:
    name = SWEEP_ACTIVATIONS[kind]
    return F.leaky_relu(x, slope) if name == "leaky_relu" else getattr(torch, name)(x)


def scaled(t: Tensor, y: Tensor, kind: int, slope: float) -> Tensor:
    """a' t from y = a(x)."""
    if kind in CURVED:
        return (aten.tanh_backward, aten.sigmoid_backward)[kind](t, y)
    if SWEEP_ACTIVATIONS[kind] == "relu":
        return aten.threshold_backward(t, y.detach(), 0)
    return aten.leaky_relu_backward(t, y.detach(), slope, True)


def columns_of(rows: Tensor, columns: int) -> Tensor:
    return rows if rows.shape[1] == columns else rows[:, :columns]


def padded(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, row_stride(rows.shape[1]) - rows.shape[1]))


def by_layer(activations: list[int], curved: list[Tensor]) -> list[Tensor | None]:
    """Tensors of the curved activations, None for the others."""
    given = iter(curved)
    return [next(given) if kind in CURVED else None for kind in activations]


def rows_like(weights, activations, like: Tensor) -> list[Tensor]:
    """New padded rows behind every weight with an activation."""
    samples = like.shape[0]
    return [like.new_empty(samples, row_stride(w.shape[0])) for w, _ in zip(weights, activations, strict=False)]


def curved_rows_like(weights, activations, like: Tensor) -> list[Tensor]:
    curved = [w for w, kind in zip(weights, activations, strict=False) if kind in CURVED]
    return rows_like(curved, curved, like)


def batched(gradients: Sequence[Tensor | None]) -> bool:
    """Whether torch.autograd.grad has made stacks of them (is_grads_batched)."""
    return any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in gradients)


def arrived(of_rows: Sequence[Tensor | None], hidden: Sequence[Tensor]) -> tuple[int, list[Tensor]]:
    """How many layers have gradients at or above them, and those of what the activations below the top one gave.

    Zeros stand for None, and an empty list for None only.
    """
    top = max((i + 1 for i, gradient in enumerate(of_rows) if gradient is not None), default=0)
    below = of_rows[: max(top - 1, 0)]
    if all(gradient is None for gradient in below):
        return top, []
    pairs = zip(hidden, below, strict=False)
    return top, [torch.zeros_like(h) if gradient is None else gradient.contiguous() for h, gradient in pairs]


def again(function: Callable[..., tuple], inputs: tuple, received: tuple) -> tuple:
    """Gradients by autograd, through a second evaluation: to be differentiated again, batched, or with tangents."""
    required = [t is not None and t.requires_grad for t in inputs]
    with torch.enable_grad():
        # Views: only what goes through this evaluation counts, also where an input depends on another.
        views = [t.view_as(t) if needed else t for t, needed in zip(inputs, required, strict=True)]
        outputs = function(*views)
    pairs = zip(outputs, received, strict=True)
    used = [(output, given) for output, given in pairs if given is not None and output.requires_grad]
    if not used:
        return (None,) * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in used],
            [t for t, needed in zip(views, required, strict=True) if needed],
            [given for _, given in used],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return tuple(next(found) if needed else None for needed in required)
