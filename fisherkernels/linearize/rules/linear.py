"""Fully connected layers: y = x W^T + b."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, Rule


class Linear(Rule):
    """J t = t W^T,  J^T c = c W."""

    traffic = 0

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None):
        return F.linear(input, weight, bias), (weight,)

    def vjp(self, saved, cotangent, stacked, needs):
        (weight,) = saved
        return (torch.matmul(cotangent, weight),)

    def jvp(self, saved, tangents, stacked):
        (weight,) = saved
        return F.linear(tangents[0], weight)

    def keeps_samples(self, saved, operands, value):
        return len(operands[0]) > 1

    def of_one_sample(self, saved, active):
        return saved

    def flops(self, saved, operand, value):
        return 2.0 * value * saved[0].shape[-1]


RULES = {"linear": Linear()}
FUNCTIONS = {F.linear: "linear"}
METHODS: dict = {}
MODULES = {torch.nn.Linear: Layer("linear", lambda module, read: (read("weight"), read("bias")))}
