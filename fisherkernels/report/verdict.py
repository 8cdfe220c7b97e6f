"""Who won, with the uncertainty: paired differences, a t interval, and the words for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t as student_t
from torch import Tensor

CONFIDENCE = 0.95
# Below this many training runs the interval is over test images, and the page says so.
MIN_RUNS = 3


@dataclass(frozen=True)
class Comparison:
    """Fisher AE against VAE on one quantity. ``difference`` is Fisher AE minus VAE; low, high bound its interval."""

    fisher_ae: float
    vae: float
    low: float
    high: float
    count: int
    unit: str
    lower_is_better: bool = True

    @property
    def difference(self) -> float:
        return self.fisher_ae - self.vae

    @property
    def outcome(self) -> str:
        """ "win" or "loss" (of the Fisher AE) when the interval excludes 0, else "no clear difference"."""
        if self.low <= 0 <= self.high:
            return "no clear difference"
        return "win" if (self.high < 0) == self.lower_is_better else "loss"


def t_interval(differences: Tensor, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student t interval for the mean of paired differences [n]; (-inf, inf) when n = 1."""
    n = len(differences)
    if n < 1:
        raise ValueError("differences: expected at least one, got none")
    if n == 1:
        return float("-inf"), float("inf")
    mean = differences.double().mean().item()
    half_width = float(student_t.ppf(0.5 + confidence / 2, n - 1)) * differences.double().std().item() / n**0.5
    return mean - half_width, mean + half_width


def compare(fisher_ae: Tensor, vae: Tensor, *, lower_is_better: bool = True) -> Comparison:
    """Compares two tables [S, N] of S training runs by N test images (or [S, 1] for a set-level metric).

    Run s of one model is paired with run s of the other, image by image. From ``MIN_RUNS`` runs on the interval is
    over runs, so that it holds for a new training; with fewer it is over test images, for these trained models only.
    """
    if fisher_ae.shape != vae.shape or fisher_ae.ndim != 2:
        raise ValueError(
            f"vae: expected fisher_ae's [runs, images] shape {tuple(fisher_ae.shape)}, got {tuple(vae.shape)}"
        )
    difference = (fisher_ae - vae).double()
    over_runs = difference.shape[0] >= MIN_RUNS or difference.shape[1] == 1
    sample = difference.mean(dim=1) if over_runs else difference.mean(dim=0)
    low, high = t_interval(sample)
    unit = ("training run" if over_runs else "test image") + ("s" if len(sample) > 1 else "")
    return Comparison(
        fisher_ae.double().mean().item(),
        vae.double().mean().item(),
        low,
        high,
        len(sample),
        unit,
        lower_is_better,
    )


def headline(comparison: Comparison) -> str:
    """The answer in a few words."""
    return {
        "win": "Under noise, the Fisher AE beat the VAE.",
        "loss": "Under noise, the Fisher AE did not beat the VAE: the VAE was better.",
        "no clear difference": "Under noise, there is no clear difference between the Fisher AE and the VAE.",
    }[comparison.outcome]


def numbers(comparison: Comparison, quantity: str) -> str:
    """One sentence: both values, the relative difference and its interval."""
    c = comparison
    relative = ""
    if c.vae != 0:
        percent = 100 * abs(c.difference / c.vae)
        relative = f"{percent:.1f}% {'lower' if c.difference < 0 else 'higher'}; " if c.difference else "equal; "
    interval = (
        f"95% interval {signed(c.low)} to {signed(c.high)} over {c.count} {c.unit}"
        if math.isfinite(c.low)
        else f"no interval from {c.count} {c.unit}"
    )
    return (
        f"{quantity}: {c.fisher_ae:.4f} for the Fisher AE, {c.vae:.4f} for the VAE "
        f"({relative}difference {signed(c.difference)}, {interval})."
    )


def levels(comparisons: dict[float, Comparison]) -> str:
    """Which noise variances each model won, from per-level comparisons."""
    groups = {"win": [], "loss": [], "no clear difference": []}
    for variance, comparison in comparisons.items():
        groups[comparison.outcome].append(f"{variance:g}")
    words = {
        "win": "the Fisher AE was better",
        "loss": "the VAE was better",
        "no clear difference": "neither was",
    }
    parts = [f"{words[outcome]} at σ² = {', '.join(group)}" for outcome, group in groups.items() if group]
    return f"Level by level, {'; '.join(parts)}." if parts else ""


def signed(value: float) -> str:
    """Four decimals with the sign, or one significant digit where those would all be 0."""
    text = f"{value:+.4f}"
    if value and float(text) == 0:
        text = f"{value:+.0e}"
    return text.replace("-", "−")
