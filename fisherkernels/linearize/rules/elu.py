"""Exponential linear units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ElementwiseRule, Layer

_SELU = 1.6732632423543772, 1.0507009873554805  # alpha, s


class ELU(ElementwiseRule):
    """y = s x for x > 0, else s alpha (exp(r x) - 1): a' = s, else s alpha r exp(r x)."""

    def forward(self, input: Tensor, alpha: float = 1.0, inplace: bool = False):
        return F.elu(input, alpha), (input, alpha)

    def constants(self, saved: tuple) -> tuple[float, float, float]:
        """alpha, s, r."""
        return saved[1], 1.0, 1.0

    def apply(self, saved, t, stacked):
        return torch.ops.aten.elu_backward(t, *self.constants(saved), False, saved[0])

    def slopes(self, saved):
        input, (alpha, scale, rate) = saved[0], self.constants(saved)
        below = alpha * scale * rate * torch.exp(rate * input.clamp(max=0))
        return torch.where(input > 0, scale, below), torch.where(input < 0, rate * below, 0)


class SELU(ELU):
    """ELU with alpha and s that keep mean 0 and variance 1."""

    def forward(self, input: Tensor, inplace: bool = False):
        return F.selu(input), (input,)

    def constants(self, saved):
        return *_SELU, 1.0


class CELU(ELU):
    """ELU with r = 1 / alpha."""

    def forward(self, input: Tensor, alpha: float = 1.0, inplace: bool = False):
        return F.celu(input, alpha), (input, alpha)

    def constants(self, saved):
        return saved[1], 1.0, 1 / saved[1]


RULES = {"elu": ELU(), "selu": SELU(), "celu": CELU()}
FUNCTIONS = {
    F.elu: "elu",
    F.elu_: "elu",
    F.selu: "selu",
    torch.selu: "selu",
    F.celu: "celu",
    torch.celu: "celu",
}
METHODS: dict = {}
MODULES = {
    nn.ELU: Layer("elu", lambda module, read: (module.alpha,)),
    nn.SELU: Layer("selu"),
    nn.CELU: Layer("celu", lambda module, read: (module.alpha,)),
}
