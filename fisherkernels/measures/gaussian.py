"""Gaussian posteriors as ``torch.distributions``: diagonal (``Independent(Normal)``) or with a full covariance."""

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal


def draw(posterior: Distribution, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Samples [L, N, d]. The generator is the CPU's: the draws do not depend on the device."""
    mean = posterior.mean
    eps = torch.randn(num_samples, *mean.shape, generator=generator).to(mean)  # [L, N, d]
    if isinstance(posterior, MultivariateNormal):
        return mean + torch.einsum("nij,lnj->lni", posterior.scale_tril, eps)
    return mean + posterior.stddev * eps


def score(posterior: Distribution, z: Tensor) -> Tensor:
    """Gradient of log q(z|x) with respect to z, [L, N, d]."""
    if isinstance(posterior, MultivariateNormal):
        return -torch.einsum("nij,lnj->lni", posterior.precision_matrix, z - posterior.mean)
    return -(z - posterior.mean) / posterior.variance


def standard_normal_kl(posterior: Distribution) -> Tensor:
    """KL(q(z|x) || N(0, I)), [N]."""
    squares = posterior.mean.square() + posterior.variance
    return 0.5 * (squares.sum(-1) - squares.shape[-1]) - log_determinant(posterior)


def log_determinant(posterior: Distribution) -> Tensor:
    """Logarithm of the product of the principal standard deviations, [N]."""
    if isinstance(posterior, MultivariateNormal):
        return posterior.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return posterior.stddev.log().sum(-1)
