"""The normal density. In whitened coordinates it is N(0, I): the points' mean and full covariance are the whitening."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Gaussian:
    """N(0, I) in d dimensions."""

    def __init__(self, d: int):
        self.d = d
        self.settings: dict[str, Any] = {}

    @classmethod
    def fit(cls, points: Tensor, seed: int) -> Gaussian:
        return cls(points.shape[1])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.d, generator=generator, dtype=torch.float64)

    def log_density(self, u: Tensor) -> Tensor:
        return -0.5 * (u.square().sum(dim=1) + self.d * math.log(2 * math.pi))
