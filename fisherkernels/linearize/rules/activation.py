"""Elementwise activations: J is diagonal, a'(x), applied by torch's backward operation where that has a derivative."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ElementwiseRule, Layer, SymmetricRule

aten = torch.ops.aten


class ReLU(SymmetricRule):
    """a' = [x > 0]."""

    def forward(self, input: Tensor, inplace: bool = False):
        value = torch.relu(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return aten.threshold_backward(t, saved[0].detach(), 0)


class LeakyReLU(SymmetricRule):
    """a' = 1 for x > 0, else the slope."""

    def forward(self, input: Tensor, negative_slope: float = 0.01, inplace: bool = False):
        if negative_slope < 0:
            return F.leaky_relu(input, negative_slope), (input, negative_slope, False)
        # The value has x's sign. In place autograd keeps the value alone, which the next layer keeps too.
        value = F.leaky_relu_(input.clone(), negative_slope)
        return value, (value, negative_slope, True)

    def apply(self, saved, t, stacked):
        either, negative_slope, is_value = saved
        return aten.leaky_relu_backward(t, either.detach(), negative_slope, is_value)


class SiLU(ElementwiseRule):
    """a' = s (1 + x (1 - s)), s = sigmoid(x)."""

    def forward(self, input: Tensor, inplace: bool = False):
        return F.silu(input), (input,)

    def apply(self, saved, t, stacked):
        (input,) = saved
        s = torch.sigmoid(input)
        return t * (s * (1 + input * (1 - s)))

    def slopes(self, saved):
        (input,) = saved
        s = torch.sigmoid(input)
        both = s * (1 - s)  # s'
        return s + input * both, both * (2 + input * (1 - 2 * s))


class Softplus(ElementwiseRule):
    """a' = sigmoid(beta x), 1 above the threshold."""

    def forward(self, input: Tensor, beta: float = 1.0, threshold: float = 20.0):
        return F.softplus(input, beta, threshold), (input, beta, threshold)

    def apply(self, saved, t, stacked):
        input, beta, threshold = saved
        return aten.softplus_backward(t, input, beta, threshold)

    def slopes(self, saved):
        input, beta, threshold = saved
        linear, s = input * beta > threshold, torch.sigmoid(beta * input)
        return torch.where(linear, 1, s), torch.where(linear, 0, beta * s * (1 - s))


class Sigmoid(ElementwiseRule):
    """a' = s (1 - s)."""

    def forward(self, input: Tensor):
        value = torch.sigmoid(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return aten.sigmoid_backward(t, saved[0])

    def slopes(self, saved):
        (value,) = saved
        slope = value * (1 - value)
        return slope, slope * (1 - 2 * value)


class Tanh(ElementwiseRule):
    """a' = 1 - tanh(x)^2."""

    def forward(self, input: Tensor):
        value = torch.tanh(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return aten.tanh_backward(t, saved[0])

    def slopes(self, saved):
        (value,) = saved
        slope = 1 - value.square()
        return slope, -2 * value * slope


class Exp(ElementwiseRule):
    """a' = exp(x)."""

    def forward(self, input: Tensor):
        value = torch.exp(input)
        return value, (value,)

    def apply(self, saved, t, stacked):
        return t * saved[0]

    def slopes(self, saved):
        return saved[0], saved[0]


class Neg(SymmetricRule):
    """a' = -1."""

    traffic = 2

    def forward(self, input: Tensor):
        return -input, ()

    def apply(self, saved, t, stacked):
        return -t

    def of_one_sample(self, saved, active):
        return saved


class Identity(SymmetricRule):
    """a' = 1."""

    traffic = 0

    def forward(self, input: Tensor, *args, **kwargs):
        return input, ()

    def apply(self, saved, t, stacked):
        return t

    def of_one_sample(self, saved, active):
        return saved


RULES = {
    "relu": ReLU(),
    "leaky_relu": LeakyReLU(),
    "silu": SiLU(),
    "softplus": Softplus(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "exp": Exp(),
    "neg": Neg(),
    "identity": Identity(),
}
FUNCTIONS = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.silu: "silu",
    F.softplus: "softplus",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    torch.exp: "exp",
    torch.neg: "neg",
    operator.neg: "neg",
}
METHODS = {
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
    "exp": "exp",
    "neg": "neg",
    "contiguous": "identity",
    "clone": "identity",
}
MODULES = {
    nn.ReLU: Layer("relu"),
    nn.LeakyReLU: Layer("leaky_relu", lambda module, read: (module.negative_slope,)),
    nn.SiLU: Layer("silu"),
    nn.Softplus: Layer("softplus", lambda module, read: (module.beta, module.threshold)),
    nn.Sigmoid: Layer("sigmoid"),
    nn.Tanh: Layer("tanh"),
    nn.Identity: Layer("identity"),
}
