"""Densities fitted to a model's latent means, judged by the means of images that neither of them was trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherkernels.sampling.density import Density, standard_normal
from fisherkernels.sampling.fit import DENSITIES, fit_density
from fisherkernels.sampling.matern import DimensionError

BATCH = 1024
BASELINE = "standard_normal"


@dataclass
class Candidate:
    """A density, its log densities in nats at the held-out images' means [V], and its samples."""

    density: Density
    fit_seconds: float
    held_out: Tensor
    latent: Tensor  # [n, d]
    images: Tensor  # [n, ...]


@dataclass
class Comparison:
    """``candidates``: name -> :class:`Candidate`, N(0, I) first; ``skipped``: kind -> why."""

    candidates: dict[str, Candidate]
    skipped: dict[str, str]
    held_out_means: Tensor  # [V, d]

    @property
    def best(self) -> str:
        """The name with the highest mean log density of the held-out means."""
        return max(self.candidates, key=lambda name: self.candidates[name].held_out.mean().item())

    def below_best(self, name: str) -> tuple[float, float]:
        """How much lower its mean held-out log density is than the best one's, in nats, and the standard error of that
        difference (of pairs: the same held-out means).
        """
        difference = self.candidates[self.best].held_out - self.candidates[name].held_out
        return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


@torch.no_grad()
def latent_means(model, images: Tensor) -> Tensor:
    """Posterior means [N, d] of the images, on the CPU. Raises ValueError for a model that has none."""
    if not hasattr(model, "encode_mean"):
        raise ValueError(f"checkpoint: expected a model with an encoder's mean, received {type(model).__name__}")
    return torch.cat([model.encode_mean(batch) for batch in images.split(BATCH)]).cpu()


@torch.no_grad()
def compare(
    model, train_images: Tensor, held_out_images: Tensor, kinds: Sequence[str], num_samples: int, seed: int = 0
) -> Comparison:
    """Fits each kind to the latent means of ``train_images``, draws ``num_samples`` latent vectors and decodes them.

    model: in eval mode, with ``encode_mean`` and ``decode``. kinds: of ``DENSITIES``, or ``["all"]``: every one whose
    library is there and that takes this d. Raises ValueError for an unknown kind and for num_samples < 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected an int >= 1, received {num_samples}")
    everything = list(kinds) == ["all"]
    kinds = list(DENSITIES) if everything else list(dict.fromkeys(kinds))
    unknown = [kind for kind in kinds if kind not in DENSITIES]
    if unknown or not kinds:
        expected = f"expected one or more of {', '.join(DENSITIES)}, or all alone"
        raise ValueError(f"density: {expected}, received {' '.join(unknown) or 'none'}")
    means, held_out = latent_means(model, train_images), latent_means(model, held_out_images)
    candidates, skipped = {}, {}
    for kind in (BASELINE, *kinds):
        start = time.perf_counter()
        try:
            density = standard_normal(means.shape[1]) if kind == BASELINE else fit_density(means, kind, seed=seed)
        except (ModuleNotFoundError, DimensionError) as error:
            if not everything:
                raise
            skipped[kind] = str(error)
            continue
        seconds = time.perf_counter() - start
        latent = density.sample(num_samples, torch.Generator().manual_seed(seed))
        images = torch.cat([model.decode(z) for z in latent.split(BATCH)])
        candidates[kind] = Candidate(density, seconds, density.log_density(held_out), latent, images)
    return Comparison(candidates, skipped, held_out)
