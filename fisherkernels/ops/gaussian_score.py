"""Score of a Gaussian likelihood: its residual and the per-row score-matching value, in one pass."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import (
    accumulate_dtype,
    check_matrix,
    check_paired,
    check_tensor,
    samples_per_row,
)
from fisherkernels.ops._library import define


def gaussian_score(x: Tensor, mean: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Residual r = (x - mean) / variance and the value ½ Σ_j r_j² - Σ_j 1/variance_j of every row.

    The value is ½‖∇x log p‖² + Δx log p of p(x) = N(mean, diag variance), the summand of a score-matching
    objective; the residual is what the decoder's Jacobian is multiplied with in ∇z log p(x|z).

    Args:
        x: data, shape [M, D].
        mean: decoder outputs, shape [R, D], R = L * M laid out sample-major: row r belongs to x's row r % M.
        variance: a positive float, a 0-d tensor or shape [D], in squared units of x.

    Returns:
        value [R] (float32 for bfloat16 inputs) and residual [R, D].

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16, or mixed dtypes (variance may be
            float32 beside bfloat16 data).
        ValueError: for shapes that do not go together, mixed devices, or a float variance <= 0.

    Source: Hyvärinen, JMLR 2005, eq. 4; Elkhalil et al., AISTATS 2021, eq. 11.
    """
    check_tensor("gaussian_score", "x", x)
    check_tensor("gaussian_score", "mean", mean, x)
    check_matrix("gaussian_score", "mean", mean)
    check_paired("gaussian_score", "x", x, "mean", mean)
    if not isinstance(variance, Tensor):
        if not variance > 0:
            raise ValueError(f"gaussian_score: variance must be positive, got {variance}")
        variance = torch.full((), variance, dtype=accumulate_dtype(x.dtype), device=x.device)
    check_tensor("gaussian_score", "variance", variance, x, wide=True)
    columns = mean.shape[1]
    if variance.dim() != 0 and variance.shape != (columns,):
        raise ValueError(f"gaussian_score: variance must be 0-d or have shape [{columns}], got {list(variance.shape)}")
    return call(torch.ops.fisherkernels.gaussian_score.default, _autograd, x, mean, variance)


def _forward(x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    accumulate = accumulate_dtype(x.dtype)
    samples = samples_per_row(x, mean)
    gamma = variance.to(accumulate)
    residual = (x.to(accumulate) - mean.to(accumulate).reshape(samples, *x.shape)) / gamma  # [L, M, D]
    residual = residual.reshape(mean.shape)
    value = residual.square().sum(1) / 2 - (1 / gamma).expand(mean.shape[1]).sum()
    return value, residual.to(x.dtype).contiguous()


def _backward(
    grad_value: Tensor,
    grad_residual: Tensor | None,
    residual: Tensor,
    variance: Tensor,
    x_rows: int,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = residual.shape
    accumulate = accumulate_dtype(residual.dtype)
    r, gamma = residual.to(accumulate), variance.to(accumulate)
    through = grad_value[:, None] * r  # dL/dr, [R, D]
    if grad_residual is not None:
        through = through + grad_residual.to(accumulate)
    grad_x = residual.new_empty(0)
    grad_mean = residual.new_empty(0)
    grad_variance = variance.new_empty(0)
    if output_mask[0]:
        grad_x = (through / gamma).reshape(rows // max(x_rows, 1), x_rows, columns).sum(0).to(residual.dtype)
    if output_mask[1]:
        grad_mean = (-through / gamma).to(residual.dtype).contiguous()
    if output_mask[2]:
        per_column = grad_value.sum() / gamma.square() - (through * r).sum(0) / gamma  # [D]
        grad_variance = (per_column if variance.dim() else per_column.sum()).to(variance.dtype)
    return grad_x, grad_mean, grad_variance


def _forward_fake(x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape[0], dtype=accumulate_dtype(mean.dtype)), mean.new_empty(mean.shape)


def _backward_fake(grad_value, grad_residual, residual, variance, x_rows, output_mask):
    return (
        residual.new_empty((x_rows, residual.shape[1]) if output_mask[0] else (0,)),
        residual.new_empty(residual.shape if output_mask[1] else (0,)),
        variance.new_empty(variance.shape if output_mask[2] else (0,)),
    )


class _GaussianScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, variance):
        value, residual = below_autograd(torch.ops.fisherkernels.gaussian_score.default, x, mean, variance)
        ctx.save_for_backward(residual, variance)
        ctx.set_materialize_grads(False)
        ctx.x_rows = x.shape[0]
        return value, residual

    @staticmethod
    def backward(ctx, grad_value, grad_residual):
        residual, variance = ctx.saved_tensors
        if grad_value is None:
            grad_value = residual.new_zeros(residual.shape[0], dtype=accumulate_dtype(residual.dtype))
        mask = ctx.needs_input_grad
        grads = below_autograd(
            torch.ops.fisherkernels.gaussian_score_backward.default,
            grad_value,
            grad_residual,
            residual,
            variance,
            ctx.x_rows,
            mask,
        )
        return single_backward("gaussian_score", mask, grads, (grad_value, grad_residual, residual, variance))


def _autograd(x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    if needs_graph(x, mean, variance):
        return _GaussianScore.apply(x, mean, variance)
    return below_autograd(torch.ops.fisherkernels.gaussian_score.default, x, mean, variance)


define(
    "gaussian_score",
    "(Tensor x, Tensor mean, Tensor variance) -> (Tensor value, Tensor residual)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "gaussian_score_backward",
    "(Tensor grad_value, Tensor? grad_residual, Tensor residual, Tensor variance, int x_rows,"
    " bool[3] output_mask) -> (Tensor grad_x, Tensor grad_mean, Tensor grad_variance)",
    twin=_backward,
    fake=_backward_fake,
)
