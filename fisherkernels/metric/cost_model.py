"""Which route is faster here: predicted times of the direct one and of conjugate gradients.

Both are made of few things whose speed is measured once per process, device and dtype: matrix products by their
number of rows, the metric_solve kernel by d, memory-bound steps, and the fixed cost of an operation.
"""

import math
import weakref
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from fisherkernels import ops
from fisherkernels.linearize import linearize
from fisherkernels.timing import shortest_time

_ROWS = (8, 32, 128, 512, 2048)
_WIDTHS = (4, 16, 64, 128)
_LAYER = 512  # width of the square layer whose product is timed
_REPEATS = 10


class Constants(NamedTuple):
    """Measured on this machine; times in seconds."""

    step: float  # one step of a linearised network, however small
    product: tuple[float, ...]  # per FLOP of a matrix product, by rows
    solve: tuple[float, ...]  # per FLOP of metric_solve, by d
    byte: float  # per byte that an elementwise operation touches
    active: tuple[float, ...] | None  # per FLOP of relu_metric_factor, by d; None without its kernel


class Active(NamedTuple):
    """FLOPs of the direct route over the active units of a ReLU network."""

    units: float  # products with the tangents, and the Gram matrices
    gram: float  # of the last layer's weights, where it is not there yet


class Problem(NamedTuple):
    """Sizes of a solve: N, d, D, right-hand sides per sample, and the work of one tangent of one sample."""

    rows: int
    width: int
    columns: int
    num_rhs: int
    flops: float
    bytes: float
    steps: int
    active: Active | None = None


class Seen(NamedTuple):
    """What an earlier solve with the same decoder took."""

    iterations: int
    tol: float


_SEEN: weakref.WeakKeyDictionary[torch.nn.Module, Seen] = weakref.WeakKeyDictionary()


def remember(decoder: torch.nn.Module, iterations: int, tol: float) -> None:
    """Keeps the largest number of iterations of a solve, for the next prediction."""
    _SEEN[decoder] = Seen(iterations, tol)


def expected_iterations(decoder: torch.nn.Module, width: int, tol: float) -> float:
    """Of the slowest sample: what this decoder took last, else 10 at 1e-5, as decoders with a handful of eigenvalues
    far from 1 take; at most d.
    """
    usual = _usual_iterations(tol)
    seen = _SEEN.get(decoder)
    return min(width, usual if seen is None else usual * seen.iterations / _usual_iterations(seen.tol))


def _usual_iterations(tol: float) -> float:
    return 4.5 + 1.05 * max(0.0, -math.log10(tol))


def predict(problem: Problem, iterations: float, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds that a solve takes by "cholesky", and by "cg" in that many iterations."""
    constants = measured(str(device), dtype)
    n, d, k = problem.rows, problem.width, problem.num_rhs

    def passes(vectors: int) -> float:
        """One product with J or its transpose, ``vectors`` vectors per sample at once."""
        work = n * vectors * (
            problem.flops * _at(constants.product, _ROWS, n * vectors) + problem.bytes * constants.byte
        )
        return problem.steps * constants.step + work

    factoring = d**3 / 3 + 2 * d * d * k
    if problem.active is not None and constants.active is not None:
        units, gram = problem.active
        direct = (units + n * factoring) * _at(constants.active, _WIDTHS, d) + gram * constants.product[-1]
        direct += passes(k)
    else:
        flops = problem.columns * d * (d + 1) + factoring
        direct = passes(d) + n * flops * _at(constants.solve, _WIDTHS, d)
    per_iteration = 2 * passes(k) + 2 * constants.step
    return {"cholesky": direct, "cg": (iterations + 1) * per_iteration}


def _at(values: tuple[float, ...], points: tuple[int, ...], where: float) -> float:
    """Interpolates in the logarithm of the size; constant outside."""
    for low, high, left, right in zip(points, points[1:], values, values[1:], strict=False):
        if where <= high:
            t = max(0.0, math.log(max(where, 1) / low) / math.log(high / low))
            return left + t * (right - left)
    return values[-1]


@cache
def measured(device: str, dtype: torch.dtype) -> Constants:
    """Takes about a tenth of a second, once."""
    options = {"device": device, "dtype": dtype}
    with torch.no_grad():
        weight = torch.ones(_LAYER, _LAYER, **options)
        batches = [torch.ones(rows, _LAYER, **options) for rows in _ROWS]
        product = tuple(_time(lambda x=x: x @ weight) / (2 * len(x) * _LAYER**2) for x in batches)
        samples, columns = 16, 512
        solve = []
        for width in _WIDTHS:
            tangents = torch.full((width, samples, columns), 1 / columns, **options)
            ones, rhs = torch.ones(1, 1, **options), torch.ones(1, samples, width, **options)
            flops = samples * (columns * width * (width + 1) + width**3 / 3 + 2 * width * width)
            solve.append(_time(lambda t=tangents, o=ones, b=rhs: ops.metric_solve(t, o, b, None)) / flops)
        large = torch.ones(1 << 18, **options)
        byte = _time(lambda: torch.mul(large, large, out=large)) / (2 * large.numel() * large.element_size())
        step = _time_of_a_step(options)
        active = None
        if device == "cpu" and ops.backends()["cpu"].active:
            active = tuple(_time_of_active_units(width, options) for width in _WIDTHS)
    return Constants(step, product, tuple(solve), byte, active)


def _time_of_active_units(width: int, options: dict) -> float:
    """Per FLOP; half of the units are on."""
    samples, units = 8, 256
    weight = torch.full((units, units), 1 / units, **options)
    values = [torch.tensor([0, 1], **options).repeat(samples, units // 2)] * 2
    flops = samples * (2 * width * 2 * (units // 2) ** 2 + width**2 * units // 2 + width**3 / 3)
    return _time(lambda: ops.relu_metric_factor(weight[:, :width].contiguous(), [weight], values, weight)) / flops


def _time_of_a_step(options: dict) -> float:
    layers = [torch.nn.Identity()]
    for _ in range(8):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 4, 4, **options)  # draws no random numbers
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layers += [layer, torch.nn.ReLU()]
    lin = linearize(torch.nn.Sequential(*layers), torch.ones(2, 4, **options))
    tangent = torch.ones(2, 4, **options)
    return _time(lambda: lin.jvp(tangent)) / lin.work().steps


def _time(function: Callable[[], object]) -> float:
    return shortest_time(function, _REPEATS, torch.cuda.synchronize if torch.cuda.is_available() else None)
