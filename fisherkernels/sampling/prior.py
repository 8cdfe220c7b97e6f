"""A model's learned prior among the densities, drawn exactly or by Stein variational gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.sampling.stein import SteinRun


class LearnedPrior:
    """The prior that a Fisher auto-encoder learned, with the interface of :class:`Density`.

    Without ``run``, draws are exact (inverse distribution function); with it they are the particles of that run.
    """

    def __init__(self, model, run: SteinRun | None = None):
        self.model = model
        self.run = run
        self.settings = {} if run is None else {"steps": run.steps}

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n latent vectors [n, d] on the CPU; of a run, its first n particles, or all if they are fewer."""
        return self.model.draw_latent(n, generator) if self.run is None else self.run.particles[:n]

    @torch.no_grad()
    def log_density(self, z: Tensor) -> Tensor:
        """Log density in nats, [N, d] -> [N], on the CPU, normalised on the interval that exact draws come from."""
        return self.model.log_prior(z).double()
