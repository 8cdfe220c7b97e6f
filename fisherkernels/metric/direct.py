"""The direct route: the metric's Cholesky factor from the tangent stack."""

import torch
from torch import Tensor

from fisherkernels import ops
from fisherkernels.kernels import last_layer_gram
from fisherkernels.metric.operator import MetricOperator

_MARGIN = 2.0  # a small square product and a factorisation run at half the speed of the tall products they replace


def factor_and_solve(
    operator: MetricOperator, rhs: Tensor, data: Tensor | None, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """M^-1 (rhs + J^T data) [S, N, d] and M's Cholesky factor [N, d, d]; rhs [S, N, d], data [S, N, D] or None."""
    if operator.chain is not None:
        factor = ops.relu_metric_factor(*operator.chain, operator.weight_gram())
        return ops.factor_solve(factor, rhs if data is None else rhs + operator.pull(data)), factor
    reduced = _reduced_tangents(operator)
    if reduced is not None:
        ones = rhs.new_ones(1, 1)
        return ops.metric_solve(reduced, ones, rhs if data is None else rhs + operator.pull(data), None)
    rows, width = operator.mean.shape
    if rows * width * operator.columns * rhs.element_size() <= memory_budget:
        return ops.metric_solve(operator.tangents(), operator.precision, rhs, data)
    if operator.last is not None:
        tangents = operator.last.tangents()  # [d, N, h]
        gram = last_layer_gram(tangents, operator.last.weight, operator.precision)
        metric = gram + torch.eye(width, dtype=gram.dtype, device=gram.device)
    else:
        metric = operator.dense(memory_budget)
    factor = cholesky_factor(metric)
    return ops.factor_solve(factor, rhs if data is None else rhs + operator.pull(data)), factor


def cholesky_factor(metric: Tensor) -> Tensor:
    """Lower Cholesky factors [N, d, d], NaN throughout for a matrix that is not positive definite."""
    factor, status = torch.linalg.cholesky_ex(metric)
    return torch.where((status == 0)[:, None, None], factor, factor.new_full((), torch.nan))


def differentiable_solve(metric: Tensor, rhs: Tensor) -> Tensor:
    """M^-1 rhs [K, N, d] of M [N, d, d] in operations that torch.func transforms."""
    factor = torch.linalg.cholesky(metric)
    return torch.cholesky_solve(rhs.permute(1, 2, 0), factor).permute(2, 0, 1)


def _reduced_tangents(operator: MetricOperator) -> Tensor | None:
    """V [d, N, h] with V V^T = J^T N^-1 J per sample, where that saves work: V = T C, C C^T = W^T N^-1 W."""
    if operator.last is None:
        return None
    columns, width = operator.last.weight.shape
    tangents = operator.mean.numel()
    per_tangent = operator.mean.shape[1] / 2
    forming = width**2 * (columns + width / 3)
    if tangents * (width + per_tangent) * (columns - width) <= _MARGIN * forming:
        return None
    root = _cholesky_root(operator.weight_gram())
    return None if root is None else operator.last.tangents() @ root


def _cholesky_root(gram: Tensor) -> Tensor | None:
    """C with C C^T = W^T N^-1 W [h, h] up to rounding; None where a look at the outcome shows that there is none.

    A layer of less than full rank needs a larger multiple of the identity, which costs accuracy: it is taken where
    nothing may look, under torch.compile and off the CPU.
    """
    diagonal, unit = gram.diagonal(), torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    eps = torch.finfo(gram.dtype).eps
    root, status = torch.linalg.cholesky_ex(gram + eps * diagonal.mean() * unit)
    if not torch.compiler.is_compiling() and gram.device.type == "cpu":
        return root if bool(status == 0) else None
    safe, failed = torch.linalg.cholesky_ex(gram + eps * diagonal.sum() * unit)
    return torch.where(status == 0, root, torch.where(failed == 0, safe, torch.nan))
