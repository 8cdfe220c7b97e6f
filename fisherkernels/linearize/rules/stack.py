"""Tensors joined along a new dimension, and taken apart along one."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Rule, behind, lead


class Stack(Rule):
    """J^T c takes the cotangent apart."""

    traffic = 2

    def slots(self, args):
        return tuple(args[0])

    def accepts(self, tensors, dim=0):
        return isinstance(tensors, (tuple, list))

    def forward(self, tensors, dim: int = 0):
        return torch.stack(tuple(tensors), dim), (tuple(tensors[0].shape), dim)

    def vjp(self, saved, cotangent, stacked, needs):
        return cotangent.unbind(behind(saved[1], stacked))

    def jvp(self, saved, tangents, stacked):
        shape, dim = saved
        given = next(t for t in tangents if t is not None)
        zero = given.new_zeros(lead(given, stacked) + shape)
        return torch.stack([zero if t is None else t for t in tangents], behind(dim, stacked))

    def keeps_samples(self, saved, operands, value):
        return saved[1] % len(value) != 0

    def of_one_sample(self, saved, active):
        shape, dim = saved
        return (1, *shape[1:]), dim


class Unbind(Rule):
    """J^T c joins the parts' cotangents, zeros for an unused part."""

    traffic = 0

    def forward(self, input: Tensor, dim: int = 0):
        value = input.unbind(dim)
        return value, (tuple(value[0].shape) if value else (), dim)

    def vjp(self, saved, cotangent, stacked, needs):
        shape, dim = saved
        given = next(c for c in cotangent if c is not None)
        zero = given.new_zeros(lead(given, stacked) + shape)
        return (torch.stack([zero if c is None else c for c in cotangent], behind(dim, stacked)),)

    def jvp(self, saved, tangents, stacked):
        return tangents[0].unbind(behind(saved[1], stacked))

    def keeps_samples(self, saved, operands, value):
        return saved[1] % len(operands[0]) != 0

    def of_one_sample(self, saved, active):
        shape, dim = saved
        return (1, *shape[1:]), dim


RULES = {"stack": Stack(), "unbind": Unbind()}
FUNCTIONS = {torch.stack: "stack", torch.unbind: "unbind"}
METHODS = {"unbind": "unbind"}
MODULES: dict = {}
