"""Exact Laplacians of networks in one forward sweep."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fisherkernels.checks import check_choice, check_count
from fisherkernels.linearize import Linearization, linearize_for_stacks
from fisherkernels.linearize.jacobian import require_memory_budget, require_per_sample_value, require_uncoupled
from fisherkernels.linearize.walk import add, value_size, vector_size
from fisherkernels.second_order.directions import tangents_of_input
from fisherkernels.second_order.first_tangents import classes_of_entries, compressed, count_of, first_tangents
from fisherkernels.second_order.mlp import MLP, laplacian_of, mlp_of
from fisherkernels.second_order.pulled import can_pull, pulled
from fisherkernels.second_order.sweep import NOTHING, sweep

ESTIMATORS = ("exact", "hutchinson")
_PULL = 8  # tangents per output, from which on the Jacobian is made of cotangents
_FEW = 16  # tangents, below which two more passes for the Jacobian outweigh what the operator for MLPs saves


class LaplacianOutput(NamedTuple):
    """``value`` [N, ...], ``jacobian`` [N, m, n] or None, ``laplacian`` [N, ...], shape of the value."""

    value: Tensor
    jacobian: Tensor | None
    laplacian: Tensor


def laplacian(
    net: nn.Module,
    x: Tensor,
    *,
    jacobian: bool = True,
    weights: Tensor | None = None,
    directions: Tensor | None = None,
    estimator: str = "exact",
    num_samples: int = 1,
    noise: Tensor | None = None,
    batch_statistics: str = "batch",
    memory_budget: float = 2**30,
) -> LaplacianOutput:
    r"""Value, Jacobian and Laplacian of a network at every sample, in one sweep forward.

    .. math::
        \Delta f_j(x) = \operatorname{tr} H_j = \sum_{i=1}^n \frac{\partial^2 f_j}{\partial x_i^2}
        \qquad\text{or}\qquad \operatorname{tr}(A H_j)

    with H_j the Hessian of output j. The n tangents t_k of x and the sum of second derivatives L along them go through
    the layers together: :math:`t_k' = J t_k`, :math:`L' = J L + \sum_k D^2 f[t_k, t_k]`, by the rules of
    :func:`fk.linearize`. Everything is differentiable once, by parameters and x.

    **Cost.** The products of n + 1 forward passes; of min(n, h) + 1 where x enters Linear layers of h units together,
    as only :math:`\sum_k t_k t_k^T = W W^T` counts and h tangents can have that sum. Branches whose tangents meet in
    no second derivative each have their own number: ``net(x) - 0.5 * x.square().sum(1)`` costs what ``net`` does. A
    Jacobian of few outputs comes from m vector-Jacobian products beside; of one output, its product gives the
    Laplacian from what the layers add to it. Piecewise linear activations have no second order. Where all tangents
    together would pass ``memory_budget`` they go in groups, whose graph is made again in backward (with layers that
    have no rule it is kept). Linear, tanh, sigmoid or SiLU, Linear, ... of x [N, n] on a CPU is one operator,
    :func:`fk.ops.mlp_laplacian`, which makes its hidden layers again in backward where they would pass the budget.

    Args:
        net: any module from one tensor to one tensor [N, ...]; layers without a rule (``fk.linearize(net, x).rules``)
            are differentiated by ``torch.func``, slower and in forward mode.
        x: [N, ...], float32 or float64; n numbers per sample.
        jacobian: also return the Jacobian.
        weights: diagonal of A, >= 0: shape of a sample of x, or of x. Held constant.
        directions: b_r of A = sum over r of b_r b_r^T: a stack [R, ...] of the shapes that ``weights`` can have. Held
            constant.
        estimator: ``"exact"``, or ``"hutchinson"``, the mean of :math:`v^T H v` over random signs v (times the root of
            the weights): unbiased, its variance :math:`2 \sum_{i \neq k} H_{ik}^2` over ``num_samples``.
        num_samples: of Hutchinson's estimator, a sweep's tangents.
        noise: its signs v [num_samples, \*x.shape], or others of mean 0 and covariance I; drawn from the global
            generator when None.
        batch_statistics: "batch", or "frozen" to hold the statistics of train-mode BatchNorm constant.
        memory_budget: bytes, for the tangents; at least one goes at a time. Not looked at under torch.compile.

    Returns:
        :class:`LaplacianOutput`.

    Raises:
        TypeError: no module, or x (weights, directions, noise) no float32 or float64 tensor.
        ValueError: x is not [N, ...] with a dimension behind N, the value is a tuple or not [N, ...], samples are mixed
            (BatchNorm in train mode, unless frozen), weights or directions of another shape, negative weights, both
            directions and Hutchinson's estimator, noise without it, an unknown option, num_samples < 1.

    Source: Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward
    Laplacian", 2023; Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.

    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> value, jac, lap = laplacian(net, torch.rand(5, 3))
    >>> list(value.shape), list(jac.shape), list(lap.shape)
    ([5, 2], [5, 2, 3], [5, 2])
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_count("num_samples", num_samples)
    require_memory_budget(memory_budget)
    _check_input(x)
    if directions is not None and (weights is not None or estimator != "exact"):
        raise ValueError("directions: expected neither weights nor estimator='hutchinson' beside them")
    if noise is not None and estimator == "exact":
        raise ValueError("noise: expected None with estimator='exact'")
    with torch.autocast(x.device.type, enabled=False):
        mlp = mlp_of(net, x) if batch_statistics in ("batch", "frozen") else None
        lin = None if mlp is not None else _linearized(net, x, batch_statistics)
        stack = tangents_of_input(x, weights, directions, estimator, num_samples, noise)
        if mlp is not None:
            result = _mlp_laplacian(net, mlp, x, stack, jacobian, memory_budget)
            if result is not None:
                return result
            lin = _linearized(net, x, batch_statistics)
        return _laplacian(lin, x, stack, jacobian, memory_budget)


