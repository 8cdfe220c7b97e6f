"""The gated linear unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, behind


class GLU(Rule):
    """y = a s, s = sigmoid(b), for the halves a and b of x: J t = s t_a + a s' t_b, J^T c = (s c, a s' c)."""

    traffic = 5

    def forward(self, input: Tensor, dim: int = -1):
        value = F.glu(input, dim)
        a, b = input.chunk(2, dim)
        return value, (a, torch.sigmoid(b), dim)

    def vjp(self, saved, cotangent, stacked, needs):
        a, s, dim = saved
        c = s * cotangent
        return (torch.cat([c, a * (1 - s) * c], behind(dim, stacked)),)

    def jvp(self, saved, tangents, stacked):
        a, s, dim = saved
        t_a, t_b = tangents[0].chunk(2, behind(dim, stacked))
        return s * (t_a + a * (1 - s) * t_b)

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        """sum_k 2 s' t_a t_b + a s'' t_b^2."""
        a, s, dim = saved
        t_a, t_b = tangents[0].chunk(2, behind(dim, True))
        return s * (1 - s) * (2 * (t_a * t_b).sum(0) + a * (1 - 2 * s) * t_b.square().sum(0))


RULES = {"glu": GLU()}
FUNCTIONS = {F.glu: "glu"}
METHODS: dict = {}
MODULES = {nn.GLU: Layer("glu", lambda module, read: (module.dim,))}
