"""Stretches of a plan that are multi-layer perceptrons, whose sweeps the native CPU library has as one operator each.

A stretch is Linear, activation, Linear, ... where nothing else looks at what is between. On a CPU, in eager mode and in
graphs of torch.compile, its value and its vector-Jacobian products are then `fk.ops.mlp_sweep`'s: fewer operations, and
in eager mode one buffer for the weights' gradients of both sweeps. Everywhere else, and for tangents and stacks, its
steps run one by one.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fisherkernels.ops import backends
from fisherkernels.ops.mlp_sweep import NOT_LAST, SWEEP_ACTIVATIONS, MLPSweep, unchecked_sweep
from fisherkernels.transforms import records

from .plan import Ref, Step, Stretch

_LARGEST, _MANY = 1 << 19, 256  # elements of a weight, samples: where both are larger, torch's products are faster


# What an activation's rule takes behind its input. But for a slope, the sweeps' kernels know these values alone.
_CONSTANTS: dict[str, dict[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "gelu": {"approximate": "none"},
}


def perceptrons_of(steps: tuple[Step, ...], output: Any) -> tuple[Stretch, ...]:
    """Every stretch with two Linear at least."""
    uses = Counter(_refs((*((step.args, step.kwargs) for step in steps), output)))
    found: list[list[int]] = []
    current: list[int] = []
    for i, step in enumerate(steps):
        if step.rule == "evaluate":
            continue  # of no value between, which have one use each
        follows = current and step.slots == (current[-1] + 1,) and uses[current[-1] + 1] == 1
        behind_linear = bool(current) and steps[current[-1]].rule == "linear"
        if follows and (step.rule in SWEEP_ACTIVATIONS if behind_linear else step.rule == "linear"):
            current.append(i)
            continue
        found.append(current)
        current = [i] if step.rule == "linear" else []
    return tuple(_stretch(steps, stretch) for stretch in (*found, current) if len(stretch) > 2)


def _stretch(steps: tuple[Step, ...], found: list[int]) -> Stretch:
    if steps[found[-1]].rule in NOT_LAST:
        found = found[:-1]
    between = tuple(i for i in range(found[0], found[-1]) if i not in found)
    return Stretch(tuple(found), between, tuple(steps[i].rule for i in found[1::2]))


def _refs(spec: Any) -> list[int]:
    if isinstance(spec, Ref):
        return [spec.index]
    if isinstance(spec, tuple):
        return [i for part in spec for i in _refs(part)]
    if isinstance(spec, slice):
        return _refs((spec.start, spec.stop, spec.step))
    return []


def sweep_of(
    calls: list[tuple[tuple, dict]], activations: tuple[str, ...], x: Tensor
) -> tuple[MLPSweep, list[tuple]] | None:
    """The sweep and what every step's rule would have saved; None where the steps are to run one by one.

    ``calls``: what each step's rule takes behind its input.
    """
    if x.device.type != "cpu" or x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        return None
    layers = [_weight_and_bias(*call) for call in calls[::2]]
    constants = [_constants(kind, *call) for kind, call in zip(activations, calls[1::2], strict=True)]
    if not all(map(_has_kernel, activations, constants)):
        return None
    pairs = list(zip(activations, constants, strict=True))
    slopes = [float(given[0]) if kind == "leaky_relu" else 0.0 for kind, given in pairs]
    weights, biases = zip(*layers, strict=True)
    parameters = (*weights, *(bias for bias in biases if bias is not None))
    if not (records(x, *parameters) and _fit(x, layers) and backends()["cpu"].active):
        return None
    kinds = [SWEEP_ACTIVATIONS.index(kind) for kind in activations]
    sweep = unchecked_sweep(x, weights, biases, kinds, slopes)
    saved: list[tuple] = [(weight,) for weight in weights]
    for i, (hidden, (kind, given)) in enumerate(zip(sweep.hidden, pairs, strict=True)):
        saved.insert(2 * i + 1, (hidden, *given, True) if kind == "leaky_relu" else (hidden, *given))
    return sweep, saved


def _fit(x: Tensor, layers: list[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether the layers take x and one another; where they do not, the steps say so."""
    width, many = x.shape[1], torch.compiler.is_compiling() or x.shape[0] > _MANY  # in a graph N may be any
    for weight, bias in layers:
        if weight.dim() != 2 or weight.shape[1] != width:
            return False
        if weight.numel() > _LARGEST and many:
            return False
        width = weight.shape[0]
        if bias is not None and bias.shape != (width,):
            return False
        for t in (weight, bias):
            if t is not None and (t.dtype is not x.dtype or t.device != x.device):
                return False
    return True


def _weight_and_bias(args: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None]:
    weight = args[0] if args else kwargs["weight"]
    return weight, args[1] if len(args) > 1 else kwargs.get("bias")


def _constants(kind: str, args: tuple, kwargs: dict) -> tuple:
    taken = enumerate(_CONSTANTS.get(kind, {}).items())
    return tuple(args[i] if i < len(args) else kwargs.get(name, default) for i, (name, default) in taken)


def _has_kernel(kind: str, constants: tuple) -> bool:
    return constants[0] >= 0 if kind == "leaky_relu" else constants == tuple(_CONSTANTS.get(kind, {}).values())
