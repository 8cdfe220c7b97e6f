"""The negative evidence lower bound."""

import math

import torch
from torch.nn import functional as F

from fisherkernels import checks
from fisherkernels.losses.autoencode import autoencode
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms

LIKELIHOODS = ("gaussian", "bernoulli", "bernoulli_logits")


def elbo_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    beta=1.0,
    likelihood: str = "gaussian",
    variance=1.0,
    num_samples: int = 1,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Negative evidence lower bound of a variational auto-encoder with a standard normal prior.

    Per data point, averaged over L samples :math:`z = \mu + \sigma\epsilon`, :math:`\epsilon \sim N(0, I)`:

    .. math::
        \underbrace{-\log p(x|z)}_{reconstruction}
        + \underbrace{\beta \cdot \tfrac12 \textstyle\sum_j (\mu_j^2 + \sigma_j^2 - 1 - 2\log\sigma_j)}_{kl}

    ``"gaussian"``: :math:`-\log p = \tfrac12 \sum_j (x_j - f_j)^2/\gamma_j + \tfrac12 \sum_j \log
    2\pi\gamma_j`; ``"bernoulli"``: :math:`-\sum_j x_j \log f_j + (1 - x_j)\log(1 - f_j)` of probabilities f
    (logarithms clamped at -100, as in ``torch.nn.functional.binary_cross_entropy``); ``"bernoulli_logits"``:
    the same of :math:`f = \mathrm{sigmoid}(\text{output})`, stable for large logits.

    **Scaling.** reconstruction is a sum over the D pixels and a mean over L samples, kl (analytic) a sum over
    the d latent coordinates; then comes the reduction over the batch. Nothing is divided by D or d.

    Args:
        encoder: callable taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``.
        decoder: callable taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; all samples go through it as one
            batch.
        x: floating-point data ``[N, ...]``; within [0, 1] for the Bernoulli likelihoods.
        beta: weight of kl, >= 0: a float or a 0-d tensor.
        likelihood: ``"gaussian"``, ``"bernoulli"`` or ``"bernoulli_logits"``.
        variance: :math:`\gamma`, of the Gaussian likelihood only: a float, a 0-d tensor, ``[D]`` or x's
            trailing shape; may require grad.
        num_samples: L.
        noise: :math:`\epsilon` ``[L, N, d]``, or ``[N, d]`` for L = 1; drawn from the global generator when
            None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0,
            ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms reconstruction and kl (beta included).

    Raises:
        TypeError: integer data, an encoder output that is no tensor or pair, mixed dtypes, a DDP, FSDP or
            DataParallel wrapper (compute the loss inside the wrapped module).
        ValueError: wrong shapes, mixed devices, an unknown option, num_samples < 1, variance <= 0 or given
            with a Bernoulli likelihood, beta < 0, data or probabilities outside [0, 1] (the values of tensors
            are looked at on the CPU in eager mode only).

    Source: Kingma and Welling, ICLR 2014; beta: Higgins et al., ICLR 2017.

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> loss, terms = elbo_loss(encoder, decoder, torch.rand(3, 6), likelihood="bernoulli_logits")
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}
    {'reconstruction': [3], 'kl': [3]}
    """
    variance = check_elbo(encoder, decoder, x, likelihood, variance, num_samples, reduction)
    checks.check_weight("beta", beta)
    if x.shape[0] == 0:
        return empty_output(("reconstruction", "kl"), reduction, x, encoder, decoder, variance)

    passed = autoencode(encoder, decoder, x, num_samples, noise)
    terms = {
        "reconstruction": negative_log_likelihood(passed.output, passed.data, likelihood, variance).mean(0),
        "kl": beta * standard_normal_kl(passed.mean, passed.log_std),
    }
    return reduce_terms(terms, reduction)


def check_elbo(encoder, decoder, x, likelihood, variance, num_samples, reduction) -> torch.Tensor:
    """The arguments of every loss with a likelihood; gives the variance as a tensor, 0-d or [D]."""
    checks.check_choice("likelihood", likelihood, LIKELIHOODS)
    if likelihood != "gaussian" and (isinstance(variance, torch.Tensor) or variance != 1.0):
        raise ValueError(
            f"variance: expected to be left at 1.0 with likelihood={likelihood!r}, which has none"
        )
    variance = checks.check_common(encoder, decoder, x, variance, num_samples, reduction)
    if likelihood != "gaussian":
        check_unit_interval("x", x, likelihood)
    return variance


def standard_normal_kl(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, diag exp(log_std)^2) || N(0, I)), [N]."""
    return 0.5 * (mean.square() + (torch.expm1(2 * log_std) - 2 * log_std)).sum(1)


def negative_log_likelihood(output, data, likelihood: str, variance: torch.Tensor) -> torch.Tensor:
    """-log p(data|z) summed over pixels, [L, N]; output [L, N, D], data [N, D]."""
    if likelihood == "gaussian":
        constant = 0.5 * (2 * math.pi * variance).log().expand(data.shape[1]).sum()
        return 0.5 * ((data - output).square() / variance).sum(-1) + constant
    data = data.expand_as(output)
    if likelihood == "bernoulli_logits":
        return F.binary_cross_entropy_with_logits(output, data, reduction="none").sum(-1)
    check_unit_interval("decoder's output", output, likelihood)
    if not (output.requires_grad or data.requires_grad):
        return bernoulli_without_gradient(output, data)
    missing = output.isnan() | data.isnan()  # binary_cross_entropy raises on NaN; here it stays in its sample
    probability, label = torch.where(missing, 0.5, output), torch.where(missing, 0.5, data)
    with torch.autocast(output.device.type, enabled=False):
        entropy = F.binary_cross_entropy(probability, label, reduction="none")
    return torch.where(missing, output + data, entropy).sum(-1)


def bernoulli_without_gradient(probability, data) -> torch.Tensor:
    """The same by two vectorised logarithms, which ``binary_cross_entropy`` on the CPU has not; [L, N].

    The gradient of this would be NaN where a probability is 0 or 1.
    """
    dtype = checks.working_dtype(probability.dtype)
    probability, data = probability.to(dtype), data.to(dtype)
    log_one = probability.log().clamp_(min=-100)  # [L, N, D]
    log_zero = probability.neg().log1p_().clamp_(min=-100)
    return -torch.lerp(log_zero, log_one, data).sum(-1)


def check_unit_interval(name: str, tensor: torch.Tensor, likelihood: str) -> None:
    """Values within [0, 1], NaN let through."""
    if tensor.numel() == 0 or not checks.may_read_values(tensor):
        return
    low, high = torch.aminmax(tensor.detach().nan_to_num(0.5))
    if low < 0 or high > 1:
        raise ValueError(
            f"{name}: expected values in [0, 1] for likelihood={likelihood!r}, "
            f"received values from {low.item():g} to {high.item():g}"
        )
