"""Fisher and Shannon information of Gaussians, and the losses that control them, from ``torch.distributions``."""

import copy
import math

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from fisherkernels.losses.output import LossOutput, reduce_terms
from fisherkernels.reference.elbo import elbo_loss
from fisherkernels.reference.gaussian import (
    broadcastable_variance,
    draws,
    log_likelihood,
    log_posterior,
    posterior,
)


def gaussian_information(mean, log_std):
    """`fisherkernels.ops.gaussian_information` from ``torch.distributions``; same arguments."""
    density = Normal(mean, log_std.exp(), validate_args=False)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    entropy = density.entropy().sum(1)
    power = torch.exp(2 * entropy / mean.shape[1]) / (2 * math.pi * math.e)
    return kl_divergence(density, standard).sum(1), (1 / density.variance).sum(1), power


def fisher_shannon_loss(
    encoder,
    decoder,
    x,
    *,
    lambda_z=1.0,
    f_z=0.0,
    lambda_x=0.0,
    f_x=0.0,
    estimator="analytic",
    per_dimension=True,
    likelihood="gaussian",
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
) -> LossOutput:
    """`fisherkernels.fisher_shannon_loss` with its scores by ``torch.autograd.grad``; same arguments."""
    mean, log_std = posterior(encoder, x)
    eps = draws(noise, num_samples, mean)
    bound = elbo_loss(
        encoder, decoder, x, likelihood=likelihood, variance=variance, num_samples=num_samples, noise=eps
    )
    z = mean + log_std.exp() * eps  # [L, N, d]
    if estimator == "analytic":
        information = Normal(mean, log_std.exp()).variance.reciprocal()  # [N, d]
    else:
        (score,) = torch.autograd.grad(log_posterior(z, mean, log_std).sum(), z, create_graph=True)
        information = score.square().mean(0)
    target = torch.as_tensor(f_z, dtype=x.dtype)
    if target.dim() == 0:
        information, target = information.sum(1, keepdim=True), target * (mean.shape[1] if per_dimension else 1)
    gap_z = (information - target).abs().sum(1) / (mean.shape[1] if per_dimension else 1)
    terms = {**bound.terms, "information_z": lambda_z * gap_z, "information_x": torch.zeros_like(gap_z)}
    if likelihood == "gaussian":
        gap_x = decoder_gap(decoder, x, z, f_x, estimator, per_dimension, broadcastable_variance(variance, x))
        terms["information_x"] = lambda_x * gap_x
    return reduce_terms(terms, reduction)


def decoder_gap(decoder, x, z, f_x, estimator, per_dimension, variance):
    """|tr J(x|z) - F_x|, [N]."""
    if estimator == "analytic":
        trace = (1 / variance).sum().expand(x.shape[0])
    else:
        at = x.expand(*z.shape[:2], *x.shape[1:]).clone()  # [L, N, ...]: a point of its own for every sample
        at = at if at.requires_grad else at.requires_grad_()
        output = decoder(z.flatten(0, 1)).view(at.shape)
        (score,) = torch.autograd.grad(log_likelihood(at, output, variance).sum(), at, create_graph=True)
        trace = score.square().flatten(2).sum(-1).mean(0)
    return (trace / (x.shape[1:].numel() if per_dimension else 1) - f_x).abs()


def mutual_ae_loss(
    encoder,
    decoder,
    x,
    *,
    approximation,
    weight=1.0,
    information=0.0,
    likelihood="gaussian",
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
) -> LossOutput:
    """`fisherkernels.mutual_ae_loss` with a second copy of the approximation for the decoder's gradient."""
    of_posterior, z, of_data = (None, None, None) if noise is None else noise
    bound = elbo_loss(
        encoder, decoder, x, likelihood=likelihood, variance=variance, num_samples=num_samples, noise=of_posterior
    )
    mean, _ = posterior(encoder, x)
    z = draws(z, num_samples, mean)  # [L, N, d]
    of_data = draws(of_data, num_samples, x.flatten(1)).view(-1, *x.shape[1:])
    output = decoder(z.flatten(0, 1))  # [L*N, ...]
    if likelihood == "gaussian":
        generated = output + broadcastable_variance(variance, x).sqrt() * of_data
    else:
        given = Bernoulli(probs=output) if likelihood == "bernoulli" else Bernoulli(logits=output)
        binary = (Normal(0.0, 1.0).cdf(of_data) < given.probs).to(x)
        generated = binary + given.probs - given.probs.detach()

    frozen = copy.deepcopy(approximation).requires_grad_(False)
    prior_entropy = Normal(torch.zeros_like(z[0, 0]), 1.0).entropy().sum()
    gap = (prior_entropy + log_approximation(frozen, generated, z).mean() - information).abs()
    terms = {
        **bound.terms,
        "information": (weight * gap).expand(x.shape[0]),
        "approximation": -log_approximation(approximation, generated.detach(), z).mean(0),
    }
    return reduce_terms(terms, reduction)


def log_approximation(approximation, generated, z):
    """log r(z|x), [L, N]."""
    mean, log_std = (part.reshape(z.shape) for part in posterior(approximation, generated))
    return Normal(mean, log_std.exp()).log_prob(z).sum(-1)
