"""Solution of systems whose Cholesky factor is known."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_tensor
from fisherkernels.ops._library import define


def factor_solve(factor: Tensor, rhs: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ rhs of every sample.

    Args:
        factor: lower Cholesky factors L, shape [N, d, d]; what lies above the diagonal is not read.
        rhs: right-hand sides, shape [S, N, d].

    Returns:
        shape [S, N, d]; NaN throughout the solution of a right-hand side that is not finite, and of a factor of NaN.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.
        RuntimeError: where autograd would record the call; FisherMetric differentiates implicitly.
    """
    check_full_precision("factor_solve", "factor", factor)
    if factor.dim() != 3 or factor.shape[1] != factor.shape[2]:
        raise ValueError(f"factor_solve: factor must have shape [N, d, d], got {list(factor.shape)}")
    check_tensor("factor_solve", "rhs", rhs, factor)
    if rhs.dim() != 3 or rhs.shape[1:] != factor.shape[:2]:
        rows, size, _ = factor.shape
        raise ValueError(f"factor_solve: rhs must have shape [S, {rows}, {size}] beside factor, got {list(rhs.shape)}")
    return call(torch.ops.fisherkernels.factor_solve.default, _autograd, factor, rhs)


def solve_with_factor(factor: Tensor, rhs: Tensor) -> Tensor:
    """The twin of `factor_solve`."""
    poison = (rhs * 0).sum(2, keepdim=True)  # [S, N, 1], NaN beside anything that is not finite
    if rhs.shape[0] == 0:
        return rhs.new_empty(rhs.shape)
    solution = torch.cholesky_solve(rhs.permute(1, 2, 0), factor.tril())  # [N, d, S]
    return (solution.permute(2, 0, 1) + poison).contiguous()


def _forward_fake(factor: Tensor, rhs: Tensor) -> Tensor:
    return rhs.new_empty(rhs.shape)


_autograd = not_differentiable("factor_solve")

define(
    "factor_solve",
    "(Tensor factor, Tensor rhs) -> Tensor",
    twin=solve_with_factor,
    fake=_forward_fake,
    autograd=_autograd,
)
