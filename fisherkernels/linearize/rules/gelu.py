"""GELU, exact and by its tanh formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ElementwiseRule, Layer

_SCALE, _CUBE = math.sqrt(2 / math.pi), 0.044715


class GELU(ElementwiseRule):
    """y = x P(x), P the normal distribution function: a' = P + x p, a'' = p (2 - x^2) with its density p. Or with
    P = (1 + tanh u) / 2, u = s (x + c x^3).
    """

    def accepts(self, input, approximate="none"):
        return approximate in ("none", "tanh")

    def forward(self, input: Tensor, approximate: str = "none"):
        return F.gelu(input, approximate=approximate), (input, approximate)

    def apply(self, saved, t, stacked):
        input, approximate = saved
        return torch.ops.aten.gelu_backward(t, input.expand(t.shape), approximate=approximate)

    def slopes(self, saved):
        x, approximate = saved
        square = x * x
        if approximate == "none":
            density = torch.exp(-0.5 * square) / math.sqrt(2 * math.pi)
            return torch.special.ndtr(x) + x * density, density * (2 - square)
        tanh = torch.tanh(_SCALE * x * (1 + _CUBE * square))
        first, second = _SCALE * (1 + 3 * _CUBE * square), 6 * _SCALE * _CUBE * x  # u', u''
        half = 0.5 * (1 - tanh * tanh)
        return 0.5 * (1 + tanh) + x * half * first, half * (2 * first + x * (second - 2 * tanh * first * first))


RULES = {"gelu": GELU()}
FUNCTIONS = {F.gelu: "gelu"}
METHODS: dict = {}
MODULES = {nn.GELU: Layer("gelu", lambda module, read: (module.approximate,))}
