"""Piecewise linear functions of every element: absolute values, clamps, thresholds, without a second derivative."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activation import LeakyReLU
from .base import Layer, SymmetricRule

aten = torch.ops.aten


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


class Hardsigmoid(SymmetricRule):
    """a' = [-3 < x < 3] / 6."""

    def forward(self, input: Tensor, inplace: bool = False):
        value = F.relu6(input + 3) / 6  # in float64 the derivative of torch's own takes 1/6 from float32
        return value, ((input <= -3) | (input >= 3),)

    def apply(self, saved, t, stacked):
        return (t / 6).masked_fill(saved[0], 0)


class Threshold(SymmetricRule):
    """a' = [x > threshold]; below stands a constant."""

    def forward(self, input: Tensor, threshold: float, value: float, inplace: bool = False):
        return F.threshold(input, threshold, value), (input, threshold)

    def apply(self, saved, t, stacked):
        input, threshold = saved
        return aten.threshold_backward(t, input.detach(), threshold)


class Shrink(SymmetricRule):
    """a' = [|x| > lambda]: hard, y = x there, or soft, y = x - lambda sign(x)."""

    def __init__(self, operation, transpose):
        self.operation, self.transpose = operation, transpose

    def forward(self, input: Tensor, lambd: float = 0.5):
        return self.operation(input, lambd), (input, lambd)

    def apply(self, saved, t, stacked):
        input, lambd = saved
        return self.transpose(t, input.detach(), lambd)


class PReLU(SymmetricRule):
    """a' = 1 for x > 0, else the weight, one number or one for each channel."""

    def forward(self, input: Tensor, weight: Tensor):
        slope = weight.reshape(()) if weight.numel() == 1 else weight.view(-1, *[1] * (input.dim() - 2))
        return F.prelu(input, weight), (input > 0, slope)

    def apply(self, saved, t, stacked):
        positive, slope = saved
        return t * torch.where(positive, 1, slope)


class RReLU(LeakyReLU):
    """In eval mode: the slope is the mean of those it is drawn from."""

    def accepts(self, input, lower=1 / 8, upper=1 / 3, training=False, inplace=False):
        return training is False

    def forward(
        self, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
    ):
        return super().forward(input, (lower + upper) / 2)


RULES = {
    "abs": Abs(),
    "clamp": Clamp(),
    "hardtanh": Hardtanh(),
    "relu6": ReLU6(),
    "hardsigmoid": Hardsigmoid(),
    "threshold": Threshold(),
    "hardshrink": Shrink(F.hardshrink, aten.hardshrink_backward),
    "softshrink": Shrink(F.softshrink, aten.softshrink_backward),
    "prelu": PReLU(),
    "rrelu": RReLU(),
}
FUNCTIONS = {
    operator.abs: "abs",
    torch.abs: "abs",
    torch.clamp: "clamp",
    torch.clip: "clamp",
    torch.clamp_min: "clamp",
    F.hardtanh: "hardtanh",
    F.relu6: "relu6",
    F.hardsigmoid: "hardsigmoid",
    F.threshold: "threshold",
    torch.threshold: "threshold",
    F.hardshrink: "hardshrink",
    F.softshrink: "softshrink",
    F.prelu: "prelu",
    F.rrelu: "rrelu",
    torch.rrelu: "rrelu",
}
METHODS = {name: name for name in ("abs", "clamp", "hardshrink", "prelu")} | {"clip": "clamp", "clamp_min": "clamp"}
MODULES = {
    nn.Hardtanh: Layer("hardtanh", lambda module, read: (module.min_val, module.max_val)),
    nn.ReLU6: Layer("relu6"),
    nn.Hardsigmoid: Layer("hardsigmoid"),
    nn.Threshold: Layer("threshold", lambda module, read: (module.threshold, module.value)),
    nn.Hardshrink: Layer("hardshrink", lambda module, read: (module.lambd,)),
    nn.Softshrink: Layer("softshrink", lambda module, read: (module.lambd,)),
    nn.PReLU: Layer("prelu", lambda module, read: (read("weight"),)),
    nn.RReLU: Layer("rrelu", lambda module, read: (module.lower, module.upper), lambda module: not module.training),
}
