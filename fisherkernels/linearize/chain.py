"""Chains of a plan: steps one behind the other, with a norm or a curved activation among them, that are swept as one.

On a CPU in eager mode a chain's value and each of its vector-Jacobian products is one autograd node with its backward
written out (chain_nodes.py), made of pieces (chain_pieces.py): weights, a norm (BatchNorm of batch statistics,
GroupNorm, InstanceNorm) with the activation behind it in one kernel, other activations, and what is linear once it is
drawn or picked: reshapes, padding, resampling, pooling, dropout. Everywhere else, and for tangents and stacks, its
steps run one by one. Steps with other rules end a chain; one whose constants or sizes the kernels do not take is run by
itself, and what is behind it may be a chain again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisherkernels.ops._library import on_native_cpu
from fisherkernels.ops._mlp_plain import CURVED, SWEEP_ACTIVATIONS
from fisherkernels.transforms import for_graph, records

from .chain_nodes import Chain, ChainSweep, sweep
from .chain_pieces import Activation, Affine, BatchNorm, Move, Norm, Piece, Unfit, has_maps, pays
from .perceptron import constants_of, has_kernel
from .plan import Step, Stretch, draws, uses_of

_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
_TRANSPOSE = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_ARGUMENTS = {"linear": ("weight", "bias")}
_ARGUMENTS |= {f"conv{d}d": _CONV for d in (1, 2, 3)} | {f"conv_transpose{d}d": _TRANSPOSE for d in (1, 2, 3)}
_STATISTICS = ("running_mean", "running_var", "weight", "bias")
_NORMS = {
    "batch_norm": (*_STATISTICS, "training", "momentum", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": (*_STATISTICS, "use_input_stats", "momentum", "eps", "rank"),
}
_NORM_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
_MOVES = {"identity", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim"}
_MOVES |= {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "pad", "interpolate"}
_MOVES |= {"dropout", "dropout1d", "dropout2d", "dropout3d"}
_MOVES |= {f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg", "max", "adaptive_max") for d in (1, 2, 3)}
_RESHAPES = {"reshape", "flatten", "unflatten", "unsqueeze"}
_ROLES = dict.fromkeys(_ARGUMENTS, "weight") | dict.fromkeys(_NORMS, "norm")
_ROLES |= {SWEEP_ACTIVATIONS[i]: "curved" for i in CURVED}
LEAST_WORK = 2**19  # multiplications of a pass, at least, or 16 times the numbers that come in
_INSIDE = {*_ARGUMENTS, *_NORMS, *SWEEP_ACTIVATIONS, *_MOVES}


def chains_of(steps: tuple[Step, ...], output: Any, perceptrons: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """Every chain: it begins with a weight or a norm, has what kernels are for, and between weights not just moves."""
    uses = uses_of(steps, output)
    taken = {i for stretch in perceptrons for i in stretch.steps}
    found: list[list[int]] = []
    current: list[int] = []
    for i, step in enumerate(steps):
        if step.rule == "evaluate":
            if draws(step) and any(steps[j].rule.startswith("dropout") for j in current):
                found.append(current)
                current = []
            continue
        inside = step.rule in _INSIDE and i not in taken and len(step.slots) == 1
        inside = inside and not (step.rule in _NORMS and _of_features(steps, step.slots[0]))
        follows = bool(current) and step.slots == (current[-1] + 1,) and uses[current[-1] + 1] == 1
        if inside and follows and not (step.rule in _ARGUMENTS and _only_moves([steps[j].rule for j in current])):
            current.append(i)
            continue
        found.append(current)
        current = [i] if inside and (step.rule in _ARGUMENTS or step.rule in _NORMS) else []
    return tuple(_chain(steps, c) for c in (*found, current) if pays([_ROLES.get(steps[i].rule, "") for i in c]))


def _of_features(steps: tuple[Step, ...], value: int) -> bool:
    """Whether a value will be features [N, C], of which norms have no kernel: the guess, not more, spares attempts."""
    while value > 0:
        step = steps[value - 1]
        if step.rule == "flatten":
            return (*step.args[1:], *(part for key, part in step.kwargs if key == "start_dim"))[:1] in ((), (1,))
        if step.rule in _ARGUMENTS or step.rule in _RESHAPES:
            return step.rule == "linear"
        if step.rule not in _INSIDE or len(step.slots) != 1:
            return False
        value = step.slots[0]
    return False


def _only_moves(before: list[str]) -> bool:
    """Whether only moves are behind the last weight."""
    weights = [i for i, rule in enumerate(before) if rule in _ARGUMENTS]
    return bool(weights) and all(rule in _MOVES for rule in before[weights[-1] + 1 :])


def _chain(steps: tuple[Step, ...], found: list[int]) -> Stretch:
    while steps[found[-1]].rule in _MOVES:
        found = found[:-1]
    between = tuple(i for i in range(found[0], found[-1]) if i not in found)
    return Stretch(tuple(found), between)


def begins(rule: str, x: Tensor) -> bool:
    """Whether a chain that is swept can begin with this step of one that was planned."""
    return rule in _ARGUMENTS or (rule in _NORMS and has_maps(x))


class SweptChain:
    """A chain that was swept, as far as it could be, and what each of its steps' rules would have saved."""

    def __init__(self, rules: tuple[str, ...], calls: list[tuple[tuple, dict]]):
        self.rules, self.calls = rules, calls
        self.pieces: list[Piece] = []
        self.slots: list[tuple[int, ...]] = []
        self.parameters: list[Tensor] = []
        self.chain: Chain | None = None
        self.sweep: ChainSweep | None = None

    def run(self, x: Tensor) -> int | None:
        """How many of its steps were swept, from the first on; None where those behind need not be tried either."""
        if not (on_native_cpu(x) and torch.is_grad_enabled()):
            return None
        self._build()
        if not (pays([piece.role for piece in self.pieces]) and self._fit(x) and records(x, *self.parameters)):
            return 0
        if not self._is_large(x):
            return None
        self.chain = Chain(self.pieces, self.slots)
        try:
            self.sweep = sweep(self.chain, x, self.parameters)
        except Unfit:
            return 0
        for piece in self.pieces:
            if isinstance(piece, Norm):
                piece.update()
        return len(self.shapes)

    def _is_large(self, x: Tensor) -> bool:
        """Whether a step is long enough for what the kernels spare to make up for the nodes' own time: always with
        GroupNorm, from about 10 ms on with curved activations, from 20 ms on with BatchNorm alone.
        """
        if any(isinstance(piece, Norm) and not piece.of_batch for piece in self.pieces):
            return True
        roles = [piece.role for piece in self.pieces if not isinstance(piece, Norm) or piece.kind in CURVED]
        work = max(16 * x.numel(), math.prod(x.shape[:1]) * sum(t.numel() for t in self.parameters))
        return work >= (1 if pays(roles) else 4) * LEAST_WORK

    def _build(self) -> None:
        """Pieces up to the first step that has none."""
        at = 0
        while at < len(self.rules):
            rule, (args, kwargs) = self.rules[at], self.calls[at]
            if rule in _ARGUMENTS:
                options = dict(zip(_ARGUMENTS[rule], args, strict=False)) | kwargs
                if isinstance(options.get("padding"), str) or options.get("padding_mode", "zeros") != "zeros":
                    return
                weight, bias = options.pop("weight"), options.pop("bias", None)
                self._add(Affine(rule, options), weight, bias)
            elif rule in _NORMS:
                found = norm_at(self.rules, self.calls, at)
                if found is None:
                    return
                self._add(*found)
                at += found[0].steps - 1
            elif rule in SWEEP_ACTIVATIONS:
                constants = constants_of(rule, args, kwargs)
                if not has_kernel(rule, constants):
                    return
                self._add(Activation(rule, constants))
            elif rule == "pad" and not linear_pad(*args, **kwargs):
                return
            else:
                self._add(Move(rule, args, kwargs))
            at += 1

    def _add(self, piece: Piece, *parameters: Tensor | None) -> None:
        self.pieces.append(piece)
        slots = []
        for parameter in parameters:
            slots.append(-1 if parameter is None else len(self.parameters))
            if parameter is not None:
                self.parameters.append(parameter)
        self.slots.append(tuple(slots))

    def _fit(self, x: Tensor) -> bool:
        given = (x, *self.parameters)
        return all(t.dtype is x.dtype and t.device == x.device and not _channels_last(t) for t in given)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each swept step's value."""
        return [piece.shape for piece in self.pieces for _ in range(piece.steps)]

    def saved(self) -> list[tuple]:
        """What each swept step's rule would have saved."""
        found: list[tuple] = []
        keys, flat = iter(self.sweep.shared), [*self.parameters, *self.sweep.constants]
        with torch.inference_mode(False), torch.enable_grad():  # kept for others than who asks first
            for i, piece in enumerate(self.pieces):
                key = next(keys) if piece.keyed else None
                found += piece.saved_by_rules(key, *self.chain.parameters(i, flat))
        return found


