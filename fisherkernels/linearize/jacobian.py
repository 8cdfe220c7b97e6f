"""Per-sample Jacobians from stacks of basis vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .plan import Ref
from .walk import expanded, pull, push, vector_size

if TYPE_CHECKING:
    from .linearization import Linearization


def jacobian_of(lin: Linearization, memory_budget: float) -> Tensor:
    require_memory_budget(memory_budget)
    require_per_sample_value(lin)
    require_uncoupled(lin)
    index = lin._plan.output.index
    inputs, outputs = math.prod(lin._input.shape[1:]), math.prod(lin.value.shape[1:])
    tangents = inputs <= outputs
    size = vector_size(lin._record, index, tangents) * lin.value.element_size()
    side, width = (_push_basis, outputs) if tangents else (_pull_basis, inputs)
    stack = _in_chunks(
        lambda start, stop: side(lin, index, start, stop).reshape(stop - start, lin._record.batch, width),
        inputs if tangents else outputs,
        max(1, int(memory_budget // max(size, 1))),
    )
    return stack.permute(1, 2, 0) if tangents else stack.permute(1, 0, 2)


def _in_chunks(piece: Callable[[int, int], Tensor], count: int, size: int) -> Tensor:
    """Rows 0, ..., count - 1 of a stack, made ``size`` at a time."""
    if size >= count:
        return piece(0, count)
    first = piece(0, size)
    ranges = [(start, min(start + size, count)) for start in range(size, count, size)]
    if first.requires_grad:
        return torch.cat([first, *(piece(*limits) for limits in ranges)])
    stack = first.new_empty((count, *first.shape[1:]))
    stack[:size] = first
    del first
    for start, stop in ranges:
        stack[start:stop] = piece(start, stop)
    return stack


def all_tangents(lin: Linearization) -> Tensor:
    require_per_sample_value(lin)
    return input_tangents(lin, lin._plan.output.index)


def input_tangents(lin: Linearization, index: int) -> Tensor:
    """The tangents of value ``index`` along each of x's dimensions, [d, N, ...]."""
    if lin._input.dim() != 2:
        raise ValueError(f"x: expected shape [N, d] for its tangents, got {list(lin._input.shape)}")
    require_uncoupled(lin)
    return _push_basis(lin, index, 0, lin._input.shape[1])


def _push_basis(lin: Linearization, index: int, start: int, stop: int) -> Tensor:
    """Tangents of value ``index`` along x's dimensions start, ..., stop - 1."""
    record = lin._record
    basis = _basis(lin._input, start, stop)
    (pushed,) = push(record, basis, True, (index,), alike=True)
    shape = record.shapes[index]
    return basis.new_zeros((stop - start, *shape)) if pushed is None else expanded(pushed, shape)


def _pull_basis(lin: Linearization, index: int, start: int, stop: int) -> Tensor:
    """Cotangents of x from the entries start, ..., stop - 1 of value ``index``."""
    basis = _basis(lin.value, start, stop)
    pulled = pull(lin._record, [*[None] * index, basis], True, alike=True)
    shape = lin._record.shapes[0]
    return basis.new_zeros((stop - start, *shape)) if pulled is None else expanded(pulled, shape)


def _basis(like: Tensor, start: int, stop: int) -> Tensor:
    """Unit vectors start, ..., stop - 1 of one sample, [K, 1, *like.shape[1:]]."""
    basis = like.new_zeros((stop - start, math.prod(like.shape[1:])))
    basis.diagonal(start).fill_(1)
    return basis.view(stop - start, 1, *like.shape[1:])


def require_memory_budget(memory_budget: float) -> None:
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, (int, float)):
        raise TypeError(f"memory_budget: expected a number of bytes, got {type(memory_budget).__name__}")
    if not memory_budget > 0:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {memory_budget}")


def require_per_sample_value(lin: Linearization) -> None:
    batch = lin._record.batch
    if not isinstance(lin._plan.output, Ref) or not isinstance(lin.value, Tensor):
        raise ValueError(
            f"net: expected a value that is one tensor [N, ...], got a tuple of {len(lin.value)}; "
            "linearize a module that returns one of them"
        )
    if lin._input.dim() == 0 or lin.value.dim() == 0 or lin.value.shape[0] != batch:
        raise ValueError(f"net: expected a value of shape [{batch}, ...], one per sample, got {list(lin.value.shape)}")


def require_uncoupled(lin: Linearization) -> None:
    if lin.coupled:
        raise ValueError(
            f"net: {', '.join(lin.coupled)} couples the samples of the batch, which then have no Jacobians of their "
            'own; use eval(), or batch_statistics="frozen" to hold the statistics of BatchNorm constant'
        )
