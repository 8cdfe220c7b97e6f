"""Windows of images as columns, and images as sums of columns: each is the other's transpose."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule


class Unfold(Rule):
    """J t = unfold(t), J^T c = fold(c)."""

    traffic = 2

    def forward(self, input: Tensor, kernel_size, dilation=1, padding=0, stride=1):
        options = (kernel_size, dilation, padding, stride)
        return F.unfold(input, *options), (tuple(input.shape[-2:]), options)

    def vjp(self, saved, cotangent, stacked, needs):
        size, options = saved
        return (_of_each(lambda c: F.fold(c, size, *options), cotangent, 2),)

    def jvp(self, saved, tangents, stacked):
        _, options = saved
        return _of_each(lambda t: F.unfold(t, *options), tangents[0], 3)

    def of_one_sample(self, saved, active):
        return saved


class Fold(Rule):
    """J t = fold(t), J^T c = unfold(c)."""

    traffic = 2

    def forward(self, input: Tensor, output_size, kernel_size, dilation=1, padding=0, stride=1):
        options = (kernel_size, dilation, padding, stride)
        return F.fold(input, output_size, *options), (output_size, options)

    def vjp(self, saved, cotangent, stacked, needs):
        _, options = saved
        return (_of_each(lambda c: F.unfold(c, *options), cotangent, 3),)

    def jvp(self, saved, tangents, stacked):
        size, options = saved
        return _of_each(lambda t: F.fold(t, size, *options), tangents[0], 2)

    def of_one_sample(self, saved, active):
        return saved


def _of_each(function: Callable[[Tensor], Tensor], t: Tensor, rank: int) -> Tensor:
    """``function`` of every [C, H, W], or [C, L], whatever leads."""
    front = t.shape[:-rank]
    out = function(t.reshape(math.prod(front), *t.shape[-rank:]))
    return out.reshape(*front, *out.shape[1:])


def _options(module: nn.Unfold | nn.Fold) -> tuple:
    return module.kernel_size, module.dilation, module.padding, module.stride


RULES = {"unfold": Unfold(), "fold": Fold()}
FUNCTIONS = {F.unfold: "unfold", F.fold: "fold"}
METHODS: dict = {}  # Tensor.unfold is another function
MODULES = {
    nn.Unfold: Layer("unfold", lambda module, read: _options(module)),
    nn.Fold: Layer("fold", lambda module, read: (module.output_size, *_options(module))),
}
