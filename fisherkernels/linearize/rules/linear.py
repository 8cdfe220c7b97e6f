"""Fully connected layers: y = x W^T + b."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, Rule


class Linear(Rule):
    """J t = t W^T,  J^T c = c W."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None):
        return F.linear(input, weight, bias), (weight,)

    def vjp(self, saved, cotangent, stacked, needs):
        (weight,) = saved
        return (torch.matmul(cotangent, weight),)

    def jvp(self, saved, tangents, stacked):
        (weight,) = saved
        return F.linear(tangents[0], weight)


RULES = {"linear": Linear()}
FUNCTIONS = {F.linear: "linear"}
METHODS: dict = {}
MODULES = {torch.nn.Linear: Layer("linear", lambda module, read: (read("weight"), read("bias")))}
