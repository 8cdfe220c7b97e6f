"""A learned prior sampled by Stein variational gradient descent, and how far from it the particles are."""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fisherkernels.priors.inverse_cdf import quantiles
from fisherkernels.svgd import svgd

STEPS, STEP_SIZE = 15_000, 1e-3  # of the Fisher auto-encoder's paper and its released code
POINTS = 40  # steps at which the distance is taken


@dataclass
class SteinRun:
    """``particles`` [n, d] after ``steps``; ``distances``: step -> mean distance from the prior, ``exact`` that of as
    many exact draws, with the draws' standard deviation. See :func:`run_stein`.
    """

    particles: Tensor
    steps: int
    seconds: float
    distances: dict[int, float]
    exact: tuple[float, float]


class Marginals:
    """The exact distribution of every coordinate of a factorised prior, as n quantiles [n, d]."""

    def __init__(self, prior, interval: Tensor | None, n: int):
        self.coefficients = prior.coefficients.detach().double().cpu()
        self.bounds = prior.truncation(interval)
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        self.values = self._at(levels[:, None].expand(-1, len(self.bounds)))
        fine = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        self.std = self._at(fine[:, None].expand(-1, len(self.bounds))).std(0)  # [d]

    def _at(self, levels: Tensor) -> Tensor:
        return quantiles(self.coefficients, self.bounds, levels)

    def distance(self, points: Tensor) -> float:
        """Wasserstein-1 distance of the points' coordinates from the exact ones, in standard deviations of these,
        mean over coordinates; points [n, d].
        """
        gaps = (points.double().cpu().sort(0).values - self.values).abs().mean(0)
        return (gaps / self.std).mean().item()


@torch.no_grad()
def run_stein(
    prior,
    n: int,
    generator: torch.Generator,
    *,
    interval: Tensor | None = None,
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
    progress: bool = False,
) -> SteinRun:
    """n particles from N(0, I), moved by :func:`fisherkernels.svgd` with the RMS-normalised steps of the paper's code.

    The distance of each coordinate's distribution from the exact one, on the truncation that ``interval`` gives, is
    taken at up to ``POINTS`` steps, and of 20 sets of n exact draws: what chance alone leaves.

    progress: show a bar on stderr.
    """
    marginals = Marginals(prior, interval, n)
    wanted = {round(math.exp(step)) - 1 for step in torch.linspace(0, math.log(steps + 1), POINTS).tolist()}
    distances: dict[int, float] = {}
    device = prior.coefficients.device
    start = torch.randn(n, prior.d, generator=generator, dtype=prior.coefficients.dtype).to(device)
    began = time.perf_counter()
    counter = itertools.count()  # svgd asks for the score once a step
    redrawn = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    with tqdm(total=steps, desc="svgd", unit="step", mininterval=redrawn, disable=not progress) as bar:

        def score(particles: Tensor) -> Tensor:
            step = next(counter)
            if step in wanted:
                distances[step] = marginals.distance(particles)
            bar.update()
            return prior.score(particles)

        particles = svgd(score, start, steps, step_size, step_rule="rms")
    seconds = time.perf_counter() - began
    distances[steps] = marginals.distance(particles)
    draws = [
        marginals.distance(quantiles(marginals.coefficients, marginals.bounds, levels))
        for levels in torch.rand(20, n, prior.d, generator=generator, dtype=torch.float64)
    ]
    exact = torch.tensor(draws)
    return SteinRun(particles, steps, seconds, distances, (exact.mean().item(), exact.std().item()))
