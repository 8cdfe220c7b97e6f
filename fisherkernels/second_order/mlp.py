"""Multi-layer perceptrons, whose Laplacian is one operator: Linear, activation, Linear, ..., Linear on a CPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisherkernels import ops
from fisherkernels.linearize.plan import Ref, holds, plan_of, submodule
from fisherkernels.linearize.wrappers import refuse_distributed
from fisherkernels.ops.mlp_laplacian import ACTIVATIONS


class MLP(NamedTuple):
    """Parameters in the order of the layers; a layer's bias may be None."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[str, ...]  # before each weight but the first


def mlp_of(net: nn.Module, x: Tensor) -> MLP | None:
    """The layers of ``net``, or None where it is no multi-layer perceptron of x [N, n] that the operator takes."""
    if not isinstance(net, nn.Module) or x.dim() != 2 or x.device.type != "cpu":
        return None
    refuse_distributed(net, "net")
    plan = plan_of(net)
    if torch.compiler.is_compiling():
        holds(net, plan)
    steps = plan.steps
    if len(steps) < 3 or len(steps) % 2 == 0 or not isinstance(plan.output, Ref) or plan.output.index != len(steps):
        return None
    weights, biases, activations, width = [], [], [], x.shape[1]
    for i, step in enumerate(steps):
        if len(step.slots) != 1 or step.slots[0] != i or step.kwargs:
            return None
        if i % 2:
            if step.rule not in ACTIVATIONS or len(step.args) != 1:
                return None
            activations.append(step.rule)
            continue
        if step.rule != "linear" or step.kind != "module":
            return None
        layer = submodule(net, step.target)
        if layer.weight.dtype != x.dtype or layer.weight.device != x.device or layer.weight.shape[1] != width:
            return None
        width = layer.weight.shape[0]
        weights.append(layer.weight)
        biases.append(layer.bias)
    return MLP(tuple(weights), tuple(biases), tuple(activations))


def laplacian_of(
    mlp: MLP, x: Tensor, tangents: Tensor, keep_tangents: bool, memory_budget: float
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Value [N, m], Laplacian [N, m] and tangents [N, K, m] or None, from the first layer's tangents [K, 1 or N, h].

    The hidden layers' rows are kept for backward where they fit under the budget; None where one sample's do not.
    """
    hidden = [len(weight) for weight in mlp.weights[:-1]]
    rows = (len(tangents) + 2) * x.element_size()  # bytes of a sample's rows, one unit wide
    if not torch.compiler.is_compiling() and 4 * rows * max(hidden) > memory_budget:
        return None
    keep_hidden = torch.compiler.is_compiling() or math.prod((len(x), rows, sum(hidden[1:]))) <= memory_budget
    first = F.linear(x, mlp.weights[0], mlp.biases[0])
    return ops.mlp_laplacian(
        first, tangents, mlp.weights[1:], mlp.biases[1:], mlp.activations,
        keep_tangents=keep_tangents, keep_hidden=keep_hidden,
    )  # fmt: skip
