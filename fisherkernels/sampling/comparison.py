"""Densities fitted to a model's latent means, judged by the means of images that neither of them was trained on."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisherkernels.checks import check_choice
from fisherkernels.sampling.density import Density, standard_normal
from fisherkernels.sampling.fit import DENSITIES, fit_density
from fisherkernels.sampling.matern import DimensionError
from fisherkernels.sampling.prior import LearnedPrior
from fisherkernels.sampling.stein import STEPS, run_stein

BATCH = 1024
BASELINE, PRIOR, PRIOR_SVGD = "standard_normal", "prior", "prior_svgd"
METHODS = ("inverse_cdf", "svgd")


@dataclass
class Candidate:
    """A density, its log densities in nats at the held-out images' means [V], and its samples."""

    density: Density | LearnedPrior
    fit_seconds: float
    held_out: Tensor
    latent: Tensor  # [n, d]
    images: Tensor  # [n, ...]


@dataclass
class Comparison:
    """``candidates``: name -> :class:`Candidate`, N(0, I) first, then the model's learned prior, if it has one, and the
    fitted ones; ``skipped``: kind -> why.
    """

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
    model,
    train_images: Tensor,
    held_out_images: Tensor,
    kinds: Sequence[str],
    num_samples: int,
    seed: int = 0,
    *,
    method: str = "inverse_cdf",
    svgd_steps: int = STEPS,
    progress: bool = False,
) -> Comparison:
    """Fits each kind to the latent means of ``train_images``, draws ``num_samples`` latent vectors and decodes them.

    model: in eval mode, with ``encode_mean`` and ``decode``. kinds: of ``DENSITIES``, or ``["all"]``: every one whose
    library is there and that takes this d. method: ``inverse_cdf``, or ``svgd`` to draw from the learned prior that way
    too, in ``svgd_steps`` iterations. Raises ValueError for an unknown kind or method, num_samples < 1, svgd_steps < 1,
    and svgd without a learned prior.
    """
    for name, value in (("num_samples", num_samples), ("svgd_steps", svgd_steps)):
        if value < 1:
            raise ValueError(f"{name}: expected an int >= 1, received {value}")
    check_choice("method", method, METHODS)
    everything = list(kinds) == ["all"]
    kinds = list(DENSITIES) if everything else list(dict.fromkeys(kinds))
    unknown = [kind for kind in kinds if kind not in DENSITIES]
    if unknown or not kinds:
        expected = f"expected one or more of {', '.join(DENSITIES)}, or all alone"
        raise ValueError(f"density: {expected}, received {' '.join(unknown) or 'none'}")
    learned = not getattr(model, "has_standard_normal_prior", True)
    if method == "svgd" and not learned:
        raise ValueError(f"method: svgd samples a learned prior; that of this {type(model).__name__} is N(0, I)")
    means, held_out = latent_means(model, train_images), latent_means(model, held_out_images)

    def particles() -> LearnedPrior:
        generator, interval = torch.Generator().manual_seed(seed), model.prior_interval()
        run = run_stein(model.prior, num_samples, generator, interval=interval, steps=svgd_steps, progress=progress)
        return LearnedPrior(model, run)

    makers = {BASELINE: lambda: standard_normal(means.shape[1])}
    if learned:
        makers[PRIOR] = lambda: LearnedPrior(model)
    if method == "svgd":
        makers[PRIOR_SVGD] = particles
    makers |= {kind: functools.partial(fit_density, means, kind, seed=seed) for kind in kinds}
    candidates, skipped = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            density = make()
        except (ModuleNotFoundError, DimensionError) as error:
            if not everything:
                raise
            skipped[name] = str(error)
            continue
        seconds = time.perf_counter() - start
        latent = density.sample(num_samples, torch.Generator().manual_seed(seed))
        images = torch.cat([model.decode(z) for z in latent.split(BATCH)])
        candidates[name] = Candidate(density, seconds, density.log_density(held_out), latent, images)
    return Comparison(candidates, skipped, held_out)
