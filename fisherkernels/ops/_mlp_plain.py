"""Perceptrons in plain tensor operations, which autograd, torch.compile and torch.func's transforms see through."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._layout import row_stride

NOT_LAST = ("silu", "elu", "softplus", "gelu")  # behind the last weight, what these gave would be one result more
SWEEP_ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", *NOT_LAST)
CURVED = tuple(i for i, kind in enumerate(SWEEP_ACTIVATIONS) if "relu" not in kind)  # with a second derivative
# The key of an activation, from which its derivatives follow: what these are given, what the others gave.
KEEP_INPUT = tuple(map(SWEEP_ACTIVATIONS.index, NOT_LAST))
_SOFTPLUS_LIMIT = 20  # linear above, as F.softplus

aten = torch.ops.aten


class Constants(NamedTuple):
    """What is behind the weights, in the order in which operators take it; their masks follow."""

    kinds: list[int]  # activations by their number
    slopes: list[float]  # of "leaky_relu" below 0
    scales: list[float]  # 1 / (1 - p) of the dropout behind each, 0 where there is none

    def masks(self) -> int:
        """How many there are."""
        return len(self.scales) - self.scales.count(0)

    def below(self, top: int) -> "Constants":
        """Of the first ``top`` layers, where the gradient of the key of the last of these is given."""
        active = top - (top <= len(self.kinds) and self.kinds[top - 1] in KEEP_INPUT)
        return self if active >= len(self.kinds) else Constants(*(part[:active] for part in self))

    def steps(self, tensors, *by_layer):
        """By layer: of each list the layer's own, and its activation (None behind a last weight without one)."""
        masks = iter(tensors)
        pointwise = [Pointwise(*c, next(masks) if c[-1] else None) for c in zip(*self, strict=True)]
        return list(zip_longest(*by_layer, pointwise))


class Pointwise(NamedTuple):
    """An activation, and the dropout behind it: A(u) = m s a(u).

    The key is A(u) where the derivatives of a follow from its value: those of A are m s a' at the key over s, also
    where m = 0.
    """

    kind: int
    slope: float
    scale: float  # s, 0 without dropout
    mask: Tensor | None  # m, padded rows

    def drawn(self, like: Tensor) -> Tensor:
        """m s."""
        return self.mask[:, : like.shape[1]].to(like.dtype) * self.scale

    def value(self, x: Tensor) -> Tensor:
        y = activated(x, self.kind, self.slope)
        return y * self.drawn(y) if self.scale else y

    def pull(self, t: Tensor, key: Tensor) -> Tensor:
        """A' t."""
        if not self.scale:
            return scaled(t, key, self.kind, self.slope)
        return scaled(t * self.drawn(t), self._undropped(key), self.kind, self.slope)

    def drift(self, key: Tensor) -> Tensor:
        """The derivative of A' with respect to the key."""
        if not self.scale:
            return drift(key, self.kind)
        over_key = 1.0 if self.kind in KEEP_INPUT else 1 / self.scale
        return drift(self._undropped(key), self.kind) * self.drawn(key) * over_key

    def _undropped(self, key: Tensor) -> Tensor:
        return key if self.kind in KEEP_INPUT else key / self.scale


def plain_value(constants, count, x, *parameters):
    """Each activation's key, padded, and the value where none is behind the last weight; then the weights."""
    weights, biases, masks = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
    rows = []
    for weight, bias, pointwise in constants.steps(masks, weights, biases):
        x = given = F.linear(x, weight, bias)
        if pointwise is not None:
            x = pointwise.value(given)
        rows.append(x if pointwise is None else padded(given if pointwise.kind in KEEP_INPUT else x))
    return *rows, *(weight.view_as(weight) for weight in weights)


def plain_vjp(constants, cotangent, *tensors):
    hidden, weights, masks = product_parts(constants, tensors)
    for h, weight, pointwise in reversed(constants.steps(masks, hidden, weights)):
        if h is not None:
            cotangent = pointwise.pull(cotangent, h[:, : len(weight)])
        cotangent = cotangent @ weight
    return cotangent


def product_parts(constants: Constants, tensors: Sequence) -> tuple[Sequence, Sequence, Sequence]:
    """Of what a product takes behind its cotangent: the activations' keys, weights, masks."""
    active, end = len(constants.kinds), len(tensors) - constants.masks()
    return tensors[:active], tensors[active:end], tensors[end:]


