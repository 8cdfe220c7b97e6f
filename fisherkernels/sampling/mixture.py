"""A mixture of Gaussians with full covariances (scikit-learn)."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.sampling.selection import select

GRID = (1, 2, 4, 8, 16, 32, 64)


class GaussianMixture:
    """Expectation maximisation from k-means. Without ``num_components``: the number in ``GRID`` under which a
    held-out fifth of the points is likeliest, then fitted to all of them. A number needs d + 1 points per component.
    """

    def __init__(self, model):
        self.model = model
        self.settings = {"num_components": model.n_components}

    @classmethod
    def fit(cls, points: Tensor, seed: int, *, num_components: int | None = None) -> GaussianMixture:
        from sklearn.mixture import GaussianMixture as Model

        def train(count: int, u: Tensor) -> Model:
            return Model(count, max_iter=500, random_state=seed).fit(u.numpy())

        n, d = points.shape
        if num_components is None:
            grid = [count for count in GRID if count == 1 or count * (d + 1) <= n - n // 5]
            num_components = select(grid, points, seed, lambda k, u, v: train(k, u).score(v.numpy()))
        elif not 1 <= num_components <= n:
            raise ValueError(f"num_components: expected an int from 1 to {n} (the points), received {num_components}")
        return cls(train(num_components, points))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        self.model.random_state = int(torch.randint(2**31 - 1, (), generator=generator))
        points = torch.from_numpy(self.model.sample(n)[0])
        return points[torch.randperm(n, generator=generator)]  # they come sorted by component

    def log_density(self, u: Tensor) -> Tensor:
        return torch.from_numpy(self.model.score_samples(u.numpy()))
