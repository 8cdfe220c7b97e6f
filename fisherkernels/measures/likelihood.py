"""The likelihood of data under a model with a latent variable: the evidence lower bound, and by importance sampling."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from fisherkernels.checks import check_count
from fisherkernels.measures.gaussian import draw, standard_normal_kl

ROWS = 1024  # latent samples decoded at a time


@torch.no_grad()
def negative_elbo(
    model,
    x: Tensor,
    *,
    num_samples: int = 5,
    posterior: Distribution | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Negative evidence lower bound, an upper bound of -log p(x).

    .. math:: -\mathbb{E}_q \log p(x|z) + KL(q(z|x) \| p(z))

    by L samples of z; the divergence is exact where the prior is the standard normal, else estimated by the same
    samples.

    Args:
        model: an :class:`~fisherkernels.training.AutoEncoder` with a posterior density, in ``eval()``.
        x: data ``[N, ...]``.
        num_samples: L.
        posterior: ``model.posterior(x)`` where it is there already.
        generator: a CPU generator; the global one when None.

    Returns:
        ``[N]``, in nats per data point: a sum over pixels. For the Gaussian likelihood a density's, which may be
        negative.

    Raises:
        TypeError: a model without a posterior density.
        ValueError: num_samples < 1.

    Source: Kingma and Welling, ICLR 2014; Wenliang, "On the failure of variational score matching for VAE models",
    section B.2.
    """
    check_count("num_samples", num_samples)
    posterior = density(model, x) if posterior is None else posterior
    z = draw(posterior, num_samples, generator)
    reconstruction = -model.log_likelihood(x, z).mean(0)
    if model.has_standard_normal_prior:
        return reconstruction + standard_normal_kl(posterior)
    return reconstruction + (posterior.log_prob(z) - model.log_prior(z)).mean(0)


@torch.no_grad()
def importance_sampled_nll(
    model,
    x: Tensor,
    *,
    num_samples: int = 5000,
    rows: int = ROWS,
    posterior: Distribution | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""-log p(x) estimated by importance sampling from the posterior.

    .. math:: -\log \frac1K \sum_k \frac{p(x|z_k)\, p(z_k)}{q(z_k|x)}, \qquad z_k \sim q(z|x)

    In expectation not below -log p(x), and closer the larger K (K = 1 is the negative evidence lower bound). Samples
    are decoded `rows` at a time, of all images together, and added up as logarithms: the memory is that of `rows`
    passes through the decoder, for any K and N.

    Args:
        model: an :class:`~fisherkernels.training.AutoEncoder` with a posterior density, in ``eval()``.
        x: data ``[N, ...]``.
        num_samples: K.
        rows: latent samples decoded at a time.
        posterior: ``model.posterior(x)`` where it is there already.
        generator: a CPU generator; the global one when None.

    Returns:
        ``[N]``, in nats per data point: a sum over pixels.

    Raises:
        TypeError: a model without a posterior density.
        ValueError: num_samples < 1 or rows < 1.

    Source: Burda et al., "Importance weighted autoencoders", 2015; Zheng et al., "Understanding VAEs in Fisher-Shannon
    Plane", section 5.2.1, with K = 5000.
    """
    check_count("num_samples", num_samples)
    check_count("rows", rows)
    if len(x) > rows:
        if posterior is not None:
            raise ValueError(f"rows: expected at least {len(x)}, the batch, with a posterior given, received {rows}")
        parts = x.split(rows)
        options = {"num_samples": num_samples, "rows": rows, "generator": generator}
        return torch.cat([importance_sampled_nll(model, part, **options) for part in parts])
    posterior = density(model, x) if posterior is None else posterior
    total = x.new_full((len(x),), -math.inf)
    left = num_samples
    while left and len(x):
        count = min(left, rows // len(x))
        z = draw(posterior, count, generator)  # [count, N, d]
        log_weight = model.log_likelihood(x, z) + model.log_prior(z) - posterior.log_prob(z)
        total = torch.logaddexp(total, log_weight.logsumexp(0))
        left -= count
    return math.log(num_samples) - total


def density(model, x: Tensor) -> Distribution:
    """The posterior of a model that has one."""
    posterior = model.posterior(x)
    if posterior is None:
        raise TypeError(f"model: expected one with a posterior density, received {type(model).__name__}")
    return posterior
