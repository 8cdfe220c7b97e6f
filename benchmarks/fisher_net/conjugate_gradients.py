"""Batched conjugate gradients, the way a careful user writes them."""

import torch

RELATIVE_RESIDUAL = 1e-5  # asked of every iterative solver


def solve(product, rhs, start, tolerance, max_iter=1000):
    """x [N, d] with product(x) = rhs, and the number of products; `product` applies each item's own matrix.

    Each item has its own step sizes and stops at its own relative residual.
    """
    x, residual = start, rhs - product(start)
    direction, squared = residual, residual.square().sum(1, keepdim=True)
    limit = tolerance**2 * rhs.square().sum(1, keepdim=True)
    for products in range(1, max_iter + 1):
        active = squared > limit
        if not active.any():
            return x, products
        image = product(direction)
        step = torch.where(active, squared / (direction * image).sum(1, keepdim=True), 0)
        x, residual = x + step * direction, residual - step * image
        new = residual.square().sum(1, keepdim=True)
        direction = torch.where(active, residual + new / squared * direction, direction)
        squared = torch.where(active, new, squared)
    raise RuntimeError(f"{int(active.sum())} of {len(rhs)} items did not converge in {max_iter} iterations")
