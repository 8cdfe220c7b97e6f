"""Derivatives of solutions, without a derivative of the solver."""

from collections.abc import Callable

import torch
from torch import Tensor

from fisherkernels.ops._autograd import single_backward


class ImplicitSolution(torch.autograd.Function):
    """x, the solution of M x = b, in the graph of its residual b - M x written with x held constant.

    From M dx = db - dM x = d(residual): the cotangent g of x becomes the cotangent M^-1 g of the residual, one more
    solve with the same symmetric M.
    """

    @staticmethod
    def forward(ctx, residual: Tensor, x: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(residual)
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor):
        with torch.no_grad():
            solution = ctx.solve(g)
        return *single_backward("solve", (True,), (solution,), (g, *ctx.saved_tensors)), None, None


class LogDeterminant(torch.autograd.Function):
    """ln|M| [N] of M [N, d, d] from its Cholesky factor; its derivative is M^-1."""

    @staticmethod
    def forward(ctx, metric: Tensor, factor: Tensor, inverse: Callable[[], Tensor]) -> Tensor:
        ctx.inverse = inverse
        ctx.save_for_backward(metric)
        return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)

    @staticmethod
    def backward(ctx, g: Tensor):
        with torch.no_grad():
            gradient = g[:, None, None] * ctx.inverse()
        return *single_backward("log_determinant", (True,), (gradient,), (g, *ctx.saved_tensors)), None, None
