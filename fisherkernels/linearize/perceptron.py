"""Stretches of a plan that are multi-layer perceptrons, whose sweeps the native CPU library has as one operator each.

A stretch is Linear, activation, Linear, ... where nothing else looks at what is between. On a CPU, in eager mode and in
graphs of torch.compile, its value and its vector-Jacobian products are then `fk.ops.mlp_sweep`'s: fewer operations, and
in eager mode one buffer for the weights' gradients of both sweeps. Everywhere else, and for tangents and stacks, its
steps run one by one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fisherkernels.ops import backends
from fisherkernels.ops.mlp_sweep import NOT_LAST, SWEEP_ACTIVATIONS, MLPSweep, unchecked_sweep
from fisherkernels.transforms import records

from .pace import sweeps_outrun_torch
from .plan import Step, Stretch, uses_of

_LARGEST, _MANY = 1 << 19, 256  # elements of a weight, samples: where both are larger, torch's products may be faster

# What an activation's rule takes behind its input; but for a slope, the kernels know these values alone.
_CONSTANTS: dict[str, dict[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "gelu": {"approximate": "none"},
}


def perceptrons_of(steps: tuple[Step, ...], output: Any) -> tuple[Stretch, ...]:
    """Every stretch with two Linear at least."""
    uses = uses_of(steps, output)
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
    between = tuple(i for i in range(found[0], found[-1]) if i not in found)
    return Stretch(tuple(found), between)


def parts_of(calls: list[tuple[tuple, dict]], activations: tuple[str, ...]) -> list[tuple]:
    """Weight and bias of every Linear, constants of every activation, in the order of a stretch's steps.

    ``calls``: what each step's rule takes behind its input.
    """
    return [
        constants_of(activations[i // 2], *call) if i % 2 else _weight_and_bias(*call) for i, call in enumerate(calls)
    ]


def pieces_of(parts: list[tuple], activations: tuple[str, ...], x: Tensor) -> list[tuple[int, int]]:
    """Where the pieces of a stretch that are to be sweeps begin and end, by the position of their steps.

    Steps without a kernel, and weights that are better left to torch, are in none.
    """
    if x.device.type != "cpu" or x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        return []
    layers = parts[::2]
    if not (records(x, *(t for layer in layers for t in layer if t is not None)) and backends()["cpu"].active):
        return []
    many = torch.compiler.is_compiling() or x.shape[0] > _MANY  # in a graph N may be any
    large = many and any(weight.numel() > _LARGEST for weight, _ in layers)
    limit = _LARGEST if large and not sweeps_outrun_torch() else math.inf
    swept = [
        has_kernel(activations[i // 2], part) if i % 2 else part[0].numel() <= limit for i, part in enumerate(parts)
    ]
    found, begin = [], 0
    for i, inside in enumerate((*swept, False)):
        if inside:
            continue
        ends_active = i > begin and (i - begin) % 2 == 0
        end = i - 1 if ends_active and activations[i // 2 - 1] in NOT_LAST else i
        if end - begin > 2:
            found.append((begin, end))
        begin = i + (1 if i % 2 else 2)  # the next Linear
    return found


def sweep_of(parts: list[tuple], activations: tuple[str, ...], x: Tensor) -> tuple[MLPSweep, list[tuple]] | None:
    """The sweep of such a piece and what every step's rule would have saved; None where its layers do not fit."""
    layers, constants = parts[::2], parts[1::2]
    if not _fit(x, layers):
        return None
    weights, biases = zip(*layers, strict=True)
    pairs = list(zip(activations, constants, strict=True))
    kinds = [SWEEP_ACTIVATIONS.index(kind) for kind in activations]
    slopes = [float(given[0]) if kind == "leaky_relu" else 0.0 for kind, given in pairs]
    sweep = unchecked_sweep(x, weights, biases, kinds, slopes)
    saved: list[tuple] = [(weight,) for weight in weights]
    for i, (hidden, (kind, given)) in enumerate(zip(sweep.hidden, pairs, strict=True)):
        saved.insert(2 * i + 1, (hidden, *given, True) if kind == "leaky_relu" else (hidden, *given))
    return sweep, saved


def _fit(x: Tensor, layers: list[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether the layers take x and one another; where they do not, the steps say so."""
    width = x.shape[1]
    for weight, bias in layers:
        if weight.dim() != 2 or weight.shape[1] != width:
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


def constants_of(kind: str, args: tuple, kwargs: dict) -> tuple:
    taken = enumerate(_CONSTANTS.get(kind, {}).items())
    return tuple(args[i] if i < len(args) else kwargs.get(name, default) for i, (name, default) in taken)


def has_kernel(kind: str, constants: tuple) -> bool:
    return constants[0] >= 0 if kind == "leaky_relu" else constants == tuple(_CONSTANTS.get(kind, {}).values())
