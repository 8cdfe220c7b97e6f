"""The loss of the mutual auto-encoder, which controls the information that code and data share."""

import math

import torch
from torch import nn
from torch.func import functional_call

from fisherkernels import checks, networks, ops
from fisherkernels.losses.autoencode import autoencode, decode
from fisherkernels.losses.elbo import check_elbo, negative_log_likelihood
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms

TERMS = ("reconstruction", "kl", "information", "approximation")


def mutual_ae_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    approximation: nn.Module,
    weight=1.0,
    information=0.0,
    likelihood: str = "gaussian",
    variance=1.0,
    num_samples: int = 1,
    noise: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Negative evidence lower bound with the mutual information of the model's code and data held to a value.

    .. math::
        \underbrace{-E_q\log p_\theta(x|z)}_{reconstruction}
        + \underbrace{KL(q_\phi(z|x) \| N(0, I))}_{kl}
        + \underbrace{C\,|\tilde I_\theta - M|}_{information}
        \underbrace{- E_{p_\theta(x, z)} \log r_\omega(z|x)}_{approximation}

    The mutual information is that of the model's joint density, :math:`z \sim N(0, I)`, :math:`x \sim p_\theta(x|z)`,
    by its lower bound :math:`\tilde I_\theta = H(z) + \max_\omega E_{p_\theta(x, z)} \log r_\omega(z|x)`,
    :math:`H(z) = \tfrac{d}{2}\log 2\pi e`, which is tight where r is the model's posterior. The expectation is a mean
    over the L*N pairs of the batch, drawn anew from the model, taken before the absolute value.

    **Whose gradient.** information trains the decoder (and :math:`\gamma`) only: :math:`\omega` is constant in it.
    approximation trains :math:`\omega` only, the pairs being constant in it. The maximum over :math:`\omega` so stays
    inside the absolute value, and one backward trains all three: were :math:`\omega` trained by information itself,
    it would be driven away from the posterior wherever the bound exceeds M, which meets the constraint without
    changing the model. Gaussian x is reparametrised, :math:`x = f + \sqrt\gamma\,\epsilon_x`; Bernoulli x is binary and
    passes its gradient straight through to the probability (a biased estimate).

    **Scaling.** reconstruction is a sum over the D pixels and a mean over L samples, kl and approximation are sums over
    the d latent coordinates (approximation a mean over L), information is in nats and the same for every data point;
    then comes the reduction over the batch.

    Args:
        encoder: callable taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``.
        decoder: callable taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; it runs twice, on the posterior's samples and
            on the prior's.
        x: floating-point data ``[N, ...]``; within [0, 1] for the Bernoulli likelihoods.
        approximation: :math:`r_\omega`, a module that takes ``[L*N, ...]`` to what `encoder` gives; it runs twice (the
            buffers of one run are kept). Best started with a last layer of zeros: r is then the prior and the bound 0
            nats, where random outputs would start it far below and give huge gradients.
        weight: C >= 0, a float or a 0-d tensor.
        information: M >= 0, in nats: a float or a 0-d tensor.
        likelihood: ``"gaussian"``, ``"bernoulli"`` or ``"bernoulli_logits"``, as in :func:`elbo_loss`.
        variance: :math:`\gamma`, of the Gaussian likelihood only: a float, a 0-d tensor, ``[D]`` or x's trailing shape.
        num_samples: L.
        noise: three standard normal draws, or None to draw them from the global generator: of the posterior ``[L, N,
            d]``, of the prior ``[L, N, d]`` (z itself) and of the data ``[L, N, D]`` (binary x is 1 where the normal
            distribution function of the draw is below the probability); without the L for L = 1.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0, ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms reconstruction, kl, information (weight included) and
        approximation.

    Raises:
        TypeError: integer data, a network output that is no tensor or pair, mixed dtypes, an approximation that is no
            module, a DDP, FSDP or DataParallel wrapper (compute the loss inside the wrapped module).
        ValueError: wrong shapes, mixed devices, an unknown option, num_samples < 1, variance <= 0 or given with a
            Bernoulli likelihood, a weight or an information < 0, data or probabilities outside [0, 1] (the values of
            tensors are looked at on the CPU in eager mode only).

    Source: Phuong et al., "The Mutual Autoencoder", 2018; Zheng et al., "Understanding VAEs in Fisher-Shannon Plane",
    2018, section 4.3, eq. 14.

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> loss, terms = mutual_ae_loss(
    ...     encoder, decoder, torch.rand(3, 6), approximation=torch.nn.Linear(6, 4), information=2.0
    ... )
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}
    {'reconstruction': [3], 'kl': [3], 'information': [3], 'approximation': [3]}
    """
    variance = check_elbo(encoder, decoder, x, likelihood, variance, num_samples, reduction)
    checks.check_weight("weight", weight)
    checks.check_weight("information", information)
    if not isinstance(approximation, nn.Module):
        name = checks.type_name(approximation)
        raise TypeError(f"approximation: expected a torch.nn.Module, received {name}")
    checks.check_network("approximation", approximation)
    if x.shape[0] == 0:
        return empty_output(TERMS, reduction, x, encoder, decoder, approximation, variance, weight, information)

    of_posterior, of_prior, of_data = three_draws(noise)
    passed = autoencode(encoder, decoder, x, num_samples, of_posterior)
    z = checks.as_noise(of_prior, num_samples, passed.mean.to(x.dtype))  # [L, N, d]
    of_data = checks.as_noise(of_data, num_samples, x.flatten(1), width="data width")  # [L, N, D]
    generated = draw_data(decode(decoder, z, x), of_data, likelihood, variance)
    generated = generated.to(x.dtype).view(-1, *x.shape[1:])  # [L*N, ...]

    log_density = log_approximation(networks.call, approximation, generated.detach(), z)  # [L, N]
    constant = log_approximation(call_held_constant, approximation, generated, z)
    bound = constant.mean() + 0.5 * math.log(2 * math.pi * math.e) * z.shape[2]
    kl, _, _ = ops.gaussian_information(passed.mean, passed.log_std)
    terms = {
        "reconstruction": negative_log_likelihood(passed.output, passed.data, likelihood, variance).mean(0),
        "kl": kl,
        "information": (weight * (bound - information).abs()).expand(x.shape[0]),
        "approximation": -log_density.mean(0),
    }
    return reduce_terms(terms, reduction)


def draw_data(output, eps, likelihood: str, variance: torch.Tensor) -> torch.Tensor:
    """x ~ p(x|z) for the decoder's outputs, from standard normal draws; all [L, N, D]."""
    if likelihood == "gaussian":
        return output + variance.sqrt() * eps
    probability = output.sigmoid() if likelihood == "bernoulli_logits" else output
    binary = (torch.special.ndtr(eps) < probability).to(probability.dtype)
    return binary + (probability - probability.detach())


