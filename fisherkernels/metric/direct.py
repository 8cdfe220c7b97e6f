"""The direct route: the metric's Cholesky factor from the tangent stack."""

import torch
from torch import Tensor

from fisherkernels import ops
from fisherkernels.metric.operator import MetricOperator


def factor_and_solve(
    operator: MetricOperator, rhs: Tensor, data: Tensor | None, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """M^-1 (rhs + J^T data) [S, N, d] and M's Cholesky factor [N, d, d]; rhs [S, N, d], data [S, N, D] or None."""
    reduced = _reduced_tangents(operator)
    if reduced is not None:
        ones = rhs.new_ones(1, 1)
        return ops.metric_solve(reduced, ones, rhs if data is None else rhs + operator.pull(data), None)
    rows, width = operator.mean.shape
    if rows * width * operator.columns * rhs.element_size() <= memory_budget:
        tangents = operator.linearization.tangents().flatten(2)  # [d, N, D]
        return ops.metric_solve(tangents, operator.precision, rhs, data)
    if operator.last is not None:
        from fisherkernels.kernels import last_layer_gram

        tangents = operator.last.tangents()  # [d, N, h]
        gram = last_layer_gram(tangents, operator.last.weight, operator.precision)
        metric = gram + torch.eye(width, dtype=gram.dtype, device=gram.device)
    else:
        metric = operator.dense(memory_budget)
    factor, status = torch.linalg.cholesky_ex(metric)
    factor = torch.where((status == 0)[:, None, None], factor, factor.new_full((), torch.nan))
    return ops.factor_solve(factor, rhs if data is None else rhs + operator.pull(data)), factor


def _reduced_tangents(operator: MetricOperator) -> Tensor | None:
    """V [d, N, h] with V V^T = J^T N^-1 J per sample, where that saves work: V = T C, C C^T = W^T N^-1 W."""
    if operator.last is None:
        return None
    columns, width = operator.last.weight.shape
    tangents = operator.mean.numel()
    per_tangent = operator.mean.shape[1] / 2
    forming = width**2 * (columns + width / 3)
    if tangents * (width + per_tangent) * (columns - width) <= forming:
        return None
    gram = operator.weight_gram()
    jitter = torch.finfo(gram.dtype).eps * gram.diagonal().mean()
    root, status = torch.linalg.cholesky_ex(gram + jitter * torch.eye(width, dtype=gram.dtype, device=gram.device))
    if torch.compiler.is_compiling() or gram.device.type != "cpu" or bool(status == 0):
        return operator.last.tangents() @ root
    return None
