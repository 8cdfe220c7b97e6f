"""RMS normalisation over the last dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule


class RMSNorm(Rule):
    """y = w u, u = r x, r = 1/sqrt(mean(x^2) + eps): J t = w P t, J^T c = P (w c), P t = r (t - u mean(u t))."""

    traffic = 5

    def forward(self, input: Tensor, normalized_shape, weight: Tensor | None = None, eps: float | None = None):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        value = F.rms_norm(input, shape, weight, eps)
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = tuple(range(-len(shape), 0))
        r = torch.rsqrt(wide.square().mean(dims, keepdim=True) + eps)
        return value, (wide * r, r, weight, dims, input.dtype, value.dtype)

    def vjp(self, saved, cotangent, stacked, needs):
        weight, input_type = saved[2], saved[4]
        return (self._product(saved, cotangent if weight is None else cotangent * weight).to(input_type),)

    def jvp(self, saved, tangents, stacked):
        weight, value_type = saved[2], saved[5]
        product = self._product(saved, tangents[0])
        return (product if weight is None else product * weight).to(value_type)

    @staticmethod
    def _product(saved, t: Tensor) -> Tensor:
        u, r, _, dims, *_ = saved
        return r * (t - u * (u * t).mean(dims, keepdim=True))

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        """From r' = -r^2 k and r'' = r^3 (3 k^2 - q), k = mean(u t), q = mean(t^2): w r^2 (u (3 k^2 - q) - 2 k t)."""
        (t,) = tangents
        u, r, weight, dims, _, value_type = saved
        k = (u * t).mean(dims, keepdim=True)
        q = t.square().mean(dims, keepdim=True)
        total = r.square() * (u * (3 * k.square() - q).sum(0) - 2 * (k * t).sum(0))
        return (total if weight is None else total * weight).to(value_type)

    def keeps_samples(self, saved, operands, value):
        return len(saved[3]) < len(value)


RULES = {"rms_norm": RMSNorm()}
FUNCTIONS = {F.rms_norm: "rms_norm"}
METHODS: dict = {}
MODULES = {
    nn.RMSNorm: Layer("rms_norm", lambda module, read: (module.normalized_shape, read("weight"), module.eps)),
}
