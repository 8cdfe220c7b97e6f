"""Perceptrons in plain tensor operations, which autograd, torch.compile and torch.func's transforms see through."""

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
