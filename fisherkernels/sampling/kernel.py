"""A kernel density estimate with a Gaussian kernel (scikit-learn)."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.sampling.selection import select

MAX_POINTS = 10_000
GRID = tuple(2 ** (k / 2) for k in range(-8, 3))  # 1/16 to 2


class KernelDensity:
    """A Gaussian of standard deviation h in the whitened coordinates around each point.

    Without ``bandwidth``: h = c N^(-1/(d+4)), Scott's rule times the factor c in ``GRID`` under which a held-out fifth
    of the points is likeliest, judged on at most ``MAX_POINTS`` of them.
    """

    def __init__(self, model, settings: dict[str, float]):
        self.model = model
        self.settings = settings

    @classmethod
    def fit(cls, points: Tensor, seed: int, *, bandwidth: float | None = None) -> KernelDensity:
        from sklearn.neighbors import KernelDensity as Model

        def train(h: float, u: Tensor) -> Model:
            return Model(bandwidth=h, rtol=1e-4).fit(u.numpy())

        def scott(u: Tensor) -> float:
            return len(u) ** (-1 / (u.shape[1] + 4))

        settings = {}
        if bandwidth is None:
            some = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:MAX_POINTS]]
            factor = select(GRID, some, seed, lambda c, u, v: train(c * scott(u), u).score(v.numpy()) / len(v))
            bandwidth = factor * scott(points)
            settings["scott_factor"] = factor
        elif not bandwidth > 0:
            raise ValueError(f"bandwidth: expected a number > 0, received {bandwidth}")
        return cls(train(bandwidth, points), {"bandwidth": bandwidth} | settings)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        return torch.from_numpy(self.model.sample(n, random_state=seed))

    def log_density(self, u: Tensor) -> Tensor:
        return torch.from_numpy(self.model.score_samples(u.numpy()))
