"""Dimensions in another order."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from .base import Rule


class Permute(Rule):
    """J^T c puts the dimensions back; ``order(rank, *args)`` says which dimension goes where."""

    traffic = 0

    def __init__(self, order):
        self.order = order

    def accepts(self, input, *args, **kwargs):
        try:
            inspect.signature(self.order).bind(0, *args, **kwargs)
        except TypeError:
            return False
        return True

    def forward(self, input: Tensor, *args, **kwargs):
        order = tuple(d % input.dim() for d in self.order(input.dim(), *args, **kwargs))
        return input.permute(order), (order,)

    def vjp(self, saved, cotangent, stacked, needs):
        (order,) = saved
        return (_permuted(cotangent, sorted(range(len(order)), key=order.__getitem__), stacked),)

    def jvp(self, saved, tangents, stacked):
        return _permuted(tangents[0], saved[0], stacked)

    def keeps_samples(self, saved, operands, value):
        return saved[0][0] == 0

    def of_one_sample(self, saved, active):
        return saved


class TransposedAttribute(Permute):
    """x.mT and x.T."""

    def accepts(self, input, name):
        return name in ("mT", "T")


def _permuted(t: Tensor, order, stacked: bool) -> Tensor:
    return t.permute(0, *(d + 1 for d in order)) if stacked else t.permute(*order)


def _permute(rank, *order, dims=None):
    order = order if dims is None else dims
    return order[0] if isinstance(order[0], (tuple, list)) else order


def _transpose(rank, dim0, dim1):
    order = list(range(rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return order


def _reversed(rank):
    return range(rank - 1, -1, -1)


def _movedim(rank, source, destination):
    sources, destinations = ((d,) if isinstance(d, int) else d for d in (source, destination))
    order: list[int | None] = [None] * rank
    for s, d in zip(sources, destinations, strict=True):
        order[d] = s % rank
    rest = iter(d for d in range(rank) if d not in order)
    return [next(rest) if d is None else d for d in order]


def _attribute(rank, name):
    return _transpose(rank, -2, -1) if name == "mT" else _reversed(rank)


RULES = {
    "permute": Permute(_permute),
    "transpose": Permute(_transpose),
    "t": Permute(_reversed),
    "movedim": Permute(_movedim),
    "mT": TransposedAttribute(_attribute),
}
FUNCTIONS = {
    torch.permute: "permute",
    torch.transpose: "transpose",
    torch.swapaxes: "transpose",
    torch.t: "t",
    torch.movedim: "movedim",
    getattr: "mT",
}
METHODS = {
    "permute": "permute",
    "transpose": "transpose",
    "swapaxes": "transpose",
    "t": "t",
    "movedim": "movedim",
}
MODULES: dict = {}
