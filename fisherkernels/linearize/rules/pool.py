"""Max pooling, which picks entries, and average pooling to a given size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold, lead


class MaxPool(Rule):
    """J t picks the tangent at each window's largest entry, J^T c adds the cotangents of the windows it won."""

    traffic = 3

    def __init__(self, operation, dims: int):
        self.operation, self.dims = operation, dims

    def accepts(self, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        return return_indices is False

    def forward(
        self,
        input: Tensor,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ):
        value, index = self.operation(input, kernel_size, stride, padding, dilation, ceil_mode, True)
        return value, (tuple(input.shape), index)

    def vjp(self, saved, cotangent, stacked, needs):
        shape, index = saved
        front = lead(cotangent, stacked) + shape[: -self.dims]
        zeros = cotangent.new_zeros(front + (math.prod(shape[-self.dims :]),))
        picked = self._flat(index).expand(front + (-1,))
        return (zeros.scatter_add(-1, picked, self._flat(cotangent)).view(lead(cotangent, stacked) + shape),)

    def jvp(self, saved, tangents, stacked):
        (t,), (_, index) = tangents, saved
        flat = self._flat(t)
        return flat.gather(-1, self._flat(index).expand(*flat.shape[:-1], -1)).view(*lead(t, stacked), *index.shape)

    def _flat(self, t: Tensor) -> Tensor:
        return t.flatten(-self.dims)

    def keeps_samples(self, saved, operands, value):
        return len(value) == self.dims + 2


class AdaptiveMaxPool(MaxPool):
    """The same for windows of which the number is given."""

    def accepts(self, input, output_size, return_indices=False):
        return return_indices is False

    def forward(self, input: Tensor, output_size, return_indices: bool = False):
        value, index = self.operation(input, output_size, True)
        return value, (tuple(input.shape), index)


class AdaptiveAvgPool(Rule):
    """J t = pool(t), by matrices of means, one for each dimension."""

    traffic = 2

    def __init__(self, operation, dims: int):
        self.operation, self.dims = operation, dims

    def forward(self, input: Tensor, output_size):
        value = self.operation(input, output_size)
        return value, (tuple(input.shape[-self.dims :]), tuple(value.shape[-self.dims :]))

    def vjp(self, saved, cotangent, stacked, needs):
        sizes, pooled = saved
        for i, (size, out) in enumerate(zip(sizes, pooled, strict=True)):
            dim = i - self.dims
            means = _window_means(size, out, cotangent)
            cotangent = (cotangent.movedim(dim, -1) @ means).movedim(-1, dim)
        return (cotangent,)

    def jvp(self, saved, tangents, stacked):
        return fold(lambda t: self.operation(t, list(saved[1])), tangents[0], stacked)

    def keeps_samples(self, saved, operands, value):
        return len(value) == self.dims + 2

    def of_one_sample(self, saved, active):
        return saved


def _window_means(size: int, out: int, like: Tensor) -> Tensor:
    """[out, size]: row i averages entries floor(i size / out), ..., ceil((i + 1) size / out) - 1."""
    i = torch.arange(out, device=like.device)[:, None]
    j = torch.arange(size, device=like.device)
    inside = ((j >= i * size // out) & (j < -(-(i + 1) * size // out))).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _max_pool(module, read):
    return module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode


def _without_indices(module) -> bool:
    return not module.return_indices


_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ADAPTIVE_MAX = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
_MEAN = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)

RULES = {f"max_pool{d}d": MaxPool(function, d) for d, function in enumerate(_MAX, 1)}
RULES |= {f"adaptive_max_pool{d}d": AdaptiveMaxPool(function, d) for d, function in enumerate(_ADAPTIVE_MAX, 1)}
RULES |= {f"adaptive_avg_pool{d}d": AdaptiveAvgPool(function, d) for d, function in enumerate(_MEAN, 1)}
FUNCTIONS = {function: f"max_pool{d}d" for d, function in enumerate(_MAX, 1)}
FUNCTIONS |= {function: f"adaptive_max_pool{d}d" for d, function in enumerate(_ADAPTIVE_MAX, 1)}
FUNCTIONS |= {function: f"adaptive_avg_pool{d}d" for d, function in enumerate(_MEAN, 1)}
METHODS: dict = {}
MODULES = {getattr(nn, f"MaxPool{d}d"): Layer(f"max_pool{d}d", _max_pool, _without_indices) for d in (1, 2, 3)}
MODULES |= {
    getattr(nn, f"AdaptiveMaxPool{d}d"): Layer(
        f"adaptive_max_pool{d}d", lambda module, read: (module.output_size,), _without_indices
    )
    for d in (1, 2, 3)
}
MODULES |= {
    getattr(nn, f"AdaptiveAvgPool{d}d"): Layer(f"adaptive_avg_pool{d}d", lambda module, read: (module.output_size,))
    for d in (1, 2, 3)
}
