"""The mass of a polynomial density on an interval."""

import torch

from fisherkernels.priors.inverse_cdf import CELLS, NODES, WEIGHTS, log_density


def log_mass(coefficients: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """log of the integral of exp(sum_k eta_jk z^k) over each row of bounds [d, 2]; coefficients [d, K], float64: [d].

    4-point Gauss-Legendre quadrature in each of 4,096 cells.
    """
    low, width = bounds[:, :1], (bounds[:, 1:] - bounds[:, :1]) / CELLS  # [d, 1]
    nodes, weights = torch.as_tensor((NODES + 1) / 2), torch.as_tensor(WEIGHTS / 2)  # [4]
    points = low + width * (torch.arange(CELLS)[:, None] + nodes).flatten()  # [d, 4 cells]
    log_values = log_density(coefficients, points) + weights.log().repeat(CELLS)
    return log_values.logsumexp(1) + width[:, 0].log()
