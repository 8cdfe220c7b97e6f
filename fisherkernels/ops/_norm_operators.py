"""A norm and an activation behind it, y = a(w u + b), u = (x - mean) rstd of x [N, C, ...].

Mean and rstd = 1/sqrt(variance + eps) are those of a channel of all samples (BatchNorm with batch statistics: 0
groups), or of each sample's groups of channels (GroupNorm); w and b are per channel. Three operators for the sweeps of
a network, with their twins and fakes: the value; a gradient or cotangent pulled through it; the backward pass of that,
for a tangent. Activations by their number in SWEEP_ACTIVATIONS, -1 for none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.ops._autograd import not_differentiable
from fisherkernels.ops._library import define
from fisherkernels.ops._mlp_plain import CURVED, KEEP_INPUT, activated, drift, scaled
from fisherkernels.ops._norm_graph import pull_autograd, value_autograd
from fisherkernels.ops._norm_plain import IDENTITY, affine, as_sets, over, per_channel, per_set


def _sets(x: Tensor, groups: int) -> tuple[int, ...]:
    """The shape of what there is one of for each set."""
    return (x.shape[0], groups) if groups else (x.shape[1],)


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


class _Set:
    """What the sums over sets and channels need: tensors in the shape of sets."""

    def __init__(self, x, weight, bias, mean, rstd, groups):
        self.groups, self.shape, self.own = groups, x.shape, over(groups)
        self.rstd = per_set(rstd)
        self.unit = (as_sets(x, groups) - per_set(mean)) * self.rstd
        self.given = affine(self.unit, weight, bias, groups)
        self.weight = None if weight is None else per_channel(weight, groups)

    def sets(self, t: Tensor) -> Tensor:
        return as_sets(t, self.groups)

    def weighted(self, t: Tensor) -> Tensor:
        return t if self.weight is None else t * self.weight

    def mean(self, t: Tensor) -> Tensor:
        return t.mean(self.own, keepdim=True)

    def product(self, q: Tensor) -> Tensor:
        """r (q - mean(q) - u mean(u q))."""
        return self.rstd * (q - self.mean(q) - self.unit * self.mean(self.unit * q))

    @staticmethod
    def of_channels(t: Tensor) -> Tensor:
        """Sums over all but the channels, [C]."""
        return t.sum((0, 3)).flatten()

    def back(self, t: Tensor) -> Tensor:
        return t.reshape(self.shape)


def _value(x, weight, bias, groups, eps, activation, slope):
    if x.numel() == 0:
        mean, variance = (x.new_full(_sets(x, groups), torch.nan) for _ in range(2))
    else:
        both = torch.var_mean(as_sets(x, groups), over(groups), correction=0)
        variance, mean = (t.view(_sets(x, groups)) for t in both)
    rstd = torch.rsqrt(variance + eps)
    s = _Set(x, weight, bias, mean, rstd, groups)
    return s.back(_activated(s.given, activation, slope)), mean, rstd, variance


def _pull(gradient, more, x, weight, bias, mean, rstd, groups, activation, slope, value):
    s = _Set(x, weight, bias, mean, rstd, groups)
    p = s.sets(gradient) * _slope(s.given, activation, slope)
    to_x = s.back(s.product(s.weighted(p)))
    y = s.back(_activated(s.given, activation, slope)) if value else x.new_empty(0)
    return to_x if more is None else to_x + more, y, s.of_channels(s.unit * p), s.of_channels(p)


def _pull_backward(tangent, cotangent, x, weight, bias, mean, rstd, groups, activation, slope):
    s = _Set(x, weight, bias, mean, rstd, groups)
    t, c = s.sets(tangent), s.sets(cotangent)
    slopes = _slope(s.given, activation, slope)
    p = c * slopes
    q, e = s.weighted(p), s.product(t)  # e: the gradient of q
    h = s.weighted(_curvature(s.given, activation, slope) * c * e)  # of the activation's input
    a, k, big_t, big_s = (s.mean(part) for part in (q, s.unit * q, t, s.unit * t))
    g = s.mean(t * q) - big_t * a - big_s * k
    inside = k * t + big_s * q - k * big_t - big_s * a + s.unit * (g - 2 * k * big_s)
    to_x = s.product(s.weighted(h)) - s.rstd.square() * inside
    whole = (s.back(part) for part in (s.weighted(e) * slopes, to_x, s.product(q)))
    return *whole, s.of_channels(e * p + s.unit * h), s.of_channels(h)


def _value_fake(x, weight, bias, groups, eps, activation, slope):
    return _like(x), *(x.new_empty(_sets(x, groups)) for _ in range(3))


def _pull_fake(gradient, more, x, weight, bias, mean, rstd, groups, activation, slope, value):
    return _like(x), _like(x) if value else x.new_empty(0), *_of_channels(x)


def _pull_backward_fake(tangent, cotangent, x, weight, bias, mean, rstd, groups, activation, slope):
    return _like(x), _like(x), _like(x), *_of_channels(x)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _of_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


_NETWORK = "Tensor x, Tensor? weight, Tensor? bias"
define(
    "norm_value",
    f"({_NETWORK}, int groups, float eps, int activation, float slope)"
    " -> (Tensor value, Tensor mean, Tensor rstd, Tensor variance)",
    twin=_value,
    fake=_value_fake,
    autograd=value_autograd,
)
define(
    "norm_pull",
    f"(Tensor gradient, Tensor? more, {_NETWORK}, Tensor mean, Tensor rstd, int groups, int activation, float slope,"
    " bool value) -> (Tensor to_x, Tensor value, Tensor to_weight, Tensor to_bias)",
    twin=_pull,
    fake=_pull_fake,
    autograd=pull_autograd,
)
define(
    "norm_pull_backward",
    f"(Tensor tangent, Tensor cotangent, {_NETWORK}, Tensor mean, Tensor rstd, int groups, int activation, float slope)"
    " -> (Tensor to_cotangent, Tensor to_x, Tensor again, Tensor to_weight, Tensor to_bias)",
    twin=_pull_backward,
    fake=_pull_backward_fake,
    autograd=not_differentiable("norm_pull_backward", "fisherkernels.linearize builds its graph. Use that"),
)
