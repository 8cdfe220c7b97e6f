"""The operators of mlp_sweep: twins, fakes, schemas."""

import torch

from fisherkernels.ops._autograd import not_differentiable
from fisherkernels.ops._library import define
from fisherkernels.ops._mlp_graph import value_autograd, vjp_autograd
from fisherkernels.ops._mlp_plain import (
    CURVED,
    KEEP_INPUT,
    Constants,
    by_layer,
    padded,
    plain_value,
    rows_like,
    rows_of_kinds,
)

opset = torch.ops.fisherkernels


def _value(x, weights, biases, activations, slopes, scales, masks):
    given = [bias if bias.numel() else None for bias in biases]
    constants = Constants(activations, slopes, scales)
    rows = [part.clone() for part in plain_value(constants, len(weights), x, *weights, *given, *masks)]
    hidden = rows[: len(activations)]
    kept = constants.steps(masks, hidden, weights)[: len(weights) - 1]
    beside = [padded(p.value(h[:, : len(w)])) for h, w, p in kept if p.kind in KEEP_INPUT]
    return rows[len(weights) - 1] if len(hidden) < len(weights) else x.new_empty(0), hidden, beside


def _vjp(cotangent, hidden, weights, activations, slopes, scales, masks):
    before, behind = [], []
    steps = Constants(activations, slopes, scales).steps(masks, hidden, weights)
    for i, (h, weight, pointwise) in reversed(list(enumerate(steps))):
        if h is not None:
            between = i < len(weights) - 1
            behind += [padded(cotangent)] if between and pointwise.kind in CURVED else []
            cotangent = pointwise.pull(cotangent, h[:, : len(weight)])
            before += [padded(cotangent)] if between else []
        cotangent = cotangent @ weight
    return cotangent, [part.clone() for part in before[::-1]], [part.clone() for part in behind[::-1]]


def _vjp_backward(
    tangent, cotangent, before, behind, hidden, weights, activations, slopes, scales, masks, to_weights, to_hidden
):  # fmt: skip
    last, curved = len(weights) - 1, iter(to_hidden)
    unscaled = [*by_layer(CURVED, activations[:last], behind), cotangent]
    for i, (h, weight, pointwise) in enumerate(Constants(activations, slopes, scales).steps(masks, hidden, weights)):
        width = len(weight)
        key = None if h is None else h[:, :width]
        if to_weights:
            arrived = before[i][:, :width] if i < last else cotangent
            if i == last and pointwise is not None:
                arrived = pointwise.pull(cotangent, key)
            to_weights[i].copy_(arrived.t() @ tangent)
        tangent = tangent @ weight.t()
        if pointwise is None:
            continue
        if pointwise.kind in CURVED:
            next(curved).copy_(padded(tangent * unscaled[i][:, :width] * pointwise.drift(key)))
        tangent = pointwise.pull(tangent, key)
    return tangent


def _value_backward(
    gradient, by_hidden, x, hidden, beside, weights, activations, slopes, scales, masks, to_weights, to_biases, add,
    of_input,
):  # fmt: skip
    operands = [y if h is None else h for y, h in zip(hidden, by_layer(KEEP_INPUT, activations, beside), strict=True)]
    steps = Constants(activations, slopes, scales).steps(masks, hidden, weights)
    for i, (h, weight, pointwise) in reversed(list(enumerate(steps))):
        if pointwise is not None:
            of_key = by_hidden[i][:, : len(weight)] if i < len(by_hidden) else 0
            before, behind = (0, of_key) if pointwise.kind in KEEP_INPUT else (of_key, 0)
            gradient = pointwise.pull(gradient + before, h[:, : len(weight)]) + behind
        operand = operands[i - 1][:, : weight.shape[1]] if i else x
        if to_weights:
            product = gradient.t() @ operand
            to_weights[i].copy_(to_weights[i] + product if add else product)
            to_biases[i].copy_(gradient.sum(0))
        gradient = gradient @ weight if i or of_input else x.new_empty(0)
    return gradient


def _value_fake(x, weights, biases, activations, *_):
    sizes = (x.shape[0], weights[-1].shape[0]) if len(activations) < len(weights) else (0,)
    beside = rows_of_kinds(KEEP_INPUT, weights, activations[: len(weights) - 1], x)
    return x.new_empty(sizes), rows_like(weights, activations, x), beside


def _vjp_fake(cotangent, hidden, weights, activations, *_):
    pulled = cotangent.new_empty(cotangent.shape[0], weights[0].shape[1])
    between = activations[: len(weights) - 1]
    return pulled, rows_like(weights, between, cotangent), rows_of_kinds(CURVED, weights, between, cotangent)


