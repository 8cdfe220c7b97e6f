"""Operations that move values without changing them: reshapes, slices, chunks and concatenation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Layer, Rule, behind, lead


class Reshape(Rule):
    """Same values, another shape; ``operation`` makes the value."""

    traffic = 0

    def __init__(self, operation):
        self.operation = operation

    def accepts(self, *args, **kwargs):
        return not any(
            isinstance(a, torch.dtype) for a in (*args, *kwargs.values())
        )  # Tensor.view(dtype) reinterprets bits

    def forward(self, input: Tensor, *args, **kwargs):
        value = self.operation(input, *args, **kwargs)
        return value, (tuple(input.shape), tuple(value.shape))

    def vjp(self, saved, cotangent, stacked, needs):
        return (cotangent.reshape(lead(cotangent, stacked) + saved[0]),)

    def jvp(self, saved, tangents, stacked):
        return tangents[0].reshape(lead(tangents[0], stacked) + saved[1])

    def of_one_sample(self, saved, active):
        return tuple((1, *shape[1:]) for shape in saved)


class Slice(Rule):
    """x[index] with integers, slices, None and Ellipsis: J^T puts the cotangent back among zeros."""

    traffic = 0

    def accepts(self, input, index):
        parts = index if isinstance(index, tuple) else (index,)
        return all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)

    def forward(self, input: Tensor, index):
        return input[index], (tuple(input.shape), index)

    @staticmethod
    def _index(index, stacked):
        parts = index if isinstance(index, tuple) else (index,)
        return (slice(None), *parts) if stacked else parts

    def vjp(self, saved, cotangent, stacked, needs):
        shape, index = saved
        out = cotangent.new_zeros(lead(cotangent, stacked) + shape)
        out[self._index(index, stacked)] = cotangent
        return (out,)

    def jvp(self, saved, tangents, stacked):
        return tangents[0][self._index(saved[1], stacked)]

    def keeps_samples(self, saved, operands, value):
        first = self._index(saved[1], False)[0]
        if first is Ellipsis:
            return len(value) == len(operands[0])
        return first == slice(None)

    def of_one_sample(self, saved, active):
        shape, index = saved
        return (1, *shape[1:]), index


class Split(Rule):
    """x cut into a tuple along one dimension: J^T joins the pieces' cotangents, zeros for an unused piece."""

    traffic = 0

    def __init__(self, operation):
        self.operation = operation

    def forward(self, input: Tensor, *args, **kwargs):
        value = tuple(self.operation(input, *args, **kwargs))
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return value, (tuple(tuple(piece.shape) for piece in value), dim)

    def vjp(self, saved, cotangent, stacked, needs):
        shapes, dim = saved
        given = next(c for c in cotangent if c is not None)
        pieces = [
            given.new_zeros(lead(given, stacked) + shape) if c is None else c
            for c, shape in zip(cotangent, shapes, strict=True)
        ]
        return (torch.cat(pieces, behind(dim, stacked)),)

    def jvp(self, saved, tangents, stacked):
        shapes, dim = saved
        return tangents[0].split([shape[dim] for shape in shapes], behind(dim, stacked))

    def of_one_sample(self, saved, active):
        return _first_of_each(saved)


class Cat(Rule):
    """Several tensors joined along one dimension: J^T cuts the cotangent."""

    traffic = 2

    def slots(self, args):
        return tuple(args[0])

    def accepts(self, tensors, dim=0):
        return isinstance(tensors, (tuple, list))

    def forward(self, tensors, dim: int = 0):
        return torch.cat(tensors, dim), (tuple(tuple(t.shape) for t in tensors), dim)

    def vjp(self, saved, cotangent, stacked, needs):
        shapes, dim = saved
        return cotangent.split([shape[dim] for shape in shapes], behind(dim, stacked))

    def jvp(self, saved, tangents, stacked):
        shapes, dim = saved
        given = next(t for t in tangents if t is not None)
        pieces = [
            given.new_zeros(lead(given, stacked) + shape) if t is None else t
            for t, shape in zip(tangents, shapes, strict=True)
        ]
        return torch.cat(pieces, behind(dim, stacked))

    def of_one_sample(self, saved, active):
        return _first_of_each(saved)


def _first_of_each(saved: tuple) -> tuple:
    shapes, dim = saved
    return tuple((1, *shape[1:]) for shape in shapes), dim


def _sized(operation):
    return lambda input, *size: operation(input, size[0] if isinstance(size[0], (tuple, list)) else size)


RULES = {
    "reshape": Reshape(_sized(torch.reshape)),
    "flatten": Reshape(torch.flatten),
    "unflatten": Reshape(lambda input, dim, sizes: input.unflatten(dim, sizes)),
    "squeeze": Reshape(torch.squeeze),
    "unsqueeze": Reshape(torch.unsqueeze),
    "slice": Slice(),
    "chunk": Split(torch.chunk),
    "split": Split(torch.split),
    "cat": Cat(),
}
FUNCTIONS = {
    torch.reshape: "reshape",
    torch.flatten: "flatten",
    torch.unflatten: "unflatten",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    torch.chunk: "chunk",
    torch.split: "split",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
}
METHODS = {
    "reshape": "reshape",
    "view": "reshape",
    "flatten": "flatten",
    "unflatten": "unflatten",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
    "chunk": "chunk",
    "split": "split",
}
MODULES = {
    nn.Flatten: Layer("flatten", lambda module, read: (module.start_dim, module.end_dim)),
    nn.Unflatten: Layer("unflatten", lambda module, read: (module.dim, module.unflattened_size)),
}
