"""Elementary functions that densities and energies are written with: powers, roots, logarithms."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from .base import ElementwiseRule


class Square(ElementwiseRule):
    """a' = 2 x."""

    def forward(self, input: Tensor):
        return torch.square(input), (input,)

    def apply(self, saved, t, stacked):
        return t * (2 * saved[0])

    def slopes(self, saved):
        (input,) = saved
        return 2 * input, torch.full_like(input, 2)


class Pow(ElementwiseRule):
    """a' = n x^(n - 1), for a number n."""

    def accepts(self, input, exponent):
        return isinstance(exponent, (int, float)) and not isinstance(exponent, bool)

    def forward(self, input: Tensor, exponent: float):
        return torch.pow(input, exponent), (input, exponent)

    def apply(self, saved, t, stacked):
        input, n = saved
        return t * _power(input, n, n - 1)

    def slopes(self, saved):
        input, n = saved
        return _power(input, n, n - 1), _power(input, n * (n - 1), n - 2)


def _power(x: Tensor, factor: float, exponent: float) -> Tensor:
    """factor x^exponent, 0 where the factor is, at x = 0 too."""
    return torch.zeros_like(x) if factor == 0 else factor * torch.pow(x, exponent)


class Sqrt(ElementwiseRule):
    """a' = 1 / 2y."""

    def forward(self, input: Tensor):
        value = torch.sqrt(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return t * (0.5 / saved[0])

    def slopes(self, saved):
        (value,) = saved
        inverse = 1 / value
        return 0.5 * inverse, -0.25 * inverse.pow(3)


class Rsqrt(ElementwiseRule):
    """a' = -y^3 / 2."""

    def forward(self, input: Tensor):
        value = torch.rsqrt(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return t * (-0.5 * saved[0].pow(3))

    def slopes(self, saved):
        (value,) = saved
        return -0.5 * value.pow(3), 0.75 * value.pow(5)


class Reciprocal(ElementwiseRule):
    """a' = -y^2."""

    def forward(self, input: Tensor):
        value = torch.reciprocal(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return t * -saved[0].square()

    def slopes(self, saved):
        (value,) = saved
        return -value.square(), 2 * value.pow(3)


class Log(ElementwiseRule):
    """log(x + shift): a' = 1 / (x + shift)."""

    def __init__(self, operation, shift: int):
        self.operation, self.shift = operation, shift

    def forward(self, input: Tensor):
        return self.operation(input), (input,)

    def apply(self, saved, t, stacked):
        return t / (saved[0] + self.shift)

    def slopes(self, saved):
        inverse = 1 / (saved[0] + self.shift)
        return inverse, -inverse.square()


class Sin(ElementwiseRule):
    """a' = cos(x)."""

    def forward(self, input: Tensor):
        return torch.sin(input), (input,)

    def apply(self, saved, t, stacked):
        return t * torch.cos(saved[0])

    def slopes(self, saved):
        (input,) = saved
        return torch.cos(input), -torch.sin(input)


class Cos(ElementwiseRule):
    """a' = -sin(x)."""

    def forward(self, input: Tensor):
        return torch.cos(input), (input,)

    def apply(self, saved, t, stacked):
        return t * -torch.sin(saved[0])

    def slopes(self, saved):
        (input,) = saved
        return -torch.sin(input), -torch.cos(input)


RULES = {
    "square": Square(),
    "pow": Pow(),
    "sqrt": Sqrt(),
    "rsqrt": Rsqrt(),
    "reciprocal": Reciprocal(),
    "log": Log(torch.log, 0),
    "log1p": Log(torch.log1p, 1),
    "sin": Sin(),
    "cos": Cos(),
}
FUNCTIONS = {**{getattr(torch, name): name for name in RULES}, operator.pow: "pow", operator.ipow: "pow"}
METHODS = {name: name for name in RULES}
MODULES: dict = {}
