"""Sums and means over dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Rule, lead


class Sum(Rule):
    """J t sums the tangent, J^T c repeats the cotangent; divided by the number of terms for a mean."""

    def __init__(self, mean: bool):
        self.mean = mean

    def accepts(self, input, dim=None, keepdim=False, dtype=None):
        return dtype is None

    def forward(self, input: Tensor, dim=None, keepdim: bool = False, dtype=None):
        dims = dimensions(dim, input.dim())
        count = math.prod([input.shape[d] for d in dims]) if self.mean else 1
        value = (torch.mean if self.mean else torch.sum)(input, dims, keepdim=keepdim) if dims else input
        return value, (tuple(input.shape), dims, keepdim, count)

    def vjp(self, saved, cotangent, stacked, needs):
        shape, dims, keepdim, count = saved
        front = lead(cotangent, stacked)
        kept = tuple(1 if d in dims else size for d, size in enumerate(shape))
        c = cotangent if count == 1 else cotangent / count
        return (c.reshape(front + kept).expand(front + shape),)

    def jvp(self, saved, tangents, stacked):
        _, dims, keepdim, count = saved
        if not dims:
            return tangents[0]
        total = tangents[0].sum([d + 1 for d in dims] if stacked else dims, keepdim=keepdim)
        return total if count == 1 else total / count

    def keeps_samples(self, saved, operands, value):
        return 0 not in saved[1]

    def of_one_sample(self, saved, active):
        shape, *rest = saved
        return (1, *shape[1:]), *rest


def dimensions(dim, rank: int) -> tuple[int, ...]:
    """The dimensions named, counted from the front; None and () name all."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(rank))
    return tuple(d % rank for d in dims) if rank else ()


RULES = {"sum": Sum(mean=False), "mean": Sum(mean=True)}
FUNCTIONS = {torch.sum: "sum", torch.mean: "mean"}
METHODS = {"sum": "sum", "mean": "mean"}
MODULES: dict = {}
