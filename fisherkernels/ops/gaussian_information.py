"""What a diagonal Gaussian posterior says, row by row: divergence from the prior, Fisher information, entropy power."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import accumulate_dtype, check_matrix, check_same_shape, check_tensor
from fisherkernels.ops._library import define


def gaussian_information(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of q = N(μ, diag σ²), σ = exp(log_std), in every row:

    - KL(q ‖ N(0, I)) = ½ Σ_j (μ_j² + σ_j² - 1 - 2 log σ_j), in nats;
    - tr J = Σ_j 1/σ_j², the trace of the Fisher information of z ~ q about its location;
    - N = exp(2 H(q)/d) / (2πe) = (Π_j σ_j²)^(1/d), the entropy power.

    N · tr J >= d, with equality where all σ_j are equal: the Fisher-Shannon plane's N J = K curve.

    Args:
        mean: μ, shape [N, d], d >= 1.
        log_std: log σ, shape [N, d].

    Returns:
        KL [N], tr J [N] in units of 1/z², entropy power [N] in units of z² (float32 for bfloat16 inputs). Where a
        quantity's gradient is zero, so is its part of the gradient, even where it has overflowed.

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16, or mixed dtypes.
        ValueError: for shapes that differ, no columns, or mixed devices.

    Source: Zheng et al., "Understanding VAEs in Fisher-Shannon Plane", 2018, eq. 2, 4, 9 (whose bracket is misplaced)
    and 10.
    """
    name = "gaussian_information"
    check_tensor(name, "mean", mean)
    check_matrix(name, "mean", mean)
    check_tensor(name, "log_std", log_std, mean)
    check_same_shape(name, "log_std", log_std, "mean", mean)
    if mean.shape[1] == 0:
        raise ValueError(f"{name}: mean must have at least one column, got shape {list(mean.shape)}")
    return call(torch.ops.fisherkernels.gaussian_information.default, _autograd, mean, log_std)


def _forward(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mu, log_sigma = (t.to(accumulate_dtype(t.dtype)) for t in (mean, log_std))
    kl = (mu.square() + (torch.expm1(2 * log_sigma) - 2 * log_sigma)).sum(1) / 2
    return kl, (-2 * log_sigma).exp().sum(1), (2 * log_sigma.mean(1)).exp()


def _backward(
    grad_kl: Tensor | None,
    grad_trace: Tensor | None,
    grad_entropy_power: Tensor | None,
    mean: Tensor,
    log_std: Tensor,
    entropy_power: Tensor,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor]:
    log_sigma = log_std.to(entropy_power.dtype)
    grad_mean, grad_log_std = mean.new_empty(0), log_std.new_empty(0)
    if output_mask[0]:
        through = torch.zeros_like(mean) if grad_kl is None else grad_kl[:, None] * mean
        grad_mean = through.to(mean.dtype).contiguous()
    if output_mask[1]:
        through = torch.zeros_like(log_sigma)
        if grad_kl is not None:
            through = through + _weighted(grad_kl, torch.expm1(2 * log_sigma))
        if grad_trace is not None:
            through = through - _weighted(2 * grad_trace, (-2 * log_sigma).exp())
        if grad_entropy_power is not None:
            through = through + _weighted(2 * grad_entropy_power / mean.shape[1], entropy_power[:, None])
        grad_log_std = through.to(log_std.dtype).contiguous()
    return grad_mean, grad_log_std


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Rows [N, ...] times weights [N], 0 where the weight is 0."""
    return torch.where(weight[:, None] == 0, 0, weight[:, None] * value)


def _forward_fake(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kl, trace, entropy_power = (mean.new_empty(mean.shape[0], dtype=accumulate_dtype(mean.dtype)) for _ in range(3))
    return kl, trace, entropy_power


def _backward_fake(grad_kl, grad_trace, grad_entropy_power, mean, log_std, entropy_power, output_mask):
    return tuple(
        t.new_empty(t.shape if wanted else (0,)) for t, wanted in zip((mean, log_std), output_mask, strict=True)
    )


class _GaussianInformation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, log_std):
        outputs = below_autograd(torch.ops.fisherkernels.gaussian_information.default, mean, log_std)
        ctx.save_for_backward(mean, log_std, outputs[2])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        sources, mask = (*grads, *ctx.saved_tensors), ctx.needs_input_grad
        op = torch.ops.fisherkernels.gaussian_information_backward.default
        return single_backward("gaussian_information", mask, below_autograd(op, *sources, mask), sources)


def _autograd(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if needs_graph(mean, log_std):
        return _GaussianInformation.apply(mean, log_std)
    return below_autograd(torch.ops.fisherkernels.gaussian_information.default, mean, log_std)


define(
    "gaussian_information",
    "(Tensor mean, Tensor log_std) -> (Tensor kl, Tensor trace, Tensor entropy_power)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "gaussian_information_backward",
    "(Tensor? grad_kl, Tensor? grad_trace, Tensor? grad_entropy_power, Tensor mean, Tensor log_std,"
    " Tensor entropy_power, bool[2] output_mask) -> (Tensor grad_mean, Tensor grad_log_std)",
    twin=_backward,
    fake=_backward_fake,
)