def activated(x: Tensor, kind: int, slope: float) -> Tensor:
    """a(x), in operations that have derivatives of every order."""
    match SWEEP_ACTIVATIONS[kind]:
        case "leaky_relu":
            return F.leaky_relu(x, slope)
        case "silu":
            return x * torch.sigmoid(x)
        case "elu":
            return torch.where(x >= 0, x, torch.expm1(-F.relu(-x)))
        case "softplus":
            return torch.where(x > _SOFTPLUS_LIMIT, x, torch.log1p(torch.exp(x.clamp(max=_SOFTPLUS_LIMIT))))
        case "gelu":
            return x * torch.special.ndtr(x)
        case name:
            return getattr(torch, name)(x)


def scaled(t: Tensor, key: Tensor, kind: int, slope: float) -> Tensor:
    """a' t."""
    match SWEEP_ACTIVATIONS[kind]:
        case "tanh":
            return aten.tanh_backward(t, key)
        case "sigmoid":
            return aten.sigmoid_backward(t, key)
        case "relu":
            return aten.threshold_backward(t, key.detach(), 0)
        case "leaky_relu":
            return aten.leaky_relu_backward(t, key.detach(), slope, True)
        case "silu":
            s = torch.sigmoid(key)
            return t * (s * (1 + key * (1 - s)))
        case "elu":
            return t * torch.exp(-F.relu(-key))
        case "softplus":
            return t * torch.where(key > _SOFTPLUS_LIMIT, 1, torch.sigmoid(key))
        case _:  # gelu
            return t * (torch.special.ndtr(key) + key * _density(key))


def drift(key: Tensor, kind: int) -> Tensor:
    """The derivative of a' with respect to the key of a curved activation."""
    match SWEEP_ACTIVATIONS[kind]:
        case "tanh":
            return -2 * key
        case "sigmoid":
            return 1 - 2 * key
        case "elu":
            return torch.where(key >= 0, 0, torch.exp(-F.relu(-key)))
        case "gelu":
            return _density(key) * (2 - key * key)
    s = torch.sigmoid(key)
    both = s * (1 - s)
    if SWEEP_ACTIVATIONS[kind] == "silu":
        return both * (2 + key * (1 - 2 * s))
    return torch.where(key > _SOFTPLUS_LIMIT, 0, both)


def _density(x: Tensor) -> Tensor:
    """The standard normal one."""
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def drawn_mask(x: Tensor, width: int, p: float) -> Tensor:
    """Padded rows [N, width], 0 with probability p: on CPUs what F.dropout draws."""
    mask = x.new_zeros(x.shape[0], row_stride(width), dtype=torch.bool)
    mask[:, :width].bernoulli_(1 - p)
    return mask


def columns_of(rows: Tensor, columns: int) -> Tensor:
    return rows if rows.shape[1] == columns else rows[:, :columns]


def padded(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, row_stride(rows.shape[1]) - rows.shape[1]))


def by_layer(kinds: Sequence[int], activations: list[int], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The tensors, which are of the activations among ``kinds``; None for the others."""
    given = iter(tensors)
    return [next(given) if kind in kinds else None for kind in activations]


def rows_like(weights, activations, like: Tensor) -> list[Tensor]:
    """New padded rows behind every weight with an activation."""
    samples = like.shape[0]
    return [like.new_empty(samples, row_stride(w.shape[0])) for w, _ in zip(weights, activations, strict=False)]


def rows_of_kinds(kinds, weights, activations, like: Tensor) -> list[Tensor]:
    """New padded rows behind the weights whose activation is one of ``kinds``."""
    chosen = [w for w, kind in zip(weights, activations, strict=False) if kind in kinds]
    return rows_like(chosen, chosen, like)


def arrived(of_rows: Sequence[Tensor | None], hidden: Sequence[Tensor]) -> tuple[int, list[Tensor]]:
    """How many layers have gradients at or above them, and those of the keys of the activations below the top one.

    Zeros stand for None, and an empty list for None only.
    """
    top = max((i + 1 for i, gradient in enumerate(of_rows) if gradient is not None), default=0)
    below = of_rows[: max(top - 1, 0)]
    if all(gradient is None for gradient in below):
        return top, []
    pairs = zip(hidden, below, strict=False)
    return top, [torch.zeros_like(h) if gradient is None else gradient.contiguous() for h, gradient in pairs]
