"""One iteration of the conjugate gradient method, every row with its own step size and its own stopping."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_matrix, check_same_shape, check_tensor
from fisherkernels.ops._library import define

ACTIVE, CONVERGED, NEGATIVE_CURVATURE, NOT_FINITE = range(4)


def cg_update(
    solution: Tensor,
    residual: Tensor,
    direction: Tensor,
    history: Tensor,
    squared_norm: Tensor,
    status: Tensor,
    iterations: Tensor,
    product: Tensor,
    threshold: Tensor,
    step: int,
) -> None:
    r"""One conjugate gradient iteration for R systems M x = b, in place: step, reorthogonalisation, stopping test.

    For every row whose status is 0, with x = solution, r = residual, p = direction, q = product = M p, ρ = squared_norm
    and the normalised earlier residuals u_j = history[j], j = 0..step:

        α = ρ / pᵀq          x ← x + α p          r' = r - α q          r ← r' - Σ_j (u_jᵀ r') u_j
        ρ' = ‖r‖²            p ← r + (ρ'/ρ) p     ρ ← ρ'                history[step + 1] = r / ‖r‖

    and iterations grows by 1. All u_jᵀ r' are taken of the same r' (classical Gram-Schmidt), so that history is read
    once. In exact arithmetic they are zero; in float32 they are what costs further iterations. What they take from r
    they do not take from b - M x, which then differs from r by rounding times M's condition number. A row ends with
    status

    - 1 (converged) where ρ' <= threshold, or, without a step, where ρ <= threshold already;
    - 2 (negative curvature) where pᵀq <= 0: M is not positive definite;
    - 3 (not finite) where ρ, pᵀq or ρ' is NaN or infinite.

    A row takes no step in the call that gives it status 2 or 3, nor in any call once its status is not 0: all that
    belongs to it stays bit for bit, but for history[step + 1], which is defined only where a step was taken. No row
    has any influence on another, and the same input gives the same bits.

    Args:
        solution: x, shape [R, d]; like all arguments down to iterations, contiguous and changed in place.
        residual: r = b - M x, shape [R, d].
        direction: p, shape [R, d]; r at first (a tensor of its own).
        history: shape [K, R, d], K >= step + 2; history[0] = r / ‖r‖ at first.
        squared_norm: ρ = ‖r‖², shape [R].
        status: int32, shape [R]; 0 at first.
        iterations: int32, shape [R]; counts the steps taken.
        product: q = M p, shape [R, d].
        threshold: (tol ‖b‖)², shape [R].
        step: index of this iteration, from 0.

    Raises:
        TypeError: for a dtype other than float32 and float64, mixed dtypes, or a status or iterations not int32.
        ValueError: for shapes that do not go together, mixed devices, an argument to change that is not contiguous,
            or a step outside of history.
        RuntimeError: where autograd would record the call; FisherMetric differentiates implicitly.

    Source: Hestenes & Stiefel 1952; reorthogonalisation as for Lanczos vectors, Parlett & Scott 1979.
    """
    name = "cg_update"
    check_full_precision(name, "solution", solution)
    check_matrix(name, "solution", solution)
    for argument, value in (("residual", residual), ("direction", direction), ("product", product)):
        check_tensor(name, argument, value, solution)
        check_same_shape(name, argument, value, "solution", solution)
    rows, size = solution.shape
    check_tensor(name, "history", history, solution)
    if history.dim() != 3 or history.shape[1:] != solution.shape:
        raise ValueError(
            f"{name}: history must have shape [iterations + 1, {rows}, {size}], got {list(history.shape)}"
        )
    if step < 0 or step + 2 > history.shape[0]:
        raise ValueError(
            f"{name}: step must be at least 0 and at most {history.shape[0] - 2}, history having "
            f"{history.shape[0]} entries, got {step}"
        )
    for argument, value in (("squared_norm", squared_norm), ("threshold", threshold)):
        check_tensor(name, argument, value, solution)
        _check_vector(name, argument, value, rows)
    for argument, value in (("status", status), ("iterations", iterations)):
        if not isinstance(value, Tensor) or value.dtype is not torch.int32:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: {argument} must be an int32 Tensor, got {kind}")
        if value.device != solution.device:
            raise ValueError(f"{name}: {argument} must be on {solution.device} like solution, got {value.device}")
        _check_vector(name, argument, value, rows)
    changed = (solution, residual, direction, history, squared_norm, status, iterations)
    names = ("solution", "residual", "direction", "history", "squared_norm", "status", "iterations")
    for argument, value in zip(names, changed, strict=True):
        if not value.is_contiguous():
            raise ValueError(
                f"{name}: {argument} is changed in place and must be contiguous, got strides {list(value.stride())} "
                f"for shape {list(value.shape)}"
            )
    if direction is residual:
        raise ValueError(f"{name}: direction must have memory of its own, got the residual itself; clone it")
    call(torch.ops.fisherkernels.cg_update.default, _autograd, *changed, product, threshold, step)


def _check_vector(name: str, argument: str, value: Tensor, rows: int) -> None:
    if value.shape != (rows,):
        raise ValueError(f"{name}: {argument} must have shape [{rows}] beside solution, got {list(value.shape)}")


def _update(
    solution: Tensor,
    residual: Tensor,
    direction: Tensor,
    history: Tensor,
    squared_norm: Tensor,
    status: Tensor,
    iterations: Tensor,
    product: Tensor,
    threshold: Tensor,
    step: int,
) -> None:
    curvature = (direction * product).sum(1)  # [R]
    alpha = squared_norm / curvature
    updated = residual - alpha[:, None] * product  # [R, d]
    basis = history[: step + 1]  # [J, R, d]
    updated = updated - ((basis * updated).sum(2, keepdim=True) * basis).sum(0)
    norm = updated.square().sum(1)
    beta = norm / squared_norm

    outcome = torch.where(norm <= threshold, CONVERGED, ACTIVE)
    outcome = torch.where(norm.isfinite(), outcome, NOT_FINITE)
    outcome = torch.where(curvature <= 0, NEGATIVE_CURVATURE, outcome)
    outcome = torch.where(curvature.isfinite(), outcome, NOT_FINITE)
    before = squared_norm <= threshold
    outcome = torch.where(before, CONVERGED, outcome)
    outcome = torch.where(squared_norm.isfinite(), outcome, NOT_FINITE)
    active = status == ACTIVE
    steps = active & ~before & (outcome <= CONVERGED)

    moves = steps[:, None]
    solution.copy_(torch.where(moves, solution + alpha[:, None] * direction, solution))
    direction.copy_(torch.where(moves, updated + beta[:, None] * direction, direction))
    residual.copy_(torch.where(moves, updated, residual))
    unit = torch.where(norm > 0, norm, 1).rsqrt()
    history[step + 1] = torch.where(moves, unit[:, None] * updated, history[step + 1])
    squared_norm.copy_(torch.where(steps, norm, squared_norm))
    iterations.add_(steps)
    status.copy_(torch.where(active, outcome, status))


def _update_fake(*args: Tensor | int) -> None:
    return None


_refuse_graph = not_differentiable("cg_update")


def _autograd(*args: Tensor | int) -> None:
    _refuse_graph(*args)
    torch.autograd.graph.increment_version(args[:7])


define(
    "cg_update",
    "(Tensor(a!) solution, Tensor(b!) residual, Tensor(c!) direction, Tensor(d!) history, Tensor(e!) squared_norm,"
    " Tensor(f!) status, Tensor(g!) iterations, Tensor product, Tensor threshold, int step) -> ()",
    twin=_update,
    fake=_update_fake,
    autograd=_autograd,
)
