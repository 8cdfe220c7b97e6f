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


class Mul(Binary):
    def value(self, a, b):
        return a * b

    def factors(self, a, b):
        return b, a


class Div(Binary):
    def value(self, a, b):
        return a / b

    def factors(self, a, b):
        inverse = 1 / b
        return inverse, -a * inverse * inverse


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
