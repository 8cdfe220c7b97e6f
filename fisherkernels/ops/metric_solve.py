"""The direct solution of systems with the Fisher metric, from the Jacobian in one pass."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_tensor
from fisherkernels.ops._library import define
from fisherkernels.ops.factor_solve import solve_with_factor


def metric_solve(jacobian: Tensor, precision: Tensor, rhs: Tensor, data: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Solutions of M x = rhs + Jᵀ data with the metric M = Jᵀ N⁻¹ J + I of every sample, and M's Cholesky factor.

    J is read once, for both the Gram matrix Jᵀ N⁻¹ J and Jᵀ data. With rhs = η and data = N^(-1/2) n, both noises
    standard normal, a solution is a draw from N(0, M⁻¹).

    Args:
        jacobian: the columns of J as a stack of tangents, shape [d, N, D]; any strides.
        precision: N⁻¹, the inverse noise variance in inverse squared units of the data, shape [1 or N, 1 or D].
        rhs: latent-side right-hand sides, shape [S, N, d]; S = 0 asks for the factor alone.
        data: data-side right-hand sides, shape [S, N, D], or None.

    Returns:
        solution [S, N, d] and factor [N, d, d], lower triangular with zeros above the diagonal, M = factor factorᵀ.
        A sample whose M is not finite or not positive definite has NaN in both; a right-hand side that is not finite
        has NaN in its own solution. No other sample is touched.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.
        RuntimeError: where autograd would record the call; FisherMetric differentiates implicitly.

    Source: Zacherl et al., Entropy 2021, the metric of their Gaussian approximation at fixed latent mean.
    """
    check_full_precision("metric_solve", "jacobian", jacobian)
    if jacobian.dim() != 3:
        raise ValueError(
            f"metric_solve: jacobian must have three dimensions [d, N, D], got shape {list(jacobian.shape)}"
        )
    size, rows, columns = jacobian.shape
    check_tensor("metric_solve", "precision", precision, jacobian)
    if precision.dim() != 2 or precision.shape[0] not in (1, rows) or precision.shape[1] not in (1, columns):
        raise ValueError(
            f"metric_solve: precision must have shape [1 or {rows}, 1 or {columns}] beside jacobian, "
            f"got {list(precision.shape)}"
        )
    check_tensor("metric_solve", "rhs", rhs, jacobian)
    if rhs.dim() != 3 or rhs.shape[1:] != (rows, size):
        raise ValueError(
            f"metric_solve: rhs must have shape [S, {rows}, {size}] beside jacobian, got {list(rhs.shape)}"
        )
    if data is not None:
        check_tensor("metric_solve", "data", data, jacobian)
        if data.shape != (rhs.shape[0], rows, columns):
            raise ValueError(
                f"metric_solve: data must have shape [{rhs.shape[0]}, {rows}, {columns}] beside jacobian and rhs, "
                f"got {list(data.shape)}"
            )
    return call(torch.ops.fisherkernels.metric_solve.default, _autograd, jacobian, precision, rhs, data)


def _forward(jacobian: Tensor, precision: Tensor, rhs: Tensor, data: Tensor | None) -> tuple[Tensor, Tensor]:
    tangents = jacobian.transpose(0, 1)  # [N, d, D]
    gram = (tangents * precision[:, None]) @ tangents.mT  # [N, d, d]
    factor, info = torch.linalg.cholesky_ex(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
    failed = (info != 0) | ~factor.diagonal(dim1=1, dim2=2).isfinite().all(1)
    factor = factor.masked_fill(failed[:, None, None], torch.nan).tril()
    if data is not None:
        rhs = rhs + (tangents @ data.permute(1, 2, 0)).permute(2, 0, 1)
    return solve_with_factor(factor, rhs), factor.contiguous()


def _forward_fake(jacobian: Tensor, precision: Tensor, rhs: Tensor, data: Tensor | None) -> tuple[Tensor, Tensor]:
    size, rows, _ = jacobian.shape
    return rhs.new_empty(rhs.shape), jacobian.new_empty(rows, size, size)


_autograd = not_differentiable("metric_solve")

define(
    "metric_solve",
    "(Tensor jacobian, Tensor precision, Tensor rhs, Tensor? data) -> (Tensor solution, Tensor factor)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
