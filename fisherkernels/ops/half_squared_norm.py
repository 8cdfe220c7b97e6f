"""Half the squared Euclidean norm of every row."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import accumulate_dtype, check_tensor
from fisherkernels.ops._library import define


def half_squared_norm(t: Tensor) -> Tensor:
    """½ Σ_j t_j² of every row.

    Args:
        t: shape [R, ...]; everything after the first dimension is one row.

    Returns:
        shape [R] (float32 for bfloat16 input).

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16.
        ValueError: for a 0-d tensor.
    """
    check_tensor("half_squared_norm", "t", t)
    if t.dim() == 0:
        raise ValueError("half_squared_norm: t must have at least one dimension [rows, ...], got shape []")
    if t.dim() != 2:
        t = t.reshape(t.shape[0], t.shape[1:].numel())
    return call(torch.ops.fisherkernels.half_squared_norm.default, _autograd, t)


def _forward(t: Tensor) -> Tensor:
    return t.to(accumulate_dtype(t.dtype)).square().sum(1) / 2


def _backward(grad_value: Tensor, t: Tensor) -> Tensor:
    return (grad_value[:, None] * t).to(t.dtype).contiguous()


def _forward_fake(t: Tensor) -> Tensor:
    return t.new_empty(t.shape[0], dtype=accumulate_dtype(t.dtype))


def _backward_fake(grad_value: Tensor, t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


class _HalfSquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        ctx.save_for_backward(t)
        return below_autograd(torch.ops.fisherkernels.half_squared_norm.default, t)

    @staticmethod
    def backward(ctx, grad_value):
        sources = (grad_value, *ctx.saved_tensors)
        grad = below_autograd(torch.ops.fisherkernels.half_squared_norm_backward.default, *sources)
        return single_backward("half_squared_norm", (True,), (grad,), sources)


def _autograd(t: Tensor) -> Tensor:
    if needs_graph(t):
        return _HalfSquaredNorm.apply(t)
    return below_autograd(torch.ops.fisherkernels.half_squared_norm.default, t)


define("half_squared_norm", "(Tensor t) -> Tensor", twin=_forward, fake=_forward_fake, autograd=_autograd)
define(
    "half_squared_norm_backward",
    "(Tensor grad_value, Tensor t) -> Tensor",
    twin=_backward,
    fake=_backward_fake,
)
