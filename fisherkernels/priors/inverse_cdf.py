"""Draws from a polynomial log density on an interval, by inverting its distribution function."""

import numpy as np
import torch

CELLS = 4096
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


def sample_inverse_cdf(
    coefficients: torch.Tensor, bounds: torch.Tensor, n: int, generator: torch.Generator | None
) -> torch.Tensor:
    """n draws per row of coefficients [d, K] within bounds [d, 2]: [n, d], float64.

    The mass of each cell is integrated by 4-point Gauss-Legendre quadrature (relative to the density's
    maximum, so that nothing overflows); within its cell a draw inverts the distribution function of a log
    density linear between the cell's ends. The error of a draw is of third order in the cell's width, that of
    a probability negligible.
    """
    source = coefficients.device if generator is None else generator.device
    uniform = torch.rand(n, bounds.shape[0], dtype=torch.float64, device=source, generator=generator)
    return quantiles(coefficients, bounds, uniform.to(coefficients.device))


def quantiles(coefficients: torch.Tensor, bounds: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the distribution function of each row of coefficients [d, K], within bounds [d, 2], is uniform [n, d]."""
    device = coefficients.device
    bounds = bounds.to(device)
    low, width = bounds[:, :1], (bounds[:, 1:] - bounds[:, :1]) / CELLS  # [d, 1]
    edges = low + width * torch.arange(CELLS + 1, dtype=torch.float64, device=device)  # [d, cells + 1]
    nodes, weights = (torch.as_tensor(a, device=device) for a in ((NODES + 1) / 2, WEIGHTS / 2))
    log_edges = log_density(coefficients, edges)
    log_nodes = log_density(coefficients, (edges[:, :-1, None] + width[:, :, None] * nodes).flatten(1))
    top = torch.maximum(log_edges.amax(1, keepdim=True), log_nodes.amax(1, keepdim=True))
    mass = ((log_nodes - top).exp().unflatten(1, (CELLS, -1)) * weights).sum(2)  # [d, cells]
    cumulative = mass.cumsum(1)

    target = uniform.T.contiguous() * cumulative[:, -1:]  # [d, n]
    cell = torch.searchsorted(cumulative, target, right=True).clamp(max=CELLS - 1)
    start = (cumulative - mass).gather(1, cell)
    share = ((target - start) / mass.gather(1, cell)).clamp(0, 1)  # of the cell's mass
    slope = log_edges.diff(dim=1).gather(1, cell)  # of the log density, per cell width
    steep = slope.abs() > 1e-6
    safe = torch.where(steep, slope, 1.0)
    position = torch.where(steep, torch.log1p(share * torch.expm1(safe)) / safe, share)
    return (edges.gather(1, cell) + width * position.clamp(0, 1)).T.contiguous()


def log_density(coefficients: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Row by row: coefficients [d, K], z [d, G] -> [d, G]."""
    total = torch.zeros_like(z)
    for column in coefficients.flip(1).unbind(1):
        total = (total + column[:, None]) * z
    return total
