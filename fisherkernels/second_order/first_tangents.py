"""Where a sweep of tangents starts: past the first Linear layer, with no more tangents than that layer has units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherkernels.linearize.last_linear import same_content
from fisherkernels.transforms import inside_transform

if TYPE_CHECKING:
    from fisherkernels.linearize import Linearization

_WELL_CONDITIONED = {torch.float32: 1e-3, torch.float64: 1e-7}  # smallest over largest pivot


def first_linear(lin: Linearization) -> tuple[int, Tensor] | None:
    """Index of the value h = W x + b, and W [h, n], where x [N, ...] goes nowhere but into that Linear layer, reshaped
    at most; None otherwise.
    """
    record, index = lin._record, 0
    while True:
        users = [i for i, step in enumerate(record.steps) if index in step.slots]
        if len(users) != 1 or lin._plan.output.index == index:
            return None
        (i,) = users
        if same_content(lin, i):
            index = i + 1
            continue
        if record.steps[i].rule != "linear" or len(record.shapes[index]) != 2:
            return None
        return i + 1, record.saved[i][1][0]


def compressed(t: Tensor) -> Tensor:
    """At most h tangents with the sum over k of t_k t_k^T of given ones [K, h], which is all that second derivatives
    summed over them depend on.
    """
    if t.shape[0] <= t.shape[1]:
        return t
    if not torch.compiler.is_compiling() and not inside_transform():
        factor, failed = torch.linalg.cholesky_ex(t.detach().t() @ t.detach())
        pivots = factor.diagonal()
        if not failed and pivots.amin() > _WELL_CONDITIONED[t.dtype] * pivots.amax():
            return _CholeskyTangents.apply(t, factor)
    # t loses nothing along these directions. What a change of t adds across them enters squared, so that they may be
    # constants of the gradient.
    directions, _ = torch.linalg.qr(t.detach())  # [K, h]
    return directions.t() @ t


class _CholeskyTangents(torch.autograd.Function):
    """L^T of t^T t = L L^T, for functions of that product only: their gradient for L^T is 2 L^T S, S symmetric, for t
    it is 2 t S.
    """

    @staticmethod
    def forward(ctx, t: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(t, factor)
        return factor.t().contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        t, factor = ctx.saved_tensors
        return t @ torch.linalg.solve_triangular(factor.t(), grad, upper=True), None
