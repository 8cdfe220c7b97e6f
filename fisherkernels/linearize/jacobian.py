"""Per-sample Jacobians from stacks of basis vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .plan import Ref
from .walk import expanded, push

if TYPE_CHECKING:
    from .linearization import Linearization


def all_tangents(lin: Linearization) -> Tensor:
    _require_per_sample_value(lin)
    return input_tangents(lin, lin._plan.output.index)


def input_tangents(lin: Linearization, index: int) -> Tensor:
    """The tangents of value ``index`` along each of x's dimensions, [d, N, ...]."""
    if lin._input.dim() != 2:
        raise ValueError(f"x: expected shape [N, d] for its tangents, got {list(lin._input.shape)}")
    _require_uncoupled(lin)
    return _push_basis(lin, index, 0, lin._input.shape[1])


def _push_basis(lin: Linearization, index: int, start: int, stop: int) -> Tensor:
    """Tangents of value ``index`` along x's dimensions start, ..., stop - 1."""
    record = lin._record
    basis = _basis(lin._input, start, stop)
    (pushed,) = push(record, basis, True, (index,), alike=True)
    shape = record.shapes[index]
    return basis.new_zeros((stop - start, *shape)) if pushed is None else expanded(pushed, shape)


def _basis(like: Tensor, start: int, stop: int) -> Tensor:
    """Unit vectors start, ..., stop - 1 of one sample, [K, 1, *like.shape[1:]]."""
    basis = like.new_zeros((stop - start, like.shape[1:].numel()))
    basis.diagonal(start).fill_(1)
    return basis.view(stop - start, 1, *like.shape[1:])


def _require_per_sample_value(lin: Linearization) -> None:
    batch = lin._record.batch
    if not isinstance(lin._plan.output, Ref) or not isinstance(lin.value, Tensor):
        raise ValueError(
            f"net: expected a value that is one tensor [N, ...], got a tuple of {len(lin.value)}; "
            "linearize a module that returns one of them"
        )
    if lin._input.dim() == 0 or lin.value.dim() == 0 or lin.value.shape[0] != batch:
        raise ValueError(f"net: expected a value of shape [{batch}, ...], one per sample, got {list(lin.value.shape)}")


def _require_uncoupled(lin: Linearization) -> None:
    if lin.coupled:
        raise ValueError(
            f"net: {', '.join(lin.coupled)} couples the samples of the batch, which then have no Jacobians of their "
            'own; use eval(), or batch_statistics="frozen" to hold the statistics of BatchNorm constant'
        )
