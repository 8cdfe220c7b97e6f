"""Stein variational gradient descent, without an M x M matrix."""

import math

import numpy as np
import torch

from fisherkernels import ops

MEDIAN_PARTICLES = 2000  # the median heuristic is exact up to here
DECAY, FLOOR = 0.9, 1e-6  # of the running mean square in step_rule="rms"


def svgd(
    score_fn,
    particles: torch.Tensor,
    steps: int,
    step_size: float,
    bandwidth: float | None = None,
    step_rule: str = "plain",
) -> torch.Tensor:
    r"""Move particles towards the density whose score is given, by Stein variational gradient descent.

    .. math::
        x_i \leftarrow x_i + \tau \phi(x_i), \qquad
        \phi(x_i) = \frac1M \sum_j k(x_j, x_i)\, s(x_j) + \frac2h k(x_j, x_i)\, (x_i - x_j), \qquad
        k(a, b) = \exp(-\|a - b\|^2 / h)

    The M x M kernel matrix is never in memory: `fisherkernels.ops.svgd_step` makes it in tiles, from
    differences of coordinates (no digits are lost to a matrix product of large coordinates).

    Args:
        score_fn: s, taking ``[M, d]`` to ``[M, d]``.
        particles: the start, ``[M, d]``; not modified.
        steps: number of updates, >= 0.
        step_size: :math:`\tau` > 0.
        bandwidth: h > 0; None for the median heuristic in every step, :math:`h = \mathrm{median}(\|x_i -
            x_j\|)^2/\log(M + 1)` over all M^2 pairs (i, j), diagonal included. Above M = 2,000 the median is
            that of 2,000 particles evenly spaced in the order given. h = 0 (one particle, or all in one
            place) is replaced by 1.
        step_rule: ``"plain"``: the update above. ``"rms"``: :math:`\phi` is divided, per coordinate, by the
            root of its running mean square (decay 0.9, started at the first square, plus 1e-6), as in the
            code released with the Fisher auto-encoder.

    Returns:
        the moved particles ``[M, d]``, without a graph.

    Raises:
        TypeError: particles are neither float32 nor float64, or steps is no int.
        ValueError: wrong shapes, steps < 0, step_size or bandwidth <= 0, an unknown step_rule.

    Source: Liu and Wang, "Stein variational gradient descent", NeurIPS 2016, Algorithm 1.

    >>> moved = svgd(lambda x: 3.0 - x, torch.randn(50, 1), steps=200, step_size=0.5)
    >>> bool((moved.mean() - 3.0).abs() < 0.1)
    True
    """
    check(particles, steps, step_size, bandwidth, step_rule)
    particles = particles.detach()
    if particles.shape[0] == 0:
        return particles
    mean_square = None
    for _ in range(steps):
        score = score_fn(particles)
        if score.shape != particles.shape:
            raise ValueError(
                f"score_fn: expected a result of shape {list(particles.shape)}, received {list(score.shape)}"
            )
        with torch.no_grad():
            width = median_bandwidth(particles) if bandwidth is None else particles.new_tensor(bandwidth)
            direction = ops.svgd_step(particles, score.detach(), width)
            if step_rule == "rms":
                square = direction.square()
                mean_square = square if mean_square is None else torch.lerp(square, mean_square, DECAY)
                direction = direction / (FLOOR + mean_square.sqrt())
            particles = particles + step_size * direction
    return particles


def check(particles, steps, step_size, bandwidth, step_rule) -> None:
    if not isinstance(particles, torch.Tensor) or particles.dtype not in (torch.float32, torch.float64):
        received = particles.dtype if isinstance(particles, torch.Tensor) else type(particles).__name__
        raise TypeError(f"particles: expected a float32 or float64 tensor [M, d], received {received}")
    if particles.dim() != 2:
        raise ValueError(f"particles: expected shape [M, d], received {list(particles.shape)}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps: expected an int >= 0, received {type(steps).__name__}")
    if steps < 0:
        raise ValueError(f"steps: expected an int >= 0, received {steps}")
    if not step_size > 0:
        raise ValueError(f"step_size: expected a number > 0, received {step_size}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth: expected None or a number > 0, received {bandwidth}")
    if step_rule not in ("plain", "rms"):
        raise ValueError(f"step_rule: expected 'plain' or 'rms', received {step_rule!r}")


def median_bandwidth(particles: torch.Tensor) -> torch.Tensor:
    """h of the median heuristic, 0-d; no host synchronisation on a GPU."""
    count = particles.shape[0]
    if count > MEDIAN_PARTICLES:
        chosen = torch.arange(MEDIAN_PARTICLES, device=particles.device) * count // MEDIAN_PARTICLES
        particles = particles[chosen]
    width = median_distance(particles).square() / math.log(count + 1)
    return torch.where(width == 0, torch.ones_like(width), width)


def median_distance(particles: torch.Tensor) -> torch.Tensor:
    """Median of all M^2 distances, the mean of the two middle ones for even M, 0-d.

    Sorted, they are M zeros of the diagonal and then every pair's distance twice, so the pairs alone are
    enough.
    """
    count = particles.shape[0]
    if count == 1:
        return particles.new_zeros(())
    pairs = torch.pdist(particles)
    lower, upper = (count**2 - 1) // 2, count**2 // 2
    ranks = [(rank - count) // 2 for rank in (lower, upper) if rank >= count]
    values = [particles.new_zeros(())] * (2 - len(ranks)) + _ranked(pairs, ranks)
    return 0.5 * (values[0] + values[1])


def _ranked(values: torch.Tensor, ranks: list[int]) -> list[torch.Tensor]:
    """The values of these ranks, counted from 0; numpy's selection is faster than kthvalue on CPUs."""
    if values.device.type != "cpu" or not ranks:
        return [values.kthvalue(rank + 1).values for rank in ranks]
    selected = torch.from_numpy(np.partition(values.numpy(), sorted(set(ranks))))
    return [selected[rank] for rank in ranks]
