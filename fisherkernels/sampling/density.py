"""A density of latent vectors: an estimate made in whitened coordinates, moved to where the latent means lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fisherkernels.sampling.gaussian import Gaussian


class Estimate(Protocol):
    """What a kind of density provides, in whitened coordinates and float64."""

    settings: dict[str, Any]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, d]."""

    def log_density(self, u: Tensor) -> Tensor:
        """[N, d] -> [N], in nats."""


@dataclass
class Density:
    """p(z) = q(u) / det L at u = L^-1 (z - mean), q the ``estimate``.

    mean: [d]; scale: L [d, d], lower triangular; both float64 on the CPU. ``settings`` says what was chosen while
    fitting.
    """

    kind: str
    estimate: Estimate
    mean: Tensor
    scale: Tensor
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def settings(self) -> dict[str, Any]:
        return self.estimate.settings

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n latent vectors [n, d] on the CPU, in the dtype of the means that the density was fitted to.

        generator: a CPU generator; without it, one is seeded from torch's global stream. Raises ValueError for n < 1.
        """
        if n < 1:
            raise ValueError(f"n: expected an int >= 1, received {n}")
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
        u = self.estimate.sample(n, generator)
        return (self.mean + u @ self.scale.T).to(self.dtype)

    def log_density(self, z: Tensor) -> Tensor:
        """Normalised log density in nats, [N, d] -> [N] in float64 on the CPU. Raises ValueError for another shape."""
        if z.ndim != 2 or z.shape[1] != len(self.mean):
            raise ValueError(f"z: expected shape [N, {len(self.mean)}], received {list(z.shape)}")
        u = whiten(z.detach().to("cpu", torch.float64), self.mean, self.scale)
        return self.estimate.log_density(u) - self.scale.diagonal().log().sum()


def whiten(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """L^-1 (z - mean) of each row, [N, d]."""
    return torch.linalg.solve_triangular(scale, (z - mean).T, upper=False).T


def standard_normal(d: int) -> Density:
    """N(0, I) in d dimensions: the prior that a fitted density replaces."""
    eye = torch.eye(d, dtype=torch.float64)
    return Density("standard_normal", Gaussian(d), torch.zeros(d, dtype=torch.float64), eye)
