"""A density on a grid whose logarithm is a Gaussian process with an inferred Matern spectrum (NIFTy)."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from fisherkernels.sampling.gaussian import Gaussian

CELLS = {1: 256, 2: 128}  # d -> cells per axis
MARGIN = 0.1  # of the points' range, on each side


class DimensionError(ValueError):
    """A grid has no place for that many dimensions."""


class MaternDensity:
    """Matern kernel density estimation, the density estimate of the FisherNet paper (Zacherl et al. 2021, 3.3.2).

    The counts of points in the cells of a box around them are Poisson, their rates proportional to the density; the
    log density is a Gaussian process whose Matern spectrum (scale, cutoff, slope) is inferred with it. That is NIFTy's
    ``density_estimator``, fitted by metric Gaussian variational inference. The density is the posterior mean, linear
    between the cells' centres (which keeps its integral), and a share 1 / (N + 1) of it is N(0, I), so that it is
    positive everywhere.

    The box has ``num_cells`` per axis, by default 256 for d = 1 and 128 for d = 2, and is padded to twice as many:
    memory and time grow as (2 num_cells)^d, so d > 2 is refused.
    """

    def __init__(self, low: np.ndarray, width: np.ndarray, mass: np.ndarray, num_points: int):
        from scipy.interpolate import RegularGridInterpolator

        self.low, self.width, self.mass = low, width, torch.from_numpy(mass)
        self.num_points = num_points
        self.settings = {"num_cells": mass.shape[0]}
        self._background = Gaussian(mass.ndim)
        # A ring of empty cells: the density falls linearly to 0 outside the box.
        centres = [
            start + step * (np.arange(n + 2) - 0.5) for start, step, n in zip(low, width, mass.shape, strict=True)
        ]
        self._interpolate = RegularGridInterpolator(
            centres, np.pad(mass / width.prod(), 1), bounds_error=False, fill_value=0.0
        )

    @classmethod
    def fit(
        cls,
        points: Tensor,
        seed: int,
        *,
        num_cells: int | None = None,
        num_iterations: int = 5,
        num_posterior_samples: int = 4,
    ) -> MaternDensity:
        n, d = points.shape
        if d not in CELLS:
            raise DimensionError(
                f"d: mkde needs a grid, whose size grows exponentially with d, and takes d = 1 or 2, received d = {d}"
            )
        num_cells = CELLS[d] if num_cells is None else num_cells
        if num_cells < 4:
            raise ValueError(f"num_cells: expected an int >= 4, received {num_cells}")
        u = points.numpy()
        extent = u.max(axis=0) - u.min(axis=0)
        low, high = u.min(axis=0) - MARGIN * extent, u.max(axis=0) + MARGIN * extent
        counts, _ = np.histogramdd(u, bins=num_cells, range=list(zip(low, high, strict=True)))
        rate = _posterior_rate(counts.astype(np.int64), seed, num_iterations, num_posterior_samples)
        return cls(low, (high - low) / num_cells, rate / rate.sum(), n)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        cell = torch.multinomial(self.mass.flatten(), n, replacement=True, generator=generator)
        index = torch.stack(torch.unravel_index(cell, self.mass.shape), dim=1)  # [n, d]
        # The sum of two uniform variables has the triangular density of linear interpolation.
        offset = torch.rand(2, *index.shape, generator=generator, dtype=torch.float64).sum(dim=0) - 0.5
        u = torch.from_numpy(self.low) + torch.from_numpy(self.width) * (index + offset)
        background = self._background.sample(n, generator)
        chosen = torch.rand(n, 1, generator=generator, dtype=torch.float64) * (self.num_points + 1) < 1
        return torch.where(chosen, background, u)

    def log_density(self, u: Tensor) -> Tensor:
        grid = torch.from_numpy(self._interpolate(u.numpy()))
        return ((self.num_points * grid + self._background.log_density(u).exp()) / (self.num_points + 1)).log()


def _posterior_rate(counts: np.ndarray, seed: int, num_iterations: int, num_samples: int) -> np.ndarray:
    """Posterior mean of the Poisson rate in every cell, of counts' shape."""
    import nifty.cl as ift

    level = ift.logger.level
    ift.logger.setLevel(logging.ERROR)
    try:
        with ift.random.Context(seed):
            signal, _ = ift.density_estimator(ift.RGSpace(counts.shape))
            rate = signal.scale(counts.mean())
            likelihood = ift.PoissonianEnergy(ift.makeField(rate.target, counts)) @ rate
            samples = ift.optimize_kl(
                likelihood,
                num_iterations,
                num_samples,
                ift.NewtonCG(ift.AbsDeltaEnergyController(deltaE=0.5, iteration_limit=15)),
                ift.AbsDeltaEnergyController(deltaE=0.05, iteration_limit=100),
                plot_energy_history=False,
                plot_minisanity_history=False,
                sanity_checks=False,
            )
            return samples.average(rate).asnumpy()
    finally:
        ift.logger.setLevel(level)
