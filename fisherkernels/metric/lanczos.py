"""ln|M| by stochastic Lanczos quadrature: products with M only."""

from collections.abc import Callable

import torch
from torch import Tensor


def lanczos_logdet(
    matvec: Callable[[Tensor], Tensor], probes: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Estimates ln|M| [N] from probe vectors [P, N, d], and gives M^-1 probe [P, N, d] for the derivative.

    The Lanczos process turns each probe v into a tridiagonal T with v^T g(M) v = ‖v‖² e_1^T g(T) e_1, exact after d
    steps and for polynomials g up to degree 2 num_steps - 1; v^T ln(M) v has ln|M| as its mean. A process that has
    exhausted its Krylov space goes on as the identity, which contributes nothing.

    Source: Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix
    Anal. Appl. 2017, algorithm 1.
    """
    steps = min(num_steps, probes.shape[2])
    if steps == 0:
        return probes.new_zeros(probes.shape[1]), probes
    norm = torch.linalg.vector_norm(probes, dim=2, keepdim=True)  # [P, N, 1]
    q = probes / norm
    basis, diagonal, off_diagonal = [q], [], []
    exhausted = torch.zeros_like(norm, dtype=torch.bool)
    tiny = 10 * torch.finfo(probes.dtype).eps
    for k in range(steps):
        w = matvec(q)
        alpha = (w * q).sum(2, keepdim=True)
        diagonal.append(torch.where(exhausted, 1.0, alpha))
        if k == steps - 1:
            break
        earlier = torch.stack(basis)  # [k + 1, P, N, d]
        for _ in range(2):  # twice is enough to keep float32 vectors orthogonal
            w = w - ((earlier * w).sum(3, keepdim=True) * earlier).sum(0)
        beta = torch.linalg.vector_norm(w, dim=2, keepdim=True)
        exhausted = exhausted | (beta <= tiny * alpha.abs())
        off_diagonal.append(torch.where(exhausted, 0.0, beta))
        q = torch.where(exhausted, 0.0, w / torch.where(exhausted, 1.0, beta))
        basis.append(q)
    tridiagonal = torch.diag_embed(torch.cat(diagonal, 2))  # [P, N, k, k]
    if off_diagonal:
        side = torch.diag_embed(torch.cat(off_diagonal, 2), offset=1)
        tridiagonal = tridiagonal + side + side.mT
    values, vectors = torch.linalg.eigh(tridiagonal)
    first = vectors[..., 0, :]  # [P, N, k]
    estimate = (norm[..., 0].square() * (first.square() * values.log()).sum(2)).mean(0)
    coefficients = norm * (vectors @ (first / values)[..., None])[..., 0]  # T^-1 e_1 ‖v‖, [P, N, k]
    inverse = torch.einsum("kpnd,pnk->pnd", torch.stack(basis), coefficients)
    return estimate, inverse
