"""BatchNorm with batch statistics and an activation in plain operations, which autograd and transforms see through."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.ops._mlp_plain import KEEP_INPUT, activated, scaled

IDENTITY = -1  # the number of no activation


def per_channel(v: Tensor, dims: int) -> Tensor:
    return v.view(1, -1, *([1] * (dims - 2)))  # [1, C, 1, ...]


def all_but_channels(dims: int) -> list[int]:
    return [d for d in range(dims) if d != 1]


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """w u + b, u = (x - mean) / sqrt(variance + eps). F.batch_norm loses a second derivative without a weight."""
    over = all_but_channels(x.dim())
    centred = x - x.mean(over, keepdim=True)
    return _affine(centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps), weight, bias)


def _affine(u: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    u = u if weight is None else u * per_channel(weight, u.dim())
    return u if bias is None else u + per_channel(bias, u.dim())


def plain_value(x, weight, bias, eps: float, activation: int, slope: float) -> Tensor:
    given = normalised(x, weight, bias, eps)
    return given if activation == IDENTITY else activated(given, activation, slope)


def plain_pull(cotangent, x, weight, bias, rstd, activation: int, slope: float) -> Tensor:
    """J^T c, to any order."""
    u, r = _unit(x, rstd)
    if activation != IDENTITY:
        given = _affine(u, weight, bias)
        key = given if activation in KEEP_INPUT else activated(given, activation, slope)
        cotangent = scaled(cotangent, key, activation, slope)
    return _product(cotangent, weight, u, r)


def product_in_operations(t: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor:
    """w r (t - mean(t) - u mean(u t)), to any order."""
    return _product(t, weight, *_unit(x, rstd))


def _unit(x: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """u and r = 1/sqrt(variance + eps), whose value is rstd."""
    dims = x.dim()
    over = all_but_channels(dims)
    centred = x - x.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    r = (per_channel(rstd.detach(), dims) ** -2 + variance - variance.detach()).rsqrt()
    return centred * r, r


def _product(t: Tensor, weight: Tensor | None, u: Tensor, r: Tensor) -> Tensor:
    over = all_but_channels(t.dim())
    product = r * (t - t.mean(over, keepdim=True) - u * (u * t).mean(over, keepdim=True))
    return product if weight is None else product * per_channel(weight, t.dim())
