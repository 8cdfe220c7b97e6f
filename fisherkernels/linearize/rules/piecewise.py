"""Piecewise linear functions of every element: absolute values and clamps, without a second derivative."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, SymmetricRule


class Abs(SymmetricRule):
    """a' = sign(x)."""

    def forward(self, input: Tensor):
        return torch.abs(input), (torch.sign(input.detach()),)

    def apply(self, saved, t, stacked):
        return t * saved[0]


class Clamp(SymmetricRule):
    """a' = [min <= x <= max], for numbers or None."""

    def accepts(self, input, min=None, max=None):
        return all(bound is None or isinstance(bound, (int, float)) for bound in (min, max))

    def forward(self, input: Tensor, min: float | None = None, max: float | None = None):
        value = torch.clamp(input, min, max)
        return value, (value != input,)

    def apply(self, saved, t, stacked):
        return t.masked_fill(saved[0], 0)


class Hardtanh(SymmetricRule):
    """a' = [min < x < max]."""

    def forward(self, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        return F.hardtanh(input, min_val, max_val), ((input <= min_val) | (input >= max_val),)

    def apply(self, saved, t, stacked):
        return t.masked_fill(saved[0], 0)


class ReLU6(Hardtanh):
    """a' = [0 < x < 6]."""

    def forward(self, input: Tensor, inplace: bool = False):
        return super().forward(input, 0.0, 6.0)


RULES = {"abs": Abs(), "clamp": Clamp(), "hardtanh": Hardtanh(), "relu6": ReLU6()}
FUNCTIONS = {
    operator.abs: "abs",
    torch.abs: "abs",
    torch.clamp: "clamp",
    torch.clip: "clamp",
    torch.clamp_min: "clamp",
    F.hardtanh: "hardtanh",
    F.relu6: "relu6",
}
METHODS = {"abs": "abs", "clamp": "clamp", "clip": "clamp", "clamp_min": "clamp"}
MODULES = {
    nn.Hardtanh: Layer("hardtanh", lambda module, read: (module.min_val, module.max_val)),
    nn.ReLU6: Layer("relu6"),
}
