"""The factored metric of a ReLU network, from its active units only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_tensor
from fisherkernels.ops._library import define


def relu_metric_factor(first: Tensor, weights: Sequence[Tensor], values: Sequence[Tensor], gram: Tensor) -> Tensor:
    r"""Lower Cholesky factors of the metric M = Jᵀ N⁻¹ J + I of a network that is linear between ReLUs, per sample.

    With m_l = [values[l] > 0] the units of layer l that are on in a sample, and G = ``gram`` = Wᵀ N⁻¹ W of the last
    layer W,

        T = diag(m_L) W_L diag(m_(L-1)) ... W_2 diag(m_1) W_1,        M = Tᵀ G T + I = F Fᵀ.

    Where about a quarter of the units are on, as after some training, the products shrink to a tenth: the native
    kernel multiplies only rows and columns of units that are on, sample by sample, and J never exists.

    Args:
        first: W_1, shape [h_1, d].
        weights: W_2, ..., W_L, shapes [h_l, h_(l-1)]; empty for one hidden layer.
        values: what the ReLUs gave, shapes [N, h_1], ..., [N, h_L].
        gram: Wᵀ N⁻¹ W, shape [h_L, h_L], symmetric.

    Returns:
        F, shape [N, d, d]; NaN throughout for a sample whose M is not positive definite or not finite.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.
        RuntimeError: where autograd would record the call; FisherMetric differentiates implicitly.

    Source: Zacherl, Frank and Enßlin, Entropy 2021, eq. 20, for the metric.
    """
    name = "relu_metric_factor"
    check_full_precision(name, "first", first)
    _check_matrix(name, "first", first, first, None, None)
    weights, values = list(weights), list(values)
    if len(values) != len(weights) + 1:
        raise ValueError(
            f"{name}: expected one tensor of values for first and each of the {len(weights)} weights, got {len(values)}"
        )
    width, rows = first.shape[0], None
    for i, value in enumerate(values):
        if i > 0:
            _check_matrix(name, f"weights[{i - 1}]", weights[i - 1], first, None, width)
            width = weights[i - 1].shape[0]
        _check_matrix(name, f"values[{i}]", value, first, rows, width)
        rows = value.shape[0]
    _check_matrix(name, "gram", gram, first, width, width)
    return call(torch.ops.fisherkernels.relu_metric_factor.default, _autograd, first, weights, values, gram)


def _check_matrix(name: str, argument: str, value: Tensor, like: Tensor, rows: int | None, columns: int | None) -> None:
    check_tensor(name, argument, value, like)
    wrong = value.dim() != 2 or rows not in (None, value.shape[0]) or columns not in (None, value.shape[1])
    if wrong:
        expected = ", ".join("any" if size is None else str(size) for size in (rows, columns))
        raise ValueError(f"{name}: {argument} must have shape [{expected}], got {list(value.shape)}")


def _forward(first: Tensor, weights: list[Tensor], values: list[Tensor], gram: Tensor) -> Tensor:
    on = [~(value <= 0) for value in values]  # so is NaN
    zero = first.new_zeros(())
    tangents = torch.where(on[0], first.t()[:, None], zero)  # [d, N, h]
    for weight, mask in zip(weights, on[1:], strict=True):
        tangents = torch.where(mask, tangents @ weight.t(), zero)
    stack = tangents.transpose(0, 1)  # [N, d, h]
    metric = stack @ gram @ stack.mT
    metric = metric + torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    factor, status = torch.linalg.cholesky_ex(metric)
    usable = (status == 0) & metric.isfinite().flatten(1).all(1)
    return torch.where(usable[:, None, None], factor, factor.new_full((), torch.nan)).contiguous()


def _forward_fake(first: Tensor, weights: list[Tensor], values: list[Tensor], gram: Tensor) -> Tensor:
    return first.new_empty((values[0].shape[0], first.shape[1], first.shape[1]))


_autograd = not_differentiable("relu_metric_factor")

define(
    "relu_metric_factor",
    "(Tensor first, Tensor[] weights, Tensor[] values, Tensor gram) -> Tensor",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