class NormSweep(NamedTuple):
    """A norm and the activation behind it where torch.compile makes a graph."""

    value: Tensor
    norm: Norm
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @property
    def sweep(self) -> NormSweep:
        return self

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each step's value."""
        return [self.norm.shape] * self.norm.steps

    @property
    def shared(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.x, self.weight, self.bias) if t is not None)

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T c."""
        return self.norm.pull(cotangent, self.x, self.weight, self.bias)

    def saved(self) -> list[tuple]:
        """What each step's rule would have saved."""
        return self.norm.saved_by_rules(self.x, self.weight, self.bias)


def norm_in_graph(rules: tuple[str, ...], calls: list[tuple[tuple, dict]], at: int, x: Tensor) -> NormSweep | None:
    """The norm at a position of a chain, where its operators are for graphs too; None where there is none."""
    if rules[at] not in _NORMS or not (on_native_cpu(x) and for_graph() and has_maps(x)):
        return None
    found = norm_at(rules, calls, at)
    if found is None:
        return None
    norm, weight, bias = found
    given = [t for t in (weight, bias) if t is not None]
    if not (records(x, *given) and norm.fits(x, weight, bias) and all(t.dtype is x.dtype for t in given)):
        return None
    value = norm.value(x, weight, bias)[0]
    norm.shape = tuple(value.shape)
    norm.update()
    return NormSweep(value, norm, x, weight, bias)


