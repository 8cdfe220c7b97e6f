"""Scores and the stability term by ``torch.autograd.grad``."""

import torch

from fisherkernels.reference.gaussian import broadcastable_variance, log_likelihood, log_posterior, posterior


def differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it requires grad, otherwise a leaf equal to it."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def decoder_score(decoder, x, z, variance=1.0, *, create_graph=True):
    """grad_z log p(x|z), shape of z ([N, d] or [L, N, d])."""
    z = differentiable(z)
    mean = decoder(z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], *x.shape[1:])
    log_density = log_likelihood(x, mean, broadcastable_variance(variance, x))
    return torch.autograd.grad(log_density.sum(), z, create_graph=create_graph)[0]


def stability(encoder, x, eps, kind="posterior"):
    """1/2 ||grad_x log q(z|x)||^2 (or of sum_j log sigma_j), averaged over L: [N].

    "posterior": log q(z | x') is differentiated with respect to x', a second copy of x, while z is built from
    x. The encoder therefore runs twice (twice updating BatchNorm's running statistics).
    """
    second = differentiable(x).clone()
    if kind == "log_std":
        _, log_std = posterior(encoder, second)
        (gradient,) = torch.autograd.grad(log_std.sum(), second, create_graph=True)
        return 0.5 * (gradient**2).flatten(1).sum(1)
    eps = eps if eps.dim() == 3 else eps.unsqueeze(0)
    mean, log_std = posterior(encoder, x)
    z = mean + log_std.exp() * eps  # [L, N, d]
    log_density = log_posterior(z, *posterior(encoder, second))  # [L, N]
    terms = []
    for sample in log_density:
        (gradient,) = torch.autograd.grad(sample.sum(), second, create_graph=True)
        terms.append(0.5 * (gradient**2).flatten(1).sum(1))
    return torch.stack(terms).mean(0)


def stability_one_pass(mean, log_std, x, eps, kind="posterior"):
    """The same term from an encoder pass already made at x (which requires grad).

    With z held fixed, grad_x log q(z|x) is the vector-Jacobian product of the encoder with eps/sigma for the
    mean and eps^2 - 1 for log_std.
    """
    if kind == "log_std":
        (gradient,) = torch.autograd.grad(log_std.sum(), x, create_graph=True)
        return 0.5 * (gradient**2).flatten(1).sum(1)
    terms = []
    for sample in eps:
        cotangents = (sample * torch.exp(-log_std), sample**2 - 1)
        (gradient,) = torch.autograd.grad((mean, log_std), x, cotangents, create_graph=True)
        terms.append(0.5 * (gradient**2).flatten(1).sum(1))
    return torch.stack(terms).mean(0)
