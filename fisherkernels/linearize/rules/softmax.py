"""Softmax, its logarithm, and log-sum-exp; E and V are the mean and variance under the weights p = softmax(x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, SymmetricRule, behind
from .reduction import dimensions


class _OneDimension:
    """Samples stay apart unless the dimension is theirs."""

    def keeps_samples(self, saved, operands, value):
        return saved[1] % len(operands[0]) != 0


class Softmax(_OneDimension, SymmetricRule):
    """J t = p (t - E t) = J^T t; the second derivative along t is p ((t - E t)^2 - V t)."""

    traffic = 4

    def accepts(self, input, dim=None, _stacklevel=3, dtype=None):
        return isinstance(dim, int) and isinstance(_stacklevel, int) and dtype is None

    def forward(self, input: Tensor, dim: int, _stacklevel: int = 3, dtype=None):
        value = torch.softmax(input, dim)
        return value, (value, dim)

    def apply(self, saved, t, stacked):
        return softmax_product(*saved, t, stacked)

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        return softmax_curvature(*saved, tangents[0])


class Softmin(Softmax):
    """Softmax of -x, whose second derivative has the same formula."""

    def forward(self, input: Tensor, dim: int, _stacklevel: int = 3, dtype=None):
        return super().forward(-input, dim)

    def apply(self, saved, t, stacked):
        return -super().apply(saved, t, stacked)


def softmax_product(p: Tensor, dim: int, t: Tensor, stacked: bool) -> Tensor:
    return p * (t - (p * t).sum(behind(dim, stacked), keepdim=True))


def softmax_curvature(p: Tensor, dim: int, t: Tensor) -> Tensor:
    squares = (t - (p * t).sum(behind(dim, True), keepdim=True)).square().sum(0)
    return p * (squares - (p * squares).sum(dim, keepdim=True))


class LogSoftmax(_OneDimension, Rule):
    """J t = t - E t, J^T c = c - p sum(c); the second derivative along t is -V t."""

    traffic = 4

    def accepts(self, input, dim=None, _stacklevel=3, dtype=None):
        return isinstance(dim, int) and isinstance(_stacklevel, int) and dtype is None

    def forward(self, input: Tensor, dim: int, _stacklevel: int = 3, dtype=None):
        value = torch.log_softmax(input, dim)
        return value, (value, dim)

    def vjp(self, saved, cotangent, stacked, needs):
        value, dim = saved
        return (cotangent - value.exp() * cotangent.sum(behind(dim, stacked), keepdim=True),)

    def jvp(self, saved, tangents, stacked):
        (t,), (value, dim) = tangents, saved
        return t - (value.exp() * t).sum(behind(dim, stacked), keepdim=True)

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        value, dim = saved
        return -_variance(value.exp(), dim, tangents[0]).expand(value.shape)


class LogSumExp(Rule):
    """J t = E t, J^T c = p c; the second derivative along t is V t."""

    def accepts(self, input, dim, keepdim=False):
        return isinstance(dim, (int, tuple))

    def forward(self, input: Tensor, dim, keepdim: bool = False):
        dims = dimensions(dim, input.dim())
        value = torch.logsumexp(input, dims, keepdim=True)
        p = torch.exp(input - value)
        return value if keepdim else value.squeeze(dims), (p, dims, keepdim)

    def vjp(self, saved, cotangent, stacked, needs):
        p, dims, keepdim = saved
        kept = [1 if d in dims else size for d, size in enumerate(p.shape)]
        return (p * cotangent.reshape(*cotangent.shape[: int(stacked)], *kept),)

    def jvp(self, saved, tangents, stacked):
        p, dims, keepdim = saved
        return (p * tangents[0]).sum([d + 1 for d in dims] if stacked else dims, keepdim=keepdim)

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        p, dims, keepdim = saved
        variance = _variance(p, dims, tangents[0])
        return variance if keepdim else variance.squeeze(dims)

    def keeps_samples(self, saved, operands, value):
        return 0 not in saved[1]


def _variance(p: Tensor, dims, t: Tensor) -> Tensor:
    """Of every tangent under p, summed over the stack, shape of p with the dimensions kept."""
    behind_dims = [behind(d, True) for d in (dims if isinstance(dims, tuple) else (dims,))]
    squares = (t - (p * t).sum(behind_dims, keepdim=True)).square().sum(0)
    return (p * squares).sum(dims, keepdim=True)


def _along(rule: str) -> Layer:
    return Layer(rule, lambda module, read: (module.dim,), lambda module: module.dim is not None)


RULES = {"softmax": Softmax(), "softmin": Softmin(), "log_softmax": LogSoftmax(), "logsumexp": LogSumExp()}
FUNCTIONS = {
    F.softmax: "softmax",
    torch.softmax: "softmax",
    F.softmin: "softmin",
    F.log_softmax: "log_softmax",
    torch.log_softmax: "log_softmax",
    torch.logsumexp: "logsumexp",
}
METHODS = {"softmax": "softmax", "log_softmax": "log_softmax", "logsumexp": "logsumexp"}
MODULES = {
    nn.Softmax: _along("softmax"),
    nn.Softmin: _along("softmin"),
    nn.LogSoftmax: _along("log_softmax"),
    nn.Softmax2d: Layer("softmax", lambda module, read: (-3,)),
}
