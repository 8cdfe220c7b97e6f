"""An activation by itself in the sweeps of a network: value, product, and the backward passes of both.

By their number in SWEEP_ACTIVATIONS, from their key: the value, or for some the input (KEEP_INPUT). Three operators
with their twins and fakes, without derivatives: the nodes of fisherkernels.linearize that call them make the graph.
"""

from __future__ import annotations

from torch import Tensor

from fisherkernels.ops._autograd import not_differentiable
from fisherkernels.ops._library import define
from fisherkernels.ops._mlp_plain import CURVED, KEEP_INPUT, activated, drift, scaled


def _value(x, activation, slope):
    return activated(x, activation, slope)


def _pull(gradient, more, key, activation, slope, value):
    if activation in KEEP_INPUT:
        to_key = scaled(gradient, key, activation, slope)
        to_key = to_key if more is None else to_key + more
    else:
        to_key = scaled(gradient if more is None else gradient + more, key, activation, slope)
    return to_key, activated(key, activation, slope) if value else key.new_empty(0)


def _pull_backward(tangent, cotangent, key, activation, slope):
    curved = activation in CURVED
    to_key = drift(key, activation) * cotangent * tangent if curved else key.new_empty(0)
    return scaled(tangent, key, activation, slope), to_key, scaled(cotangent, key, activation, slope)


def _value_fake(x, activation, slope):
    return _like(x)


def _pull_fake(gradient, more, key, activation, slope, value):
    return _like(key), _like(key) if value else key.new_empty(0)


def _pull_backward_fake(tangent, cotangent, key, activation, slope):
    return _like(key), _like(key) if activation in CURVED else key.new_empty(0), _like(key)


def _like(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


_REASON = "fisherkernels.linearize builds its graph. Use that"
define(
    "activation_value",
    "(Tensor x, int activation, float slope) -> Tensor",
    twin=_value,
    fake=_value_fake,
    autograd=not_differentiable("activation_value", _REASON),
)
define(
    "activation_pull",
    "(Tensor gradient, Tensor? more, Tensor key, int activation, float slope, bool value)"
    " -> (Tensor to_key, Tensor value)",
    twin=_pull,
    fake=_pull_fake,
    autograd=not_differentiable("activation_pull", _REASON),
)
define(
    "activation_pull_backward",
    "(Tensor tangent, Tensor cotangent, Tensor key, int activation, float slope)"
    " -> (Tensor to_cotangent, Tensor to_key, Tensor again)",
    twin=_pull_backward,
    fake=_pull_backward_fake,
    autograd=not_differentiable("activation_pull_backward", _REASON),
)
