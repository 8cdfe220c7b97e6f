"""How a solve went: what is told on request, warned about, and raised."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from fisherkernels.metric.conjugate_gradients import Solution
from fisherkernels.ops.cg_update import CONVERGED, NEGATIVE_CURVATURE, NOT_FINITE


class SolveInfo(NamedTuple):
    """How a solve went. ``iterations``, ``residual`` (‖b - M x‖/‖b‖) and ``converged``: shape of b without d."""

    method: str
    iterations: Tensor
    residual: Tensor
    converged: Tensor


def solve_info(method: str, rhs: Tensor, product: Tensor, solution: Solution | None) -> SolveInfo:
    """From right-hand sides [K, N, d], their solutions' products with M, and what conjugate gradients said, if any."""
    residual = torch.linalg.vector_norm(rhs - product, dim=2)
    scale = torch.linalg.vector_norm(rhs, dim=2)
    relative = torch.where(scale > 0, residual / torch.where(scale > 0, scale, 1.0), residual)  # [K, N]
    if solution is None:
        return SolveInfo(method, torch.zeros_like(relative, dtype=torch.int32), relative, torch.isfinite(relative))
    converged = (solution.status == CONVERGED).view(relative.shape)
    return SolveInfo(method, solution.iterations.view(relative.shape), relative, converged)


def check_factor(factor: Tensor) -> None:
    """Raises where a Cholesky factor [N, d, d] holds NaN; on the CPU in eager mode, elsewhere NaN stays in its sample.

    Raises:
        FloatingPointError: with the sample's index.
    """
    if torch.compiler.is_compiling() or factor.device.type != "cpu" or factor.shape[1] == 0:
        return
    broken = ~torch.isfinite(factor[:, -1, -1])
    if bool(broken.any()):
        raise FloatingPointError(
            f"FisherMetric: the metric of sample {_first(broken)} holds NaN or infinity or is not positive definite "
            f"({int(broken.sum())} of {len(broken)} samples); look at the mean and the decoder's weights"
        )


def check_solution(solution: Solution, rows: int, tol: float, max_iter: int) -> None:
    """Errors and warnings about systems that did not end well; system k belongs to sample k % rows.

    Raises:
        FloatingPointError: NaN, infinity or negative curvature, with the sample's index.
    """
    status = solution.status
    if bool((status == CONVERGED).all()):
        return
    for flag, what in ((NOT_FINITE, "NaN or infinity"), (NEGATIVE_CURVATURE, "negative curvature")):
        broken = status == flag
        if bool(broken.any()):
            raise FloatingPointError(
                f"FisherMetric: conjugate gradients met {what} in sample {_first(broken) % rows} "
                f"({int(broken.sum())} of {len(broken)} systems)"
            )
    unfinished = status != CONVERGED
    worst = int(torch.where(unfinished, solution.residual, 0).argmax())
    warnings.warn(
        f"FisherMetric: {int(unfinished.sum())} of {len(status)} systems did not reach a relative residual of {tol:g} "
        f"in max_iter={max_iter} iterations; the largest is {float(solution.residual[worst]):.2g}, of sample "
        f"{worst % rows}",
        RuntimeWarning,
        stacklevel=5,
    )


def _first(flags: Tensor) -> int:
    return int(flags.to(torch.int32).argmax())
