"""Conjugate gradients for many small systems at once, each with its own steps and its own stopping."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fisherkernels import ops
from fisherkernels.ops.cg_update import ACTIVE, NOT_FINITE

POLL_EVERY = {"cpu": 1}  # iterations between looks at the stopping flags; a look makes the host wait for a GPU
POLL_EVERY_ELSEWHERE = 4


class Solution(NamedTuple):
    """x [R, d]; per row the relative residual ‖b - A x‖/‖b‖ as the recursion knows it, the iterations, the status."""

    x: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor


def conjugate_gradients(
    matvec: Callable[[Tensor], Tensor], b: Tensor, start: Tensor, residual: Tensor, *, tol: float, max_iter: int
) -> Solution:
    """Solves A x = b for every row of b [R, d], A symmetric and positive definite, ``residual`` = b - A ``start``.

    A row stops where ‖residual‖ <= tol ‖b‖. Each residual is orthogonalised against all earlier ones of its row:
    in float32 they lose orthogonality within a few steps, which costs a third to a half more iterations. Under
    torch.compile all ``max_iter`` iterations are in the graph and rows that have stopped are masked.
    """
    threshold = (tol * torch.linalg.vector_norm(b, dim=1)).square()  # [R]
    x, r = start.clone(), residual.clone(memory_format=torch.contiguous_format)
    squared_norm = r.square().sum(1)  # [R]
    direction = r.clone()
    status = (squared_norm <= threshold).to(torch.int32)
    status = torch.where(torch.isfinite(squared_norm), status, status.new_full((), NOT_FINITE))
    iterations = torch.zeros_like(status)
    history = b.new_empty((max_iter + 1, *b.shape))  # [max_iter + 1, R, d]
    history[0] = r * torch.rsqrt(squared_norm.clamp_min(torch.finfo(b.dtype).tiny))[:, None]
    every = POLL_EVERY.get(b.device.type, POLL_EVERY_ELSEWHERE)
    for step in range(max_iter):
        if not torch.compiler.is_compiling() and step % every == 0 and not bool((status == ACTIVE).any()):
            break
        product = matvec(direction)
        ops.cg_update(
            x, r, direction, history, squared_norm, status, iterations, product.contiguous(), threshold, step
        )
    relative = torch.sqrt(squared_norm / (threshold / tol**2).clamp_min(torch.finfo(b.dtype).tiny))
    return Solution(x, relative, iterations, status)
