"""The encoder cotangent whose vector-Jacobian product is the stability term's ∇x log q(z|x)."""

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


def stability_cotangent(eps: Tensor, log_std: Tensor) -> Tensor:
    """[ε/σ, ε² - 1], σ = exp(log_std).

    That is the derivative of log q(z|x) with respect to (μ, log σ), z = μ + σ ε held fixed.

    Args:
        eps: standard normal draws, shape [R, d], R = L * M laid out sample-major.
        log_std: shape [M, d]; row r of eps belongs to row r % M.

    Returns:
        shape [R, 2d], the mean half first.

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.

    Source: Elkhalil et al., AISTATS 2021, third term of eq. 11, with z held fixed.
    """
    check_tensor("stability_cotangent", "eps", eps)
    check_tensor("stability_cotangent", "log_std", log_std, eps)
    check_matrix("stability_cotangent", "eps", eps)
    check_paired("stability_cotangent", "log_std", log_std, "eps", eps)
    return call(torch.ops.fisherkernels.stability_cotangent.default, _autograd, eps, log_std)


def _forward(eps: Tensor, log_std: Tensor) -> Tensor:
    accumulate = accumulate_dtype(eps.dtype)
    samples = samples_per_row(log_std, eps)
    noise = eps.to(accumulate).reshape(samples, *log_std.shape)  # [L, M, d]
    halves = torch.cat([noise * (-log_std.to(accumulate)).exp(), noise.square() - 1], dim=2)
    return halves.reshape(eps.shape[0], 2 * eps.shape[1]).to(eps.dtype)


def _backward(grad: Tensor, eps: Tensor, log_std: Tensor, output_mask: list[bool]) -> tuple[Tensor, Tensor]:
    accumulate = accumulate_dtype(eps.dtype)
    shape = (samples_per_row(log_std, eps), *log_std.shape)
    noise = eps.to(accumulate).reshape(shape)  # [L, M, d]
    grad_mean_half, grad_std_half = (half.to(accumulate).reshape(shape) for half in grad.chunk(2, dim=1))
    through = grad_mean_half * (-log_std.to(accumulate)).exp()
    grad_eps, grad_log_std = eps.new_empty(0), log_std.new_empty(0)
    if output_mask[0]:
        grad_eps = (through + 2 * noise * grad_std_half).reshape(eps.shape).to(eps.dtype)
    if output_mask[1]:
        grad_log_std = (-through * noise).sum(0).to(log_std.dtype)
    return grad_eps, grad_log_std


def _forward_fake(eps: Tensor, log_std: Tensor) -> Tensor:
    return eps.new_empty(eps.shape[0], 2 * eps.shape[1])


def _backward_fake(grad, eps, log_std, output_mask):
    return (
        eps.new_empty(eps.shape if output_mask[0] else (0,)),
        log_std.new_empty(log_std.shape if output_mask[1] else (0,)),
    )


class _StabilityCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, eps, log_std):
        ctx.save_for_backward(eps, log_std)
        return below_autograd(torch.ops.fisherkernels.stability_cotangent.default, eps, log_std)

    @staticmethod
    def backward(ctx, grad):
        mask = ctx.needs_input_grad
        op = torch.ops.fisherkernels.stability_cotangent_backward.default
        sources = (grad, *ctx.saved_tensors)
        return single_backward("stability_cotangent", mask, below_autograd(op, *sources, mask), sources)


def _autograd(eps: Tensor, log_std: Tensor) -> Tensor:
    if needs_graph(eps, log_std):
        return _StabilityCotangent.apply(eps, log_std)
    return below_autograd(torch.ops.fisherkernels.stability_cotangent.default, eps, log_std)


define(
    "stability_cotangent",
    "(Tensor eps, Tensor log_std) -> Tensor",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "stability_cotangent_backward",
    "(Tensor grad, Tensor eps, Tensor log_std, bool[2] output_mask) -> (Tensor grad_eps, Tensor grad_log_std)",
    twin=_backward,
    fake=_backward_fake,
)
