"""The Fisher auto-encoder loss by double backward (Elkhalil et al., AISTATS 2021, eq. 10-11)."""

import torch

from fisherkernels.losses.output import LossOutput, reduce_terms
from fisherkernels.reference.gaussian import broadcastable_variance, draws, log_likelihood, posterior
from fisherkernels.reference.scores import differentiable, stability_one_pass
from fisherkernels.reference.scores import stability as stability_two_passes


def fisher_ae_loss(
    encoder,
    decoder,
    x,
    *,
    prior=None,
    decoder_gradient="full",
    stability="posterior",
    variance=1.0,
    num_samples=1,
    noise=None,
    reduction="mean",
    encoder_passes=2,
) -> LossOutput:
    """`fisherkernels.fisher_ae_loss` with nested ``torch.autograd.grad``; same arguments.

    ``encoder_passes=2`` differentiates log q(z | x') with respect to a second copy x' of x, literally as the
    paper writes it; ``1`` writes that derivative's cotangent out and reuses the pass that gave z, which is
    the faster form.
    """
    if encoder_passes == 1 and stability != "none":
        x = differentiable(x)
    mean, log_std = posterior(encoder, x)
    eps = draws(noise, num_samples, mean)  # [L, N, d]
    z = differentiable(mean + log_std.exp() * eps)

    output = decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
    variance = broadcastable_variance(variance, x)
    residual = ((x - output) / variance).flatten(2)  # [L, N, D]
    reconstruction = 0.5 * (residual**2).sum(-1) - (1 / variance).sum()

    full = decoder_gradient == "full"
    likelihood = log_likelihood(x, output, variance).sum()
    (likelihood_score,) = torch.autograd.grad(likelihood, z, create_graph=full, retain_graph=True)
    mismatch = -eps * torch.exp(-log_std) - prior_score(prior, z) - likelihood_score
    terms = {
        "posterior": 0.5 * (mismatch**2).sum(-1).mean(0),
        "reconstruction": reconstruction.mean(0),
    }
    if stability != "none":
        if encoder_passes == 1:
            terms["stability"] = stability_one_pass(mean, log_std, x, eps, stability)
        else:
            terms["stability"] = stability_two_passes(encoder, x, eps, stability)
    return reduce_terms(terms, reduction)


def prior_score(prior, z):
    """grad_z log p(z): differentiates the prior's log density where it has one."""
    if prior is None:
        return -z
    if not hasattr(prior, "log_density"):
        return prior.score(z)
    return torch.autograd.grad(prior.log_density(z).sum(), z, create_graph=True)[0]
