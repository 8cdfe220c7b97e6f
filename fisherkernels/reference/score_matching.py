"""Variational score matching by double backward (Wenliang, 2022): learning (eq. 8, 13, 15) and inference.

Either loss can also be differentiated with respect to what it usually holds constant, as bi-level updates need:
K steps of the encoder that remain functions of the decoder, followed by a step of the decoder through all of them.
"""

import copy

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from fisherkernels.losses.output import LossOutput, reduce_terms
from fisherkernels.priors import StandardNormal
from fisherkernels.reference.fisher_ae import prior_score
from fisherkernels.reference.gaussian import (
    broadcastable_variance,
    draws,
    log_likelihood,
    log_posterior,
    posterior,
)
from fisherkernels.reference.scores import differentiable


def score_matching_loss(
    encoder,
    decoder,
    x,
    *,
    objective="m1",
    unbiased=False,
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
    encoder_gradient=False,
) -> LossOutput:
    """`fisherkernels.score_matching_loss` with nested ``torch.autograd.grad``; same arguments.

    ``encoder_gradient=True`` differentiates through the encoder too: through z and, in M3, the posterior's score.
    """
    mean, log_std = posterior(encoder, x)
    z = mean + log_std.exp() * draws(noise, num_samples, mean)  # [L, N, d]
    if not encoder_gradient:
        z = z.detach()
    output = decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
    variance = broadcastable_variance(variance, x)
    point = differentiable(x.expand_as(output))
    likelihood = log_likelihood(point, output, variance).sum()
    score = torch.autograd.grad(likelihood, point, create_graph=True)[0].flatten(2)  # [L, N, D]
    divergence = -(1 / variance).sum()

    if objective == "m1":
        terms = {"score": 0.5 * (score**2).sum(-1).mean(0) + divergence}
    elif objective == "m2":
        terms = {
            "second_moment": (score**2).sum(-1).mean(0) + divergence,
            "mean_score": -0.5 * squared_mean(score, unbiased),
        }
    else:
        score_of_posterior = posterior_scores(encoder, x, z, encoder_gradient)
        terms = {
            "cross": (score_of_posterior * score).sum(-1).mean(0) + divergence,
            "mean_score": 0.5 * squared_mean(score, unbiased),
        }
    return reduce_terms(terms, reduction)


def squared_mean(score, unbiased):
    """||E s||^2, [N], from samples [L, N, D]: of their mean, or over the pairs of different samples."""
    if not unbiased:
        return (score.mean(0) ** 2).sum(-1)
    count = score.shape[0]
    products = torch.einsum("lnd,mnd->nlm", score, score)
    different = 1 - torch.eye(count, dtype=score.dtype, device=score.device)
    return (products * different).sum((1, 2)) / (count * (count - 1))


def posterior_scores(encoder, x, z, create_graph):
    """grad_x log q(z|x) at fixed z, [L, N, D]: log q(z | x') differentiated with respect to x', a copy of x."""
    second = differentiable(x).clone()
    log_density = log_posterior(z, *posterior(encoder, second))  # [L, N]
    gradients = [
        torch.autograd.grad(sample.sum(), second, create_graph=create_graph, retain_graph=True)[0]
        for sample in log_density
    ]
    return torch.stack(gradients).flatten(2)


def inference_loss(
    encoder,
    decoder,
    x,
    *,
    divergence="kl",
    reparametrize=None,
    prior=None,
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
    decoder_gradient=False,
) -> LossOutput:
    """`fisherkernels.inference_loss` with nested ``torch.autograd.grad``; same arguments.

    ``decoder_gradient=True`` differentiates with respect to the decoder, the prior and the variance too.
    """
    if reparametrize is None:
        reparametrize = divergence == "kl"
    variance = broadcastable_variance(variance, x)
    if not decoder_gradient:
        decoder, prior, variance = constant(decoder), constant_copy(prior), variance.detach()
    mean, log_std = posterior(encoder, x)
    z = mean + log_std.exp() * draws(noise, num_samples, mean)  # [L, N, d]
    z = differentiable(z if reparametrize else z.detach())
    output = decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
    log_density = log_likelihood(x, output, variance)  # [L, N]
    if divergence == "kl":
        terms = {"reconstruction": -log_density.mean(0), "kl": kl(mean, log_std, z, prior)}
        return reduce_terms(terms, reduction)

    (posterior_score,) = torch.autograd.grad(log_posterior(z, mean, log_std).sum(), z, create_graph=True)
    (likelihood_score,) = torch.autograd.grad(log_density.sum(), z, create_graph=True)
    if not (reparametrize or decoder_gradient):
        likelihood_score = likelihood_score.detach()
    mismatch = posterior_score - prior_score(prior, z) - likelihood_score
    return reduce_terms({"posterior": 0.5 * (mismatch**2).sum(-1).mean(0)}, reduction)


def kl(mean, log_std, z, prior):
    """KL(q || p), [N]: closed form for the standard normal, else the mean of log q - log p over the samples."""
    if prior is None or isinstance(prior, StandardNormal):
        standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return kl_divergence(Normal(mean, log_std.exp(), validate_args=False), standard).sum(-1)
    return (log_posterior(z, mean, log_std) - prior.log_density(z)).mean(0)


def constant(network):
    """The network with its parameters held constant."""
    if not isinstance(network, nn.Module):
        return network
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    return lambda z: torch.func.functional_call(network, parameters, (z,))


def constant_copy(prior):
    return copy.deepcopy(prior).requires_grad_(False) if isinstance(prior, nn.Module) else prior