def norm_at(
    rules: tuple[str, ...], calls: list[tuple[tuple, dict]], at: int
) -> tuple[Norm, Tensor | None, Tensor | None] | None:
    """The norm at a position and its parameters; None for BatchNorm in eval mode and for less than one group."""
    rule, (args, kwargs) = rules[at], calls[at]
    options = _NORM_DEFAULTS | dict(zip(_NORMS[rule], args, strict=False)) | kwargs
    groups = options.get("num_groups")
    if (rule == "batch_norm" and not options["training"]) or (groups is not None and groups < 1):
        return None
    behind, constants = rules[at + 1] if at + 1 < len(rules) else "", ()
    if behind in SWEEP_ACTIVATIONS:
        constants = constants_of(behind, *calls[at + 1])
        behind = behind if has_kernel(behind, constants) else ""
    else:
        behind = ""
    if rule == "batch_norm":
        norm: Norm = BatchNorm(options, behind, constants)
    else:
        norm = Norm(groups, options["eps"], behind, constants, options.get("rank"))
    return norm, options["weight"], options["bias"]


def linear_pad(pad: Any, mode: str = "constant", value: float | None = None) -> bool:
    """Whether what is added is 0, or of the input."""
    return mode != "constant" or not value


def _channels_last(t: Tensor) -> bool:
    """Torch's own kernels keep this order; ours would not."""
    return t.dim() > 3 and t.stride(1) == 1 and not t.is_contiguous()