def _linearized(net: nn.Module, x: Tensor, batch_statistics: str) -> Linearization:
    lin = linearize_for_stacks(net, x, batch_statistics=batch_statistics)
    require_per_sample_value(lin)
    require_uncoupled(lin)
    return lin


def _mlp_laplacian(
    net: nn.Module, mlp: MLP, x: Tensor, stack: Tensor | None, jacobian: bool, memory_budget: float
) -> LaplacianOutput | None:
    n, units = x.shape[1], len(mlp.weights[0])
    pushes = jacobian and stack is None and n <= units  # else the tangents are not the Jacobian's columns
    count = min(n, units) if stack is None else len(stack)
    if jacobian and not pushes and count < _FEW and len(mlp.weights[-1]) == 1:
        return None
    tangents = _behind_first_layer(mlp.weights[0], stack)
    result = laplacian_of(mlp, x, tangents, pushes, memory_budget)
    if result is None:
        return None
    value, total, pushed = result
    if pushes:
        return LaplacianOutput(value, pushed.mT, total)
    if not jacobian:
        return LaplacianOutput(value, None, total)
    lin = linearize_for_stacks(net, x)
    return LaplacianOutput(lin.value, lin.jacobian(memory_budget=memory_budget), total)


def _laplacian(
    lin: Linearization, x: Tensor, stack: Tensor | None, jacobian: bool, memory_budget: float
) -> LaplacianOutput:
    """``stack``: tangents [K, 1 or N, ...] of x; None for all unit vectors."""
    record, output = lin._record, lin._plan.output.index
    n, outputs = math.prod(x.shape[1:]), math.prod(lin.value.shape[1:])
    # Few outputs are cheaper to pull back than to push the tangents through the last layers.
    pushes = jacobian and stack is None and n < _PULL * outputs
    pushes = pushes and all(count_of(lin, members, n) == n for members in classes_of_entries(lin, True))
    classes = [first_tangents(lin, members, x, stack) for members in classes_of_entries(lin, pushes)]
    count = max([0, *(len(t) for starts in classes for t in starts.values())])
    size = (value_size(record) if torch.is_grad_enabled() else vector_size(record, output, True)) * x.element_size()
    group = count if torch.compiler.is_compiling() else max(1, int(memory_budget // max(size, 1)))
    if jacobian and not pushes and can_pull(lin):
        return LaplacianOutput(lin.value, *pulled(lin, _bends(lin, classes, output, min(group, count))))
    starts = {index: tangents for members in classes for index, tangents in members.items()}
    if not starts:
        carried = NOTHING
    elif group >= count:
        carried = sweep(record, starts, output, pushes)
    else:
        carried = sweep(record, dict.fromkeys(starts), output, False, _bends(lin, classes, output, group))
    total = torch.zeros_like(lin.value) if carried.laplacian is None else carried.laplacian
    if not jacobian:
        return LaplacianOutput(lin.value, None, total)
    if not pushes or carried.tangents is None:
        return LaplacianOutput(lin.value, lin.jacobian(memory_budget=memory_budget), total)
    stacked = carried.tangents.expand(n, *lin.value.shape).reshape(n, len(x), outputs)
    return LaplacianOutput(lin.value, stacked.permute(1, 2, 0), total)


def _behind_first_layer(weight: Tensor, stack: Tensor | None) -> Tensor:
    """Tangents [K, 1 or N, h] of W x, W [h, n]."""
    if stack is None:
        return compressed(weight.t()).unsqueeze(1)
    tangents = F.linear(stack.flatten(2), weight)
    return compressed(tangents.squeeze(1)).unsqueeze(1) if tangents.shape[1] == 1 else tangents


def _bends(lin: Linearization, classes: list[dict[int, Tensor]], output: int, size: int) -> dict[int, Any]:
    """What curved steps add to second derivatives, by value, from ``size`` tangents at a time."""
    whole = all(len(tangents) <= size for starts in classes for tangents in starts.values())
    # torch.func does not work under the hooks with which a checkpoint makes the graph anew.
    keeps_graph = whole or not torch.is_grad_enabled() or any(step.rule == "fallback" for step in lin._record.steps)
    nowhere = {index: None for starts in classes for index in starts}
    bends: dict[int, Any] = {}
    for starts in classes:
        for group in zip(*(tangents.split(size) for tangents in starts.values()), strict=True):
            given = {**nowhere, **dict(zip(starts, group, strict=True))}

            def of_group(given: dict = given) -> dict[int, Any]:
                bends: dict[int, Any] = {}
                sweep(lin._record, given, output, False, bends)
                return bends

            part = of_group() if keeps_graph else checkpoint(of_group, use_reentrant=False, preserve_rng_state=False)
            bends |= {index: add(bend, bends.get(index)) for index, bend in part.items()}
    return bends


def _check_input(x) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x: expected shape [N, ...] with a dimension behind N, got {list(x.shape)}")
