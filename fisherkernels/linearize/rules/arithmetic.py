"""Sums, products and quotients of two operands, with broadcasting: residual connections, gates, scalings."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from .base import Rule, lead


def _unbroadcast(c: Tensor, shape: tuple[int, ...], stacked: bool) -> Tensor:
    """Sum a cotangent over the dimensions along which its operand was repeated."""
    first = 1 if stacked else 0
    added = c.dim() - first - len(shape)
    if added:
        c = c.sum(tuple(range(first, first + added)))
    repeated = tuple(first + i for i, size in enumerate(shape) if size == 1 and c.shape[first + i] != 1)
    return c.sum(repeated, keepdim=True) if repeated else c


def _broadcast(t: Tensor, shape: tuple[int, ...], stacked: bool) -> Tensor:
    """Repeat an operand's tangent as the operand was."""
    front = lead(t, stacked)
    own = t.shape[len(front) :]
    return t.reshape(front + (1,) * (len(shape) - len(own)) + tuple(own)).expand(front + shape)


class Binary(Rule):
    """y = op(a, b); J's two blocks are diagonal, given by ``factors(a, b)`` (None for 1)."""

    def slots(self, args):
        return args[:2]

    def value(self, a, b):
        raise NotImplementedError

    def factors(self, a, b) -> tuple:
        raise NotImplementedError

    def forward(self, input, other):
        value = self.value(input, other)
        return value, (input, other, tuple(value.shape))

    def vjp(self, saved, cotangent, stacked, needs):
        a, b, _ = saved
        return tuple(
            _unbroadcast(cotangent if factor is None else cotangent * factor, tuple(operand.shape), stacked)
            if need
            else None
            for operand, factor, need in zip((a, b), self.factors(a, b), needs, strict=True)
        )

    def jvp(self, saved, tangents, stacked):
        a, b, shape = saved
        total = None
        for t, factor in zip(tangents, self.factors(a, b), strict=True):
            if t is None:
                continue
            t = _broadcast(t, shape, stacked)
            t = t if factor is None else t * factor
            total = t if total is None else total + t
        return total

    def keeps_samples(self, saved, operands, value):
        return all(shape is None or len(shape) == len(value) for shape in operands)

    def of_one_sample(self, saved, active):
        a, b, shape = saved
        return (a, b, (1, *shape[1:])) if self.same_factors(a, b, active, len(shape)) else None

    def same_factors(self, a, b, active, dims) -> bool:
        """Whether the factors are the same for every sample; ``active``: which of a, b depend on the input."""
        return True


class Scaling(Binary):
    """Products and quotients: an operand that is the same for every sample scales all tangents alike."""

    def same_factors(self, a, b, active, dims):
        constants = [operand for operand, is_active in zip((a, b), active, strict=True) if not is_active]
        return len(constants) == 1 and _same_for_all_samples(constants[0], dims)


def _same_for_all_samples(operand, dims: int) -> bool:
    return not isinstance(operand, Tensor) or operand.dim() < dims or operand.shape[0] == 1


class Add(Binary):
    def value(self, a, b):
        return a + b

    def factors(self, a, b):
        return None, None


class Sub(Binary):
    def value(self, a, b):
        return a - b

    def factors(self, a, b):
        return None, -1


class Mul(Scaling):
    def value(self, a, b):
        return a * b

    def factors(self, a, b):
        return b, a

    def curved(self, active):
        return all(active)

    def curvature(self, saved, tangents):
        shape = saved[2]
        a, b = (_broadcast(t, shape, True) for t in tangents)
        return 2 * (a * b).sum(0)


class Div(Scaling):
    def value(self, a, b):
        return a / b

    def factors(self, a, b):
        inverse = 1 / b
        return inverse, -a * inverse * inverse

    def same_factors(self, a, b, active, dims):
        return not active[1] and super().same_factors(a, b, active, dims)

    def curved(self, active):
        return active[1]

    def curvature(self, saved, tangents):
        _, b, shape = saved
        quotient = self.jvp(saved, tangents, True)  # t_y; b y = a gives 2 t_b t_y + b D^2 y = 0
        return -2 / b * (_broadcast(tangents[1], shape, True) * quotient).sum(0)


RULES = {"add": Add(), "sub": Sub(), "mul": Mul(), "div": Div()}
FUNCTIONS = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.sub: "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    operator.truediv: "div",
    operator.itruediv: "div",
    torch.div: "div",
}
METHODS = {name + end: name for name in ("add", "sub", "mul", "div") for end in ("", "_")}
MODULES: dict = {}
