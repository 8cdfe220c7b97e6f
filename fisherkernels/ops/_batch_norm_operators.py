"""Batch statistics and an activation behind them, y = a(w u + b), u = (x - mean) rstd per channel of x [N, C, ...].

Three operators for the sweeps of a network, with their twins and fakes: the value; a gradient or cotangent pulled
through it; the backward pass of that, for a tangent. Activations by their number in SWEEP_ACTIVATIONS, -1 for none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.ops._autograd import not_differentiable
from fisherkernels.ops._batch_norm_graph import pull_autograd, value_autograd
from fisherkernels.ops._batch_norm_plain import IDENTITY, all_but_channels, per_channel
from fisherkernels.ops._library import define
from fisherkernels.ops._mlp_plain import CURVED, KEEP_INPUT, activated, drift, scaled


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return x.new_full((x.shape[1],), torch.nan), x.new_full((x.shape[1],), torch.nan)
    variance, mean = torch.var_mean(x, all_but_channels(x.dim()), correction=0)
    return mean, variance


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor):
    """u and w u + b."""
    unit = (x - per_channel(mean, x.dim())) * per_channel(rstd, x.dim())
    given = unit if weight is None else unit * per_channel(weight, x.dim())
    return unit, given if bias is None else given + per_channel(bias, x.dim())


def _activated(given: Tensor, kind: int, slope: float) -> Tensor:
    return given.clone() if kind == IDENTITY else activated(given, kind, slope)


def _slope(given: Tensor, kind: int, slope: float) -> Tensor:
    """a' at the activation's input."""
    if kind == IDENTITY:
        return torch.ones_like(given)
    return scaled(torch.ones_like(given), _key(given, kind, slope), kind, slope)


def _curvature(given: Tensor, kind: int, slope: float) -> Tensor:
    """a'' at the activation's input."""
    if kind not in CURVED:
        return torch.zeros_like(given)
    key = _key(given, kind, slope)
    curvature = drift(key, kind)
    return curvature if kind in KEEP_INPUT else curvature * scaled(torch.ones_like(given), key, kind, slope)


def _key(given: Tensor, kind: int, slope: float) -> Tensor:
    return given if kind in KEEP_INPUT else activated(given, kind, slope)


def _product(t: Tensor, unit: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """factor (t - mean(t) - u mean(u t)), and the channels' sums of t and u t."""
    plain, scaled_sum = t.sum(all_but_channels(t.dim())), (unit * t).sum(all_but_channels(t.dim()))
    n = max(t.numel() // t.shape[1], 1)
    inside = t - per_channel(plain / n, t.dim()) - unit * per_channel(scaled_sum / n, t.dim())
    return per_channel(factor, t.dim()) * inside, plain, scaled_sum


def _value(x, weight, bias, eps, activation, slope):
    mean, variance = _statistics(x)
    rstd = torch.rsqrt(variance + eps)
    return _activated(_normalised(x, weight, bias, mean, rstd)[1], activation, slope), mean, rstd, variance


def _pull(gradient, more, x, weight, bias, mean, rstd, activation, slope, value):
    unit, given = _normalised(x, weight, bias, mean, rstd)
    factor = rstd if weight is None else rstd * weight
    to_x, to_bias, to_weight = _product(gradient * _slope(given, activation, slope), unit, factor)
    y = _activated(given, activation, slope) if value else x.new_empty(0)
    return to_x if more is None else to_x + more, y, to_weight, to_bias


def _pull_backward(tangent, cotangent, x, weight, bias, mean, rstd, activation, slope):
    unit, given = _normalised(x, weight, bias, mean, rstd)
    factor, n = (rstd if weight is None else rstd * weight), max(x.numel() // x.shape[1], 1)
    slopes = _slope(given, activation, slope)
    q = cotangent * slopes
    again, a, k = _product(q, unit, factor)
    e, t, s = _product(tangent, unit, factor)  # e: the gradient of q
    a, k, t, s = (total / n for total in (a, k, t, s))
    g = (tangent * q).sum(all_but_channels(x.dim())) / n - t * a - s * k
    inside = per_channel(k, x.dim()) * tangent + per_channel(s, x.dim()) * q - per_channel(k * t + s * a, x.dim())
    inside = inside + unit * per_channel(g - 2 * k * s, x.dim())
    bent, to_bias, to_weight = _product(_curvature(given, activation, slope) * cotangent * e, unit, factor)
    return e * slopes, bent - per_channel(factor * rstd, x.dim()) * inside, again, to_weight + n * rstd * g, to_bias


def _value_fake(x, weight, bias, eps, activation, slope):
    return _like(x), *_per_channel(x, 3)


def _pull_fake(gradient, more, x, weight, bias, mean, rstd, activation, slope, value):
    return _like(x), _like(x) if value else x.new_empty(0), *_per_channel(x, 2)


def _pull_backward_fake(tangent, cotangent, x, weight, bias, mean, rstd, activation, slope):
    return _like(x), _like(x), _like(x), *_per_channel(x, 2)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _per_channel(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1]) for _ in range(count))


_NETWORK = "Tensor x, Tensor? weight, Tensor? bias"
define(
    "batch_norm_value",
    f"({_NETWORK}, float eps, int activation, float slope)"
    " -> (Tensor value, Tensor mean, Tensor rstd, Tensor variance)",
    twin=_value,
    fake=_value_fake,
    autograd=value_autograd,
)
define(
    "batch_norm_pull",
    f"(Tensor gradient, Tensor? more, {_NETWORK}, Tensor mean, Tensor rstd, int activation, float slope, bool value)"
    " -> (Tensor to_x, Tensor value, Tensor to_weight, Tensor to_bias)",
    twin=_pull,
    fake=_pull_fake,
    autograd=pull_autograd,
)
define(
    "batch_norm_pull_backward",
    f"(Tensor tangent, Tensor cotangent, {_NETWORK}, Tensor mean, Tensor rstd, int activation, float slope)"
    " -> (Tensor to_cotangent, Tensor to_x, Tensor again, Tensor to_weight, Tensor to_bias)",
    twin=_pull_backward,
    fake=_pull_backward_fake,
    autograd=not_differentiable("batch_norm_pull_backward", "fisherkernels.linearize builds its graph. Use that"),
)