def _vjp_backward_fake(tangent, cotangent, *_):
    return cotangent.new_empty(cotangent.shape)


def _value_backward_fake(gradient, by_hidden, x, *others):
    return x.new_empty(x.shape if others[-1] else (0,))


def _vjp_gradients(
    tangent, cotangent, before, behind, hidden, weights, activations, slopes, scales, masks, of_weights
):  # fmt: skip
    to_weights, to_hidden = _new_gradients(weights, of_weights), rows_of_kinds(CURVED, weights, activations, tangent)
    network = (hidden, weights, activations, slopes, scales, masks)
    to_cotangent = opset.mlp_vjp_backward(tangent, cotangent, before, behind, *network, to_weights, to_hidden)
    return to_cotangent, to_weights, to_hidden


def _vjp_gradients_fake(
    tangent, cotangent, before, behind, hidden, weights, activations, slopes, scales, masks, of_weights
):  # fmt: skip
    to_hidden = rows_of_kinds(CURVED, weights, activations, tangent)
    return cotangent.new_empty(cotangent.shape), _new_gradients(weights, of_weights), to_hidden


def _value_gradients(
    gradient, by_hidden, x, hidden, beside, weights, activations, slopes, scales, masks, of_weights, of_input
):  # fmt: skip
    to_weights = _new_gradients(weights, of_weights)
    to_biases = [x.new_empty(w.shape[0]) for w in to_weights]
    network = (x, hidden, beside, weights, activations, slopes, scales, masks)
    to_x = opset.mlp_value_backward(gradient, by_hidden, *network, to_weights, to_biases, False, of_input)
    return to_x, to_weights, to_biases


def _value_gradients_fake(
    gradient, by_hidden, x, hidden, beside, weights, activations, slopes, scales, masks, of_weights, of_input
):  # fmt: skip
    to_weights = _new_gradients(weights, of_weights)
    return x.new_empty(x.shape if of_input else (0,)), to_weights, [x.new_empty(w.shape[0]) for w in to_weights]


def _new_gradients(weights, wanted):
    return [w.new_empty(w.shape) for w in weights] if wanted else []


_REASON = "mlp_sweep builds its graph. Use that"
_BEHIND = "int[] activations, float[] slopes, float[] scales, Tensor[] masks"
_NETWORK = f"Tensor[] weights, {_BEHIND}"
define(
    "mlp_value",
    f"(Tensor x, Tensor[] weights, Tensor[] biases, {_BEHIND})"
    " -> (Tensor value, Tensor[] hidden, Tensor[] beside)",
    twin=_value,
    fake=_value_fake,
    autograd=value_autograd,
)
define(
    "mlp_vjp",
    f"(Tensor cotangent, Tensor[] hidden, {_NETWORK}) -> (Tensor pulled, Tensor[] before, Tensor[] behind)",
    twin=_vjp,
    fake=_vjp_fake,
    autograd=vjp_autograd,
)
define(
    "mlp_vjp_backward",
    f"(Tensor tangent, Tensor cotangent, Tensor[] before, Tensor[] behind, Tensor[] hidden, {_NETWORK},"
    " Tensor(a!)[] to_weights, Tensor(b!)[] to_hidden) -> Tensor",
    twin=_vjp_backward,
    fake=_vjp_backward_fake,
    autograd=not_differentiable("mlp_vjp_backward", _REASON),
)
define(
    "mlp_value_backward",
    f"(Tensor gradient, Tensor[] by_hidden, Tensor x, Tensor[] hidden, Tensor[] beside, {_NETWORK},"
    " Tensor(a!)[] to_weights, Tensor(b!)[] to_biases, bool add, bool of_input) -> Tensor",
    twin=_value_backward,
    fake=_value_backward_fake,
    autograd=not_differentiable("mlp_value_backward", _REASON),
)
define(
    "mlp_vjp_gradients",
    f"(Tensor tangent, Tensor cotangent, Tensor[] before, Tensor[] behind, Tensor[] hidden, {_NETWORK},"
    " bool of_weights) -> (Tensor to_cotangent, Tensor[] to_weights, Tensor[] to_hidden)",
    twin=_vjp_gradients,
    fake=_vjp_gradients_fake,
)
define(
    "mlp_value_gradients",
    f"(Tensor gradient, Tensor[] by_hidden, Tensor x, Tensor[] hidden, Tensor[] beside, {_NETWORK}, bool of_weights,"
    " bool of_input) -> (Tensor to_x, Tensor[] to_weights, Tensor[] to_biases)",
    twin=_value_gradients,
    fake=_value_gradients_fake,
)
