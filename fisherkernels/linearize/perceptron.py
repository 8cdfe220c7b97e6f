"""Stretches of a plan that are multi-layer perceptrons, whose sweeps the native CPU library has as one operator each.

A stretch is Linear, activation, Linear, ... with dropout behind any activation, where nothing else looks at what is
between. On a CPU, in eager mode and in graphs of torch.compile, its value and its vector-Jacobian products are then
`fk.ops.mlp_sweep`'s: fewer operations, and in eager mode one buffer for the weights' gradients of both sweeps.
Everywhere else, for tangents and stacks, and where there is little to be done, its steps run one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisherkernels.ops import backends
from fisherkernels.ops.mlp_sweep import NOT_LAST, SWEEP_ACTIVATIONS, MLPSweep, unchecked_sweep
from fisherkernels.transforms import records

from .pace import sweeps_outrun_torch
from .plan import Step, Stretch, draws, uses_of

_LARGEST, _MANY = 1 << 19, 256  # elements of a weight, samples: where both are larger, torch's products may be faster
LEAST_WORK = 1 << 21  # multiplications of an eager pass: with less, torch's single steps are faster

# What an activation's rule takes behind its input; but for a slope, the kernels know these values alone.
_CONSTANTS: dict[str, dict[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "gelu": {"approximate": "none"},
}

_ACTIVE = {*SWEEP_ACTIVATIONS}
_BEHIND = {"linear": _ACTIVE, **dict.fromkeys(_ACTIVE, {"linear", "dropout"}), "dropout": {"linear"}}


def perceptrons_of(steps: tuple[Step, ...], output: Any) -> tuple[Stretch, ...]:
    """Every stretch with two Linear at least."""
    uses = uses_of(steps, output)
    found: list[list[int]] = []
    current: list[int] = []
    for i, step in enumerate(steps):
        if step.rule == "evaluate":  # of no value between, which have one use each
            if draws(step) and any(steps[j].rule == "dropout" for j in current):
                found.append(current)
                current = []
            continue
        follows = current and step.slots == (current[-1] + 1,) and uses[current[-1] + 1] == 1
        if follows and step.rule in _BEHIND[steps[current[-1]].rule]:
            current.append(i)
            continue
        found.append(current)
        current = [i] if step.rule == "linear" else []
    return tuple(
        _stretch(steps, stretch) for stretch in (*found, current) if _weights(steps[i].rule for i in stretch) > 1
    )


def _weights(rules: Iterable[str]) -> int:
    return sum(rule == "linear" for rule in rules)


def _stretch(steps: tuple[Step, ...], found: list[int]) -> Stretch:
    between = tuple(i for i in range(found[0], found[-1]) if i not in found)
    return Stretch(tuple(found), between)


def parts_of(calls: list[tuple[tuple, dict]], rules: tuple[str, ...]) -> list[tuple]:
    """Weight and bias of every Linear, constants of every activation, p of every dropout, in the order of the steps.

    ``calls``: what each step's rule takes behind its input.
    """
    of_rule = {"linear": _weight_and_bias, "dropout": _probability}
    return [
        of_rule[rule](*call[0], **call[1]) if rule in of_rule else constants_of(rule, *call)
        for rule, call in zip(rules, calls, strict=True)
    ]


def pieces_of(parts: list[tuple], rules: tuple[str, ...], x: Tensor) -> list[tuple[int, int]]:
    """Where the pieces of a stretch that are to be sweeps begin and end, by the position of their steps.

    Steps without a kernel, and weights that are better left to torch, are in none.
    """
    if x.device.type != "cpu" or x.dim() < 2 or x.dtype not in (torch.float32, torch.float64):
        return []
    layers = [part for part, rule in zip(parts, rules, strict=True) if rule == "linear"]
    if not (records(x, *(t for layer in layers for t in layer if t is not None)) and backends()["cpu"].active):
        return []
    many = torch.compiler.is_compiling() or math.prod(x.shape[:-1]) > _MANY  # in a graph N may be any
    large = many and any(weight.numel() > _LARGEST for weight, _ in layers)
    limit = _LARGEST if large and not sweeps_outrun_torch() else math.inf
    found, begin = [], 0
    for i in range(len(rules) + 1):
        if i < len(rules) and _is_swept(rules[i], parts[i], limit):
            continue
        while begin < i and rules[begin] != "linear":
            begin += 1
        end = i
        if end > begin and rules[end - 1] == "dropout" and rules[end - 2] in NOT_LAST:
            end -= 1
        if end > begin and rules[end - 1] in NOT_LAST:
            end -= 1
        weights = [part[0] for rule, part in zip(rules[begin:end], parts[begin:end], strict=True) if rule == "linear"]
        work = math.prod(x.shape[:-1]) * sum(weight.numel() for weight in weights)
        if len(weights) > 1 and (torch.compiler.is_compiling() or work >= LEAST_WORK):
            found.append((begin, end))
        begin = i + 1
    return found


def _is_swept(rule: str, part: tuple, limit: float) -> bool:
    if rule == "linear":
        return part[0].numel() <= limit
    if rule == "dropout":
        return isinstance(part[0], (int, float)) and 0 <= part[0] < 1
    return has_kernel(rule, part)


class RowSweep(NamedTuple):
    """The sweep of [..., h] as rows [M, h]."""

    value: Tensor
    rows: MLPSweep
    front: tuple[int, ...]  # whose product M is

    @property
    def shared(self) -> tuple[Tensor, ...]:
        return self.rows.shared

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T c."""
        if len(self.front) == 1:
            return self.rows.vjp(cotangent)
        return _shaped(self.rows.vjp(cotangent.reshape(self.rows.value.shape)), self.front)