def call_held_constant(network: nn.Module, tensor: torch.Tensor):
    """``network(tensor)`` without a gradient to its parameters and without a change to its buffers."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, parameters | buffers, (tensor,))


def log_approximation(call, approximation, generated: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log r(z|x) [L, N] at generated x [L*N, ...] and z [L, N, d]."""
    output = networks.run_network("approximation", call, approximation, generated)
    mean, log_std = networks.split_posterior(output, generated, "approximation")
    if mean.shape[1] != z.shape[2]:
        raise ValueError(
            f"approximation: expected a mean and log_std of width {z.shape[2]}, that of the encoder's, "
            f"received {mean.shape[1]}"
        )
    dtype = checks.working_dtype(z.dtype)
    mean, log_std = (part.to(dtype).reshape(z.shape) for part in (mean, log_std))
    standardised = (z - mean) * (-log_std).exp()
    return -(0.5 * standardised.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def three_draws(noise) -> tuple:
    """Draws of the posterior, the prior and the data; None where they are to be drawn."""
    if noise is None:
        return None, None, None
    if not isinstance(noise, (tuple, list)):
        raise TypeError(
            "noise: expected three tensors (of the posterior, the prior and the data), "
            f"received {checks.type_name(noise)}"
        )
    if len(noise) != 3:
        raise ValueError(
            f"noise: expected three tensors (of the posterior, the prior and the data), received {len(noise)}"
        )
    return tuple(noise)
