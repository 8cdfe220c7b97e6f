"""Gaussian log densities and the reparametrised posterior, written out."""

import math

import torch


def posterior(encoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log_std, each [N, d], of an encoder that gives [N, 2d] or that pair."""
    output = encoder(x)
    return tuple(output) if isinstance(output, (tuple, list)) else output.chunk(2, dim=1)


def draws(noise: torch.Tensor | None, num_samples: int, mean: torch.Tensor) -> torch.Tensor:
    """Standard normal draws [L, N, d]: `noise`, or fresh ones."""
    if noise is None:
        return torch.randn(num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
    return noise if noise.dim() == 3 else noise.unsqueeze(0)


def broadcastable_variance(variance, x: torch.Tensor) -> torch.Tensor:
    """`variance` (float, 0-d, [D] or x's trailing shape) as a tensor of x's trailing shape."""
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    return variance.expand(x.shape[1:]) if variance.dim() == 0 else variance.reshape(x.shape[1:])


def log_likelihood(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, variance), summed over pixels; leading dimensions of `mean` beyond x's are samples."""
    log_density = -0.5 * (x - mean) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)
    return log_density.flatten(mean.dim() - x.dim() + 1).sum(-1)


def log_posterior(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(z; mean, exp(log_std)^2), summed over latent coordinates: [L, N]."""
    return (-0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
