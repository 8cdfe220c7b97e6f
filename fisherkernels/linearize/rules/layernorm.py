"""Layer normalisation: GroupNorm with the last dimensions as its one group, and a weight for each entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisherkernels.ops._layer_norm_operators import LayerNormPull
from fisherkernels.ops._library import on_native_cpu
from fisherkernels.transforms import plainly_eager, records

from .base import Layer
from .groupnorm import GroupNorm, statistics


class LayerNorm(GroupNorm):
    """y = w (x - m) r + b over the last dimensions, m and r = 1/sqrt(v + eps) of each row of n = |w| values."""

    def forward(
        self,
        input: Tensor,
        normalized_shape,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        own, wide = input.dtype, torch.promote_types(input.dtype, torch.float32)
        if own == wide:
            value, mean, rstd = torch.native_layer_norm(input, shape, weight, bias, eps)
            mean, rstd = mean.detach(), rstd.detach()
        else:  # half precision: the products in float32
            value, input = F.layer_norm(input, shape, weight, bias, eps), input.to(wide)
            mean, rstd = statistics(input.flatten(-len(shape)), eps)
        size = math.prod(shape)
        rows = math.prod(input.shape[: input.dim() - len(shape)])
        weight = None if weight is None else weight.to(wide).reshape(size)
        saved = input.reshape(rows, size, 1), weight, mean.reshape(rows, 1), rstd.reshape(rows, 1)
        return value, (*saved, own, value.dtype)

    def vjp(self, saved, cotangent, stacked, needs):
        input, weight, mean, rstd, *_ = saved
        if stacked or not _has_kernel(input, weight, cotangent):
            return super().vjp(saved, cotangent, stacked, needs)
        rows = input.squeeze(-1)
        pulled = LayerNormPull.apply(cotangent.reshape(rows.shape), rows, weight, mean.squeeze(1), rstd.squeeze(1))
        return (pulled.reshape(cotangent.shape),)

    def keeps_samples(self, saved, operands, value):
        return saved[0].shape[0] >= operands[0][0]  # as many rows as samples, unless the batch is normalised over


def _has_kernel(input: Tensor, weight: Tensor | None, cotangent: Tensor) -> bool:
    given = [t for t in (cotangent, input, weight) if t is not None]
    return on_native_cpu(input) and all(t.dtype is input.dtype for t in given) and plainly_eager() and records(*given)


RULES = {"layer_norm": LayerNorm()}
FUNCTIONS = {F.layer_norm: "layer_norm"}
METHODS: dict = {}
MODULES = {
    nn.LayerNorm: Layer(
        "layer_norm", lambda module, read: (module.normalized_shape, read("weight"), read("bias"), module.eps)
    )
}
