"""BatchNorm with batch statistics or GroupNorm, and an activation, in operations that autograd and transforms see
through.

x [N, C, ...] is seen as sets of numbers with a mean and variance each, [N, G, M, L]: a group of M channels of a sample,
or, for 0 groups, a channel of all samples (then G = C, M = 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fisherkernels.ops._mlp_plain import KEEP_INPUT, activated, scaled

IDENTITY = -1  # the number of no activation


def as_sets(x: Tensor, groups: int) -> Tensor:
    samples, channels, *size = x.shape
    return x.reshape(samples, groups or channels, channels // groups if groups else 1, math.prod(size))


def over(groups: int) -> tuple[int, int]:
    """A set's own dimensions."""
    return (2, 3) if groups else (0, 3)


def per_channel(v: Tensor, groups: int) -> Tensor:
    return v.view(1, groups or v.shape[0], v.shape[0] // groups if groups else 1, 1)


def per_set(v: Tensor) -> Tensor:
    """From [C] or [N, G]."""
    return (v.unsqueeze(0) if v.dim() == 1 else v).unsqueeze(2).unsqueeze(3)


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """w u + b, u = (x - mean) / sqrt(variance + eps). F.batch_norm loses a second derivative without a weight."""
    sets = as_sets(x, groups)
    centred = sets - sets.mean(over(groups), keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(over(groups), keepdim=True) + eps)
    return affine(unit, weight, bias, groups).reshape(x.shape)


def affine(unit: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> Tensor:
    """w u + b in the shape of sets."""
    unit = unit if weight is None else unit * per_channel(weight, groups)
    return unit if bias is None else unit + per_channel(bias, groups)


def plain_value(x, weight, bias, groups: int, eps: float, activation: int, slope: float) -> Tensor:
    given = normalised(x, weight, bias, groups, eps)
    return given if activation == IDENTITY else activated(given, activation, slope)


def plain_pull(cotangent, x, weight, bias, rstd, groups: int, activation: int, slope: float) -> Tensor:
    """J^T c, to any order."""
    unit, r = _unit(x, rstd, groups)
    c = as_sets(cotangent, groups)
    if activation != IDENTITY:
        given = affine(unit, weight, bias, groups)
        key = given if activation in KEEP_INPUT else activated(given, activation, slope)
        c = scaled(c, key, activation, slope)
    return _product(c, weight, unit, r, groups).reshape(x.shape)


def product_in_operations(t: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, groups: int) -> Tensor:
    """r (q - mean(q) - u mean(u q)) of q = w t, to any order."""
    return _product(as_sets(t, groups), weight, *_unit(x, rstd, groups), groups).reshape(x.shape)


def _unit(x: Tensor, rstd: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """u and r = 1/sqrt(variance + eps), whose value is rstd."""
    sets = as_sets(x, groups)
    centred = sets - sets.mean(over(groups), keepdim=True)
    variance = centred.square().mean(over(groups), keepdim=True)
    r = (per_set(rstd.detach()) ** -2 + variance - variance.detach()).rsqrt()
    return centred * r, r


def _product(t: Tensor, weight: Tensor | None, unit: Tensor, r: Tensor, groups: int) -> Tensor:
    q, own = (t if weight is None else t * per_channel(weight, groups)), over(groups)
    return r * (q - q.mean(own, keepdim=True) - unit * (unit * q).mean(own, keepdim=True))
