"""The Autograd kernels of the norms' operators: gradients are operators again, also in graphs of torch.compile."""

from __future__ import annotations

from functools import partial

import torch

from fisherkernels.ops._autograd import again, batched, below_autograd, needs_graph
from fisherkernels.ops._norm_plain import plain_pull, plain_value

opset = torch.ops.fisherkernels


class _Value(torch.autograd.Function):
    """-> the operator's results, of which the first has gradients."""

    @staticmethod
    def forward(ctx, constants, x, weight, bias):
        value, mean, rstd, variance = below_autograd(opset.norm_value.default, x, weight, bias, *constants)
        ctx.constants = constants
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd, variance)
        return value, mean, rstd, variance

    @staticmethod
    def backward(ctx, gradient, *_):
        *inputs, mean, rstd = ctx.saved_tensors
        constants = ctx.constants
        if torch.is_grad_enabled() or batched((gradient,)):
            return None, *again(partial(_plain_value, constants), tuple(inputs), (gradient,))
        to_x, _, *to_parameters = below_autograd(
            opset.norm_pull.default, gradient, None, *inputs, mean, rstd, constants[0], *constants[2:], False
        )
        return None, to_x, *_wanted(to_parameters, ctx.needs_input_grad[2:])


class _Pull(torch.autograd.Function):
    """(gradient, x, weight, bias) -> J^T gradient."""

    @staticmethod
    def forward(ctx, constants, gradient, x, weight, bias, mean, rstd):
        ctx.constants = constants
        ctx.save_for_backward(gradient, x, weight, bias, mean, rstd)
        return below_autograd(
            opset.norm_pull.default, gradient, None, x, weight, bias, mean, rstd, *constants, False
        )[0]

    @staticmethod
    def backward(ctx, tangent):
        *inputs, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled() or batched((tangent,)):
            return None, *again(partial(_plain_pull, ctx.constants, rstd), tuple(inputs), (tangent,)), None, None
        to_gradient, to_x, _, *to_parameters = below_autograd(
            opset.norm_pull_backward.default, tangent, *inputs, mean, rstd, *ctx.constants
        )
        return None, to_gradient, to_x, *_wanted(to_parameters, ctx.needs_input_grad[3:5]), None, None


def _plain_value(constants, *inputs):
    return (plain_value(*inputs, *constants),)


def _plain_pull(constants, rstd, *inputs):
    return (plain_pull(*inputs, rstd, *constants),)


def _wanted(gradients, needs):
    return (gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))


def value_autograd(x, weight, bias, groups, eps, activation, slope):
    """The Autograd kernel of norm_value."""
    if not needs_graph(x, weight, bias):
        return below_autograd(opset.norm_value.default, x, weight, bias, groups, eps, activation, slope)
    return _Value.apply((groups, eps, activation, slope), x, weight, bias)


def pull_autograd(gradient, more, x, weight, bias, mean, rstd, groups, activation, slope, value):
    """The Autograd kernel of norm_pull; ``more`` and ``value`` are backward's own."""
    if not needs_graph(gradient, more, x, weight, bias):
        op = opset.norm_pull.default
        return below_autograd(op, gradient, more, x, weight, bias, mean, rstd, groups, activation, slope, value)
    if more is not None or value:
        raise RuntimeError("fisherkernels::norm_pull is differentiable without `more` and `value` only")
    none = x.new_empty(0)
    return _Pull.apply((groups, activation, slope), gradient, x, weight, bias, mean, rstd), none, none, none
