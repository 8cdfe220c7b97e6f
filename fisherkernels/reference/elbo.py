"""The negative evidence lower bound from ``torch.distributions``."""

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from fisherkernels.losses.output import LossOutput, reduce_terms
from fisherkernels.reference.gaussian import broadcastable_variance, draws, posterior


def elbo_loss(
    encoder,
    decoder,
    x,
    *,
    beta=1.0,
    likelihood="gaussian",
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
) -> LossOutput:
    """`fisherkernels.elbo_loss` from ``torch.distributions``; same arguments."""
    mean, log_std = posterior(encoder, x)
    eps = draws(noise, num_samples, mean)
    z = mean + log_std.exp() * eps  # [L, N, d]
    output = decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
    if likelihood == "gaussian":
        distribution = Normal(output, broadcastable_variance(variance, x).sqrt(), validate_args=False)
        log_likelihood = distribution.log_prob(x)
    elif likelihood == "bernoulli":
        log_likelihood = torch.xlogy(x, output) + torch.xlogy(1 - x, 1 - output)
    else:
        log_likelihood = Bernoulli(logits=output, validate_args=False).log_prob(x)
    log_likelihood = log_likelihood.flatten(2).sum(-1)  # [L, N]
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = kl_divergence(Normal(mean, log_std.exp(), validate_args=False), standard).sum(-1)
    return reduce_terms({"reconstruction": -log_likelihood.mean(0), "kl": beta * divergence}, reduction)
