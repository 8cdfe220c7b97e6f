"""A normalising flow (zuko)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fisherkernels.sampling.selection import split

CHECK_EVERY = 100  # steps


class SplineFlow:
    """An autoregressive neural spline flow (Durkan et al., "Neural Spline Flows", NeurIPS 2019) from N(0, I).

    Adam with a cosine-annealed learning rate for ``steps`` steps on four fifths of the points; kept are the parameters
    under which the held-out fifth is likeliest, looked at every ``CHECK_EVERY`` steps. Beyond 5 standard deviations of
    the whitened coordinates the splines are the identity. float32.
    """

    def __init__(self, model, settings: dict[str, float]):
        self.model = model
        self.settings = settings

    @classmethod
    @torch.enable_grad()
    def fit(
        cls,
        points: Tensor,
        seed: int,
        *,
        steps: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        num_transforms: int = 3,
        num_bins: int = 8,
        hidden: Sequence[int] = (64, 64),
    ) -> SplineFlow:
        import zuko

        for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
            if not value > 0:
                raise ValueError(f"{name}: expected a number > 0, received {value}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = zuko.flows.NSF(points.shape[1], transforms=num_transforms, bins=num_bins, hidden_features=hidden)
        fitted, held_out = (part.float() for part in split(points, seed))
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, best_step, best_state = -math.inf, 0, copy.deepcopy(model.state_dict())
        for step in range(1, steps + 1):
            batch = fitted[torch.randint(len(fitted), (batch_size,), generator=generator)]
            optimizer.zero_grad()
            loss = -model().log_prob(batch).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % CHECK_EVERY == 0 or step == steps:
                with torch.no_grad():
                    likelihood = model().log_prob(held_out).mean().item()
                if likelihood > best:
                    best, best_step, best_state = likelihood, step, copy.deepcopy(model.state_dict())
        model.load_state_dict(best_state)
        return cls(model.eval(), {"steps": steps, "kept_step": best_step})

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, self.model.base().event_shape[0], generator=generator)
        return self.model().transform.inv(noise).double()

    @torch.no_grad()
    def log_density(self, u: Tensor) -> Tensor:
        return torch.cat([self.model().log_prob(batch) for batch in u.float().split(4096)]).double()
