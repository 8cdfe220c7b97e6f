"""The sample by dense linear algebra, and what the metric is like: in float64 the ground truth."""

from functools import partial

import torch
from torch.func import jacfwd, vmap


def jacobian(decoder, mean, chunk_size=None):
    """d decoder / d mean, [N, D, d], of a decoder that takes batches and does not couple their items.

    chunk_size: how many items are worked on at once; None: all.
    """
    return vmap(jacfwd(lambda item: decoder(item[None]).flatten()), chunk_size=chunk_size)(mean)


def system(decoder, mean, variance, data_noise, latent_noise, chunk_size=None):
    """M = J^T J / variance + 1 [N, d, d] and J^T n + eta [N, d]."""
    J = jacobian(decoder, mean, chunk_size)
    M = J.mT @ J / variance + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    return M, (J.mT @ data_noise[..., None])[..., 0] / variance.sqrt() + latent_noise


def sample(decoder, mean, variance, data_noise, latent_noise, chunk_size=None):
    """Zacherl et al., eq. 28-31: mean + M^-1 (J^T n + eta), [N, d]."""
    M, rhs = system(decoder, mean, variance, data_noise, latent_noise, chunk_size)
    return mean + torch.linalg.solve(M, rhs)


@torch.no_grad()
def relative_residual(decoder, mean, variance, data_noise, latent_noise, z):
    """|M (z - mean) - rhs| / |rhs| of each item, [N]."""
    M, rhs = system(decoder, mean, variance, data_noise, latent_noise)
    return ((M @ (z - mean)[..., None])[..., 0] - rhs).norm(dim=1) / rhs.norm(dim=1)


@torch.no_grad()
def describe(decoder, mean, variance):
    """The metric's condition numbers and how many of its eigenvalues stand out, over the batch."""
    J = jacobian(decoder, mean)
    eigenvalues = torch.linalg.eigvalsh(J.mT @ J / variance) + 1  # [N, d], ascending
    condition = eigenvalues[:, -1] / eigenvalues[:, 0]
    return {
        "median condition number": condition.median().item(),
        "largest condition number": condition.max().item(),
        "median count of eigenvalues above 2": (eigenvalues > 2).sum(1).median().item(),
    }


def prepare(decoder, tolerance, chunk_size=None):
    """:func:`sample` as one of the `routes`."""
    return partial(sample, decoder, chunk_size=chunk_size)
