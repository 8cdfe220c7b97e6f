"""Fisher divergence between the approximate posterior and the model's posterior, per sample."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import (
    accumulate_dtype,
    check_matrix,
    check_paired,
    check_same_shape,
    check_tensor,
    samples_per_row,
)
from fisherkernels.ops._library import define


def posterior_residual(
    eps: Tensor,
    log_std: Tensor,
    z: Tensor,
    coefficients: Tensor | None,
    decoder_vjp: Tensor,
    prior_score: Tensor | None = None,
) -> Tensor:
    r"""½‖-ε/σ - s(z) - v‖² of every row, σ = exp(log_std).

    -ε/σ is the score of q(z|x) = N(μ, diag σ²) at z = μ + σ ε, s that of the prior, and
    v = J_f(z)ᵀ (x - f(z)) / γ that of the likelihood. The prior's score is, in this order:

    - `prior_score`, where given; z then has no influence and gets no gradient from here;
    - s_j = Σ_k k η_jk z_j^(k-1), k = 1..K, where `coefficients` η [d, K] are given (a factorable polynomial
      exponential family, log p = Σ_jk η_jk z_j^k + const);
    - -z, that of the standard normal, where neither is.

    Args:
        eps: standard normal draws, shape [R, d], R = L * M laid out sample-major.
        log_std: shape [M, d]; row r of the others belongs to row r % M.
        z: shape [R, d].
        coefficients: shape [d, K], or None.
        decoder_vjp: v, shape [R, d].
        prior_score: shape [R, d], or None.

    Returns:
        shape [R] (float32 for bfloat16 inputs).

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16, or mixed dtypes (coefficients may be
            float32 beside bfloat16 data).
        ValueError: for shapes that do not go together, mixed devices, or both coefficients and prior_score.

    Source: Elkhalil et al., AISTATS 2021, first term of eq. 11.
    """
    name = "posterior_residual"
    check_tensor(name, "eps", eps)
    check_matrix(name, "eps", eps)
    check_tensor(name, "log_std", log_std, eps)
    check_paired(name, "log_std", log_std, "eps", eps)
    check_tensor(name, "z", z, eps)
    check_same_shape(name, "z", z, "eps", eps)
    check_tensor(name, "decoder_vjp", decoder_vjp, eps)
    check_same_shape(name, "decoder_vjp", decoder_vjp, "eps", eps)
    if coefficients is not None:
        if prior_score is not None:
            raise ValueError(f"{name}: expected coefficients or prior_score or neither, got both")
        check_tensor(name, "coefficients", coefficients, eps, wide=True)
        shape, columns = list(coefficients.shape), eps.shape[1]
        if coefficients.dim() != 2 or shape[0] != columns or shape[1] == 0:
            raise ValueError(f"{name}: coefficients must have shape [{columns}, K] with K >= 1, got {shape}")
    if prior_score is not None:
        check_tensor(name, "prior_score", prior_score, eps)
        check_same_shape(name, "prior_score", prior_score, "eps", eps)
    args = (eps, log_std, z, coefficients, decoder_vjp, prior_score)
    return call(torch.ops.fisherkernels.posterior_residual.default, _autograd, *args)


def _horner(weights: Tensor, z: Tensor) -> Tensor:
    """Σ_k weights[:, k] z^k, elementwise in the columns of z."""
    total = torch.zeros_like(z)
    for column in weights.flip(1).unbind(1):
        total = total * z + column
    return total


def _score_and_slope(
    z: Tensor, coefficients: Tensor | None, prior_score: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if prior_score is not None:
        return prior_score.to(dtype), torch.zeros_like(prior_score, dtype=dtype)
    z = z.to(dtype)
    if coefficients is None:
        return -z, torch.full_like(z, -1)
    powers = torch.arange(1, coefficients.shape[1] + 1, dtype=dtype, device=z.device)  # [K]
    weights = coefficients.to(dtype) * powers  # [d, K]
    return _horner(weights, z), _horner(weights[:, 1:] * powers[:-1], z)


def _residual(eps, log_std, score, decoder_vjp) -> tuple[Tensor, Tensor]:
    """-ε/σ - s - v and 1/σ, both [R, d]."""
    dtype = score.dtype
    inverse_std = (-log_std.to(dtype)).exp().repeat(samples_per_row(log_std, eps), 1)  # [R, d]
    return -eps.to(dtype) * inverse_std - score - decoder_vjp.to(dtype), inverse_std


def _forward(eps, log_std, z, coefficients, decoder_vjp, prior_score) -> Tensor:
    score, _ = _score_and_slope(z, coefficients, prior_score, accumulate_dtype(eps.dtype))
    residual, _ = _residual(eps, log_std, score, decoder_vjp)
    return residual.square().sum(1) / 2


def _backward(grad_value, eps, log_std, z, coefficients, decoder_vjp, prior_score, output_mask) -> tuple[Tensor, ...]:
    dtype = accumulate_dtype(eps.dtype)
    score, slope = _score_and_slope(z, coefficients, prior_score, dtype)
    residual, inverse_std = _residual(eps, log_std, score, decoder_vjp)
    through = grad_value[:, None] * residual  # [R, d]
    grads = [eps.new_empty(0) for _ in output_mask]
    if output_mask[0]:
        grads[0] = (-through * inverse_std).to(eps.dtype)
    if output_mask[1]:
        pairs = (samples_per_row(log_std, eps), *log_std.shape)
        grads[1] = (through * inverse_std * eps.to(dtype)).reshape(pairs).sum(0).to(eps.dtype)
    if output_mask[2]:
        grads[2] = (-through * slope).to(eps.dtype)
    if coefficients is not None:
        grads[3] = coefficients.new_empty(0)
        if output_mask[3]:
            power, columns = through, []  # power = dL/dr z^(k-1)
            for order in range(1, coefficients.shape[1] + 1):
                columns.append(-order * power.sum(0))
                power = power * z.to(dtype)
            grads[3] = torch.stack(columns, dim=1).to(coefficients.dtype)
    if output_mask[4]:
        grads[4] = (-through).to(eps.dtype)
    if output_mask[5]:
        grads[5] = (-through).to(eps.dtype)
    return tuple(grad.contiguous() for grad in grads)


def _forward_fake(eps, log_std, z, coefficients, decoder_vjp, prior_score) -> Tensor:
    return eps.new_empty(eps.shape[0], dtype=accumulate_dtype(eps.dtype))


def _backward_fake(grad_value, eps, log_std, z, coefficients, decoder_vjp, prior_score, output_mask):
    inputs = (eps, log_std, z, eps if coefficients is None else coefficients, decoder_vjp, eps)
    return tuple(t.new_empty(t.shape if wanted else (0,)) for t, wanted in zip(inputs, output_mask, strict=True))


class _PosteriorResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        ctx.save_for_backward(*args)
        return below_autograd(torch.ops.fisherkernels.posterior_residual.default, *args)

    @staticmethod
    def backward(ctx, grad_value):
        sources = (grad_value, *ctx.saved_tensors)
        mask = list(ctx.needs_input_grad)
        mask[2] = mask[2] and sources[6] is None
        op = torch.ops.fisherkernels.posterior_residual_backward.default
        return single_backward("posterior_residual", mask, below_autograd(op, *sources, mask), sources)


def _autograd(*args: Tensor | None) -> Tensor:
    if needs_graph(*args):
        return _PosteriorResidual.apply(*args)
    return below_autograd(torch.ops.fisherkernels.posterior_residual.default, *args)


define(
    "posterior_residual",
    "(Tensor eps, Tensor log_std, Tensor z, Tensor? coefficients, Tensor decoder_vjp, Tensor? prior_score) -> Tensor",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "posterior_residual_backward",
    "(Tensor grad_value, Tensor eps, Tensor log_std, Tensor z, Tensor? coefficients, Tensor decoder_vjp,"
    " Tensor? prior_score, bool[6] output_mask) -> (Tensor grad_eps, Tensor grad_log_std, Tensor grad_z,"
    " Tensor grad_coefficients, Tensor grad_decoder_vjp, Tensor grad_prior_score)",
    twin=_backward,
    fake=_backward_fake,
)
