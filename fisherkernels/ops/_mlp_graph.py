"""The operators of mlp_sweep in graphs of torch.compile: their gradients are operators that return new tensors."""

from functools import partial

import torch
from torch import Tensor

from fisherkernels.ops._autograd import again, batched, below_autograd, needs_graph
from fisherkernels.ops._library import backends
from fisherkernels.ops._mlp_plain import (
    CURVED,
    Constants,
    arrived,
    by_layer,
    columns_of,
    plain_value,
    plain_vjp,
    product_parts,
)
from fisherkernels.transforms import for_graph

opset = torch.ops.fisherkernels


def in_graph(x: Tensor) -> bool:
    """Whether torch.compile is making a graph whose CPU operators are native."""
    return for_graph() and x.is_cpu and backends()["cpu"].active


def graph_value(constants, count, x, *parameters):
    """Each activation's key, padded, and the value where none is behind the last weight; then the weights."""
    weights, biases, masks = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
    given = [x.new_empty(0) if bias is None else bias for bias in biases]
    value, hidden, _ = opset.mlp_value.default(x, weights, given, *constants, masks)
    return *hidden, *([value] if len(hidden) < count else []), *weights


def graph_vjp(constants, cotangent, *tensors):
    hidden, weights, masks = product_parts(constants, tensors)
    return opset.mlp_vjp.default(cotangent, hidden, weights, *constants, masks)[0]


class _Value(torch.autograd.Function):
    """-> the operator's results, flat."""

    @staticmethod
    def forward(ctx, constants, count, x, *parameters):
        weights, biases, masks = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
        value, hidden, beside = below_autograd(opset.mlp_value.default, x, weights, biases, *constants, masks)
        ctx.constants, ctx.count = constants, count
        ctx.save_for_backward(x, *parameters, *hidden, *beside)
        ctx.mark_non_differentiable(*beside)
        ctx.set_materialize_grads(False)
        return value, *hidden, *beside

    @staticmethod
    def backward(ctx, of_value, *of_others):
        count, active, needs = ctx.count, len(ctx.constants.kinds), ctx.needs_input_grad[2:]
        of_hidden = of_others[:active]
        x, *others = ctx.saved_tensors
        given = len(needs) - 1  # weights, biases, masks
        parameters, hidden, beside = others[:given], others[given:][:active], others[given + active :]
        if torch.is_grad_enabled() or batched((of_value, *of_hidden)):
            function = partial(_plain_results, ctx.constants, count)
            return None, None, *again(function, (x, *parameters), (of_value, *of_hidden))
        weights = parameters[:count]
        of_rows = [*of_hidden, of_value][:count]
        top, by_hidden = arrived(of_rows, hidden)
        if top == 0:
            return (None,) * len(ctx.needs_input_grad)
        gradient = columns_of(of_rows[top - 1], weights[top - 1].shape[0])
        constants = ctx.constants.below(top)
        to_x, to_weights, to_biases = below_autograd(
            opset.mlp_value_gradients.default,
            gradient, by_hidden, x, hidden[: len(constants.kinds)], beside, weights[:top], *constants,
            parameters[2 * count :][: constants.masks()], any(needs[1:]), needs[0],
        )  # fmt: skip
        none = [None] * count
        results = [to_x, *(to_weights + none)[:count], *(to_biases + none)[:count], *[None] * (given - 2 * count)]
        return None, None, *(part if needed else None for part, needed in zip(results, needs, strict=True))


class _VJP(torch.autograd.Function):
    """(cotangent, the activations' keys, weights, masks) -> the operator's results, flat."""

    @staticmethod
    def forward(ctx, constants, cotangent, *tensors):
        hidden, weights, masks = product_parts(constants, tensors)
        op = opset.mlp_vjp.default
        pulled, before, behind = below_autograd(op, cotangent, hidden, weights, *constants, masks)
        ctx.constants, ctx.between = constants, len(before)
        ctx.save_for_backward(cotangent, *tensors, *before, *behind)
        ctx.mark_non_differentiable(*before, *behind)
        ctx.set_materialize_grads(False)
        return pulled, *before, *behind

    @staticmethod
    def backward(ctx, tangent, *_):
        needs = ctx.needs_input_grad[1:]
        if tangent is None:
            return (None,) * len(ctx.needs_input_grad)
        cotangent, *others = ctx.saved_tensors
        tensors, kept = others[: len(needs) - 1], others[len(needs) - 1 :]
        if torch.is_grad_enabled() or batched((tangent,)):
            function = partial(_plain_product, ctx.constants)
            return None, *again(function, (cotangent, *tensors), (tangent,))
        hidden, weights, masks = product_parts(ctx.constants, tensors)
        of_weights = any(needs[1 + len(hidden) :])
        to_cotangent, to_weights, to_curved = below_autograd(
            opset.mlp_vjp_gradients.default,
            tangent, cotangent, kept[: ctx.between], kept[ctx.between :], hidden, weights, *ctx.constants, masks,
            of_weights,
        )  # fmt: skip
        to_hidden = by_layer(CURVED, ctx.constants.kinds, to_curved)
        results = [to_cotangent, *to_hidden, *(to_weights or [None] * len(weights)), *[None] * len(masks)]
        return None, *(part if needed else None for part, needed in zip(results, needs, strict=True))


def _plain_results(constants, count, x, *parameters):
    """What of the operator's results has gradients, flat."""
    weights, biases, masks = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
    biases = [bias if bias.numel() else None for bias in biases]
    rows, active = plain_value(constants, count, x, *weights, *biases, *masks)[:count], len(constants.kinds)
    return rows[-1] if active < count else x.new_empty(0), *rows[:active]


def _plain_product(constants, *tensors):
    return (plain_vjp(constants, *tensors),)


def value_autograd(x, weights, biases, activations, slopes, scales, masks):
    """The Autograd kernel of mlp_value."""
    constants = Constants(activations, slopes, scales)
    if not needs_graph(x, *weights, *biases):
        return below_autograd(opset.mlp_value.default, x, weights, biases, *constants, masks)
    value, *others = _Value.apply(constants, len(weights), x, *weights, *biases, *masks)
    return value, others[: len(activations)], others[len(activations) :]


def vjp_autograd(cotangent, hidden, weights, activations, slopes, scales, masks):
    """The Autograd kernel of mlp_vjp."""
    constants = Constants(activations, slopes, scales)
    if not needs_graph(cotangent, *hidden, *weights):
        return below_autograd(opset.mlp_vjp.default, cotangent, hidden, weights, *constants, masks)
    pulled, *kept = _VJP.apply(constants, cotangent, *hidden, *weights, *masks)
    between = len(weights) - 1
    return pulled, kept[:between], kept[between:]
