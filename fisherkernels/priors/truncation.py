"""Where to cut a one-dimensional polynomial log density, so that it can be normalised and put on a grid."""

import math

import numpy as np
import torch

DROP = 40.0  # nats below the maximum at which the density counts as zero
FALLBACK = 5.0  # outer end where the density grows without end and has no maximum to stay near


def truncation_bounds(coefficients: torch.Tensor, interval=None) -> torch.Tensor:
    """(low, high) per row of coefficients [d, K] (float64 on the CPU): [d, 2]; interval: None, a pair, or [d, 2]."""
    if not bool(torch.isfinite(coefficients).all()):
        raise ValueError("coefficients: expected finite values, received NaN or infinity")
    intervals = [None] * len(coefficients) if interval is None else check_interval(interval, len(coefficients))
    bounds = []
    for row, ends in zip(coefficients.numpy(), intervals, strict=True):
        density = np.polynomial.Polynomial([0.0, *row]).trim()
        bounds.append(cut(density, stationary_points(density), ends))
    return torch.tensor(bounds, dtype=torch.float64)


def check_interval(interval, d: int) -> list[tuple[float, float]]:
    """One (low, high) per dimension."""
    if isinstance(interval, torch.Tensor):
        if interval.shape != (d, 2):
            shape = list(interval.shape)
            raise ValueError(f"interval: expected (low, high) or a tensor [{d}, 2], received shape {shape}")
        pairs = [tuple(pair) for pair in interval.tolist()]
    else:
        low, high = (float(end) for end in interval)
        pairs = [(low, high)] * d
    for low, high in pairs:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"interval: expected finite (low, high) with low < high, received {(low, high)!r}")
    return pairs


def stationary_points(density: np.polynomial.Polynomial) -> np.ndarray:
    """The real roots of the score, ascending, each once."""
    roots = density.deriv().roots() if density.degree() > 1 else np.zeros(0)
    return np.unique(roots.real[np.abs(roots.imag) <= 1e-7 * (1 + np.abs(roots))])


def cut(density, stationary: np.ndarray, interval: tuple[float, float] | None) -> tuple[float, float]:
    low, high = outer_ends(density, stationary) if interval is None else interval
    inside = stationary[(stationary > low) & (stationary < high)]
    points = np.concatenate([[low], inside, [high]])  # log density is monotone between neighbours
    threshold = density(points).max() - DROP
    return crossing(density, points, threshold), crossing(density, points[::-1], threshold)


def crossing(density, points: np.ndarray, threshold: float) -> float:
    """Going along `points`, the first place at which the log density reaches the threshold."""
    first = int(np.argmax(density(points) >= threshold))
    if first == 0:
        return float(points[0])
    below, above = points[first - 1], points[first]
    for _ in range(60):
        middle = 0.5 * (below + above)
        below, above = (below, middle) if density(middle) >= threshold else (middle, above)
    return float(below)


def outer_ends(density, stationary: np.ndarray) -> tuple[float, float]:
    """Ends beyond which the density is negligible, or rises without end."""
    degree = density.degree()
    leading = density.coef[-1] if degree else 0.0
    rises_right, rises_left = leading >= 0, leading * (-1) ** degree >= 0
    maxima, minima = extrema(density, stationary)
    if not len(maxima):
        return -FALLBACK, FALLBACK
    threshold = density(maxima).max() - DROP
    low = minima[0] if rises_left else descend(density, stationary[0], -1.0, threshold)
    high = minima[-1] if rises_right else descend(density, stationary[-1], 1.0, threshold)
    return low, high


def extrema(density, stationary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima and minima: the stationary points at which the score changes sign."""
    if not len(stationary):
        return stationary, stationary
    between = 0.5 * (stationary[1:] + stationary[:-1])
    signs = np.sign(density.deriv()(np.concatenate([[stationary[0] - 1], between, [stationary[-1] + 1]])))
    left, right = signs[:-1], signs[1:]
    return stationary[(left > 0) & (right < 0)], stationary[(left < 0) & (right > 0)]


def descend(density, start: float, direction: float, threshold: float) -> float:
    """A point beyond `start`, on a tail that falls without end, below the threshold."""
    step = 1.0
    while density(start + direction * step) >= threshold:
        step *= 2
    return start + direction * step
