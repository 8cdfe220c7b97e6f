"""Further activations with a second derivative: a' and a'' without differences of nearly equal numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ElementwiseRule, Layer


class Mish(ElementwiseRule):
    """y = x T, T = tanh(softplus(x)) = s (1 + q) / D, s = sigmoid(x), q = 1 - s, D = 1 + q^2: a' = T + x T' with
    T' = 4 s q^2 / D^2, a'' = 2 T' + x T'' with T'' = T' (q - 2 s + 4 s q^2 / D).
    """

    def forward(self, input: Tensor, inplace: bool = False):
        return F.mish(input), (input,)

    def apply(self, saved, t, stacked):
        return t * self._parts(*saved)[0]

    def slopes(self, saved):
        slope, s, q, both, first = self._parts(*saved)
        return slope, 2 * first + saved[0] * first * (q - 2 * s + both)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """a', s, q, D T', T'."""
        s, q = torch.sigmoid(x), torch.sigmoid(-x)
        inverse = 1 / (1 + q * q)
        both = 4 * s * q * q * inverse
        first = both * inverse
        return s * inverse * (1 + q) + x * first, s, q, both, first


class Hardswish(ElementwiseRule):
    """y = x min(max(x + 3, 0), 6) / 6: a' = x / 3 + 1/2 and a'' = 1/3 for -3 < x < 3, else a' = [x >= 3]."""

    def forward(self, input: Tensor, inplace: bool = False):
        return F.hardswish(input), (input,)

    def apply(self, saved, t, stacked):
        return torch.ops.aten.hardswish_backward(t, saved[0].expand(t.shape))

    def slopes(self, saved):
        (input,) = saved
        inside = (input > -3) & (input < 3)
        return torch.where(inside, input / 3 + 0.5, input >= 3), inside.to(input.dtype) / 3


class Softsign(ElementwiseRule):
    """y = x / (1 + |x|): a' = 1 / (1 + |x|)^2, a'' = -2 sign(x) / (1 + |x|)^3."""

    def forward(self, input: Tensor):
        return F.softsign(input), (input,)

    def apply(self, saved, t, stacked):
        return t * (1 / (1 + saved[0].abs())).square()

    def slopes(self, saved):
        (input,) = saved
        inverse = 1 / (1 + input.abs())
        return inverse.square(), -2 * torch.sign(input) * inverse.pow(3)


class LogSigmoid(ElementwiseRule):
    """a' = sigmoid(-x)."""

    def forward(self, input: Tensor):
        return F.logsigmoid(input), (input,)

    def apply(self, saved, t, stacked):
        return t * torch.sigmoid(-saved[0])

    def slopes(self, saved):
        (input,) = saved
        slope = torch.sigmoid(-input)
        return slope, -slope * torch.sigmoid(input)


class Tanhshrink(ElementwiseRule):
    """y = x - tanh(x): a' = tanh(x)^2."""

    def forward(self, input: Tensor):
        tanh = torch.tanh(input)
        return input - tanh, (tanh,)

    def apply(self, saved, t, stacked):
        return t * saved[0].square()

    def slopes(self, saved):
        (tanh,) = saved
        square = tanh.square()
        return square, 2 * tanh * (1 - square)


RULES = {
    "mish": Mish(),
    "hardswish": Hardswish(),
    "softsign": Softsign(),
    "logsigmoid": LogSigmoid(),
    "tanhshrink": Tanhshrink(),
}
FUNCTIONS = {getattr(F, name): name for name in RULES}
METHODS: dict = {}
MODULES = {
    nn.Mish: Layer("mish"),
    nn.Hardswish: Layer("hardswish"),
    nn.Softsign: Layer("softsign"),
    nn.LogSigmoid: Layer("logsigmoid"),
    nn.Tanhshrink: Layer("tanhshrink"),
}