def _shaped(rows: Tensor, front: tuple[int, ...]) -> Tensor:
    """[..., h] of rows [M, h]."""
    return rows if len(front) == 1 else rows.unflatten(0, front)


class SweptPerceptron(NamedTuple):
    """A piece that is a sweep, with its steps."""

    sweep: RowSweep
    rules: tuple[str, ...]
    parts: list[tuple]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each step's value."""
        found: list[tuple[int, ...]] = []
        for rule, part in zip(self.rules, self.parts, strict=True):
            found.append((*self.sweep.front, part[0].shape[0]) if rule == "linear" else found[-1])
        return found

    def saved(self) -> list[tuple]:
        """What each step's rule would have saved."""
        found: list[tuple] = []
        rows, front = self.sweep.rows, self.sweep.front
        hidden, masks = (iter([_shaped(t, front) for t in group]) for group in (rows.hidden, rows.masks))
        scales = iter(rows.constants.scales)
        with torch.inference_mode(False), torch.enable_grad():  # kept for others than who asks first
            for rule, part in zip(self.rules, self.parts, strict=True):
                if rule == "linear":
                    found.append(part[:1])
                elif rule != "dropout":
                    scale, key = next(scales), next(hidden)
                    dropped = scale and rule not in NOT_LAST  # where the mask is 0 anything will do
                    kept = (key / scale if dropped else key, *part)
                    found.append((*kept, True) if rule == "leaky_relu" else kept)
                else:
                    found.append((next(masks).to(key.dtype) * scale if scale else None,))
        return found


def sweep_of(parts: list[tuple], rules: tuple[str, ...], x: Tensor) -> SweptPerceptron | None:
    """The sweep of such a piece; None where its layers do not fit."""
    layers: list[tuple] = []
    kinds: list[int] = []
    slopes: list[float] = []
    dropout: list[float] = []
    for rule, part in zip(rules, parts, strict=True):
        if rule == "linear":
            layers.append(part)
        elif rule == "dropout":
            dropout[-1] = float(part[0])
        else:
            kinds.append(SWEEP_ACTIVATIONS.index(rule))
            slopes.append(float(part[0]) if rule == "leaky_relu" else 0.0)
            dropout.append(0.0)
    if not _fit(x, layers):
        return None
    weights, biases = zip(*layers, strict=True)
    rows = x if x.dim() == 2 else x.flatten(0, -2)
    sweep, front = unchecked_sweep(rows, weights, biases, kinds, slopes, dropout), tuple(x.shape[:-1])
    return SweptPerceptron(RowSweep(_shaped(sweep.value, front), sweep, front), rules, parts)


def _fit(x: Tensor, layers: list[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether the layers take x and one another; where they do not, the steps say so."""
    width = x.shape[-1]
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


def _weight_and_bias(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return weight, bias


def _probability(p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[float]:
    return (p if training else 0,)


def constants_of(kind: str, args: tuple, kwargs: dict) -> tuple:
    taken = enumerate(_CONSTANTS.get(kind, {}).items())
    return tuple(args[i] if i < len(args) else kwargs.get(name, default) for i, (name, default) in taken)


def has_kernel(kind: str, constants: tuple) -> bool:
    return constants[0] >= 0 if kind == "leaky_relu" else constants == tuple(_CONSTANTS.get(kind, {}).values())
