"""Pieces of a chain, each with its value, its product, and the backward pass of both, on tensors without a graph.

``value(x, *p)`` gives (y, key): what derivatives follow from, None where that is no tensor. ``pull(c, key, *p)`` is
J^T c. Backward of a product with the cotangent c, for the tangent t of its result, is ``push(t, c, key, *p)``: J t, the
gradients of key and parameters, and J^T c again. Backward of the value, for its gradient g, is
``gradient(g, more, key, value, *p)``: J^T g plus the key's own gradient ``more``, y again if wanted, and the gradients
of the parameters. Weights' gradients are outer products, :meth:`Affine.weight_gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._autograd import below_autograd
from fisherkernels.ops._mlp_plain import CURVED, KEEP_INPUT, SWEEP_ACTIVATIONS, activated, scaled
from fisherkernels.ops._norm_plain import IDENTITY, normalised, plain_pull, plain_value

from .rules import RULES

opset = torch.ops.fisherkernels
SMALLEST_MAP = 16  # numbers of a map: in smaller ones a group's channels, with weights of their own, are slow


def number_and_slope(rule: str, constants: tuple) -> tuple[int, float]:
    """An activation as the kernels take it."""
    return SWEEP_ACTIVATIONS.index(rule), float(constants[0]) if rule == "leaky_relu" else 0.0


def run(op: Any, *args: Any) -> Any:
    """An operator's results: in a node's own passes past the Autograd kernel, which would record nothing there."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    return below_autograd(op, *args)


class Unfit(Exception):
    """A piece meets what it was not made for; its step and those behind it run one by one instead."""


def has_maps(x: Tensor) -> bool:
    """Whether the norms' kernels are made for x: [N, C, ...] with more than one number per sample and channel."""
    return x.dim() > 2 and x.is_contiguous() and math.prod(x.shape[2:]) > 1 and x.shape[0] > 0


class Piece:
    """``role``: "weight", "norm", "curved" or none of these. ``keyed``: a key is kept; ``by_value``: it is y.
    ``steps``: how many of the plan it is; ``shape``: of y.
    """

    role = ""
    keyed = by_value = False
    steps = 1
    shape: tuple[int, ...] = ()
    draws = False  # random numbers, for its value


def pays(roles: Sequence[str]) -> bool:
    """Whether kernels spare passes over memory: with a norm, or a curved activation in front of a weight."""
    last = max((i for i, role in enumerate(roles) if role == "weight"), default=0)
    return any(role == "norm" or (role == "curved" and i < last) for i, role in enumerate(roles))


class Affine(Piece):
    """Linear, or a convolution: y = J x + b."""

    role = "weight"

    def __init__(self, rule: str, options: dict[str, Any]):
        self.rule, self.options = RULES[rule], options
        self.dims = 0 if rule == "linear" else int(rule[-2])
        self.transposed = "transpose" in rule
        self.saved: Sequence[Any] = ()  # of the rule, behind the weight

    def value(self, x: Tensor, weight: Tensor, bias: Tensor | None):
        if x.dim() < 2 or self.dims not in (0, x.dim() - 2):
            raise Unfit
        y, (_, *self.saved) = self.rule.forward(x, weight, bias, **self.options)
        return y, None

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None):
        return self.rule.forward(x, weight, bias, **self.options)[0], None

    def pull(self, c: Tensor, key: None, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.rule.vjp((weight, *self.saved), c, False, (True,))[0]

    def push(self, t: Tensor, weight: Tensor) -> Tensor:
        return self.rule.jvp((weight, *self.saved), (t,), False)

    def weight_gradient(self, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """Of sum(g (J x)), or of a product's sum(x (J^T g))."""
        if not self.dims:
            return g.flatten(0, -2).t() @ x.flatten(0, -2)
        if self.transposed:
            stride, padding, output_padding, groups, dilation, _ = self.saved
        else:
            stride, padding, dilation, groups, *_ = self.saved
            output_padding = 0
        each = ([given] * self.dims if isinstance(given, int) else given for given in (stride, padding, dilation))
        added = [output_padding] * self.dims if isinstance(output_padding, int) else output_padding
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *each, self.transposed, added, groups, mask)[1]

    def saved_by_rules(self, key: None, weight: Tensor, bias: Tensor | None) -> list[tuple]:
        return [(weight, *self.saved)]

    def bias_gradient(self, g: Tensor) -> Tensor:
        channels = 1 if self.dims else g.dim() - 1
        return g.sum([d for d in range(g.dim()) if d != channels])


class Move(Piece):
    """What is linear, once a mask is drawn or maxima are picked: its ``constants``, which are saved by the nodes and
    counted with the parameters.
    """

    def __init__(self, rule: str, args: tuple, kwargs: dict):
        self.rule, self.args, self.kwargs = RULES[rule], args, kwargs
        self.draws = rule.startswith("dropout")
        self.saved: tuple = ()  # by the rule, None for tensors
        self.constants: list[Tensor] = []

    def value(self, x: Tensor):
        y, saved = self.rule.forward(x, *self.args, **self.kwargs)
        self.constants = [part for part in saved if isinstance(part, Tensor)]
        self.saved = tuple(None if isinstance(part, Tensor) else part for part in saved)
        self.places = [i for i, part in enumerate(saved) if isinstance(part, Tensor)]
        return y, None

    def give_up_constants(self) -> list[Tensor]:
        given, self.constants = self.constants, []
        return given

    def plain(self, x: Tensor, *constants: Tensor):
        return self.push(x, *constants), None

    def pull(self, c: Tensor, key: None, *constants: Tensor) -> Tensor:
        return self.rule.vjp(self._saved(constants), c, False, (True,))[0]

    def push(self, t: Tensor, *constants: Tensor) -> Tensor:
        return self.rule.jvp(self._saved(constants), (t,), False)

    def saved_by_rules(self, key: None, *constants: Tensor) -> list[tuple]:
        return [self._saved(constants)]

    def _saved(self, constants: Sequence[Tensor]) -> tuple:
        if not constants:
            return self.saved
        saved = list(self.saved)
        for i, constant in zip(self.places, constants, strict=True):
            saved[i] = constant
        return tuple(saved)


class Activation(Piece):
    """An activation behind anything but a norm."""

    keyed = True

    def __init__(self, rule: str, constants: tuple):
        self.kind, self.slope = number_and_slope(rule, constants)
        self.constants = constants
        self.by_value = self.kind not in KEEP_INPUT
        self.role = "curved" if self.kind in CURVED else ""

    def value(self, x: Tensor):
        y = run(opset.activation_value.default, x, self.kind, self.slope)
        return y, y if self.by_value else x

    def plain(self, x: Tensor):
        y = activated(x, self.kind, self.slope)
        return y, y if self.by_value else x

    def pull(self, c: Tensor, key: Tensor) -> Tensor:
        return run(opset.activation_pull.default, c, None, key, self.kind, self.slope, False)[0]

    def plain_pull(self, c: Tensor, key: Tensor) -> Tensor:
        return scaled(c, key, self.kind, self.slope)

    def saved_by_rules(self, key: Tensor) -> list[tuple]:
        end = (True,) if self.kind == SWEEP_ACTIVATIONS.index("leaky_relu") else ()  # the key is the value
        return [(key, *self.constants, *end)]

    def push(self, t: Tensor, c: Tensor, key: Tensor):
        to_c, to_key, again = run(opset.activation_pull_backward.default, t, c, key, self.kind, self.slope)
        return to_c, to_key if self.role else None, again, ()

    def gradient(self, g: Tensor | None, more: Tensor | None, key: Tensor, value: bool):
        value = value and not self.by_value
        if g is None and self.by_value:
            g, more = more, None
        if g is None:
            pulled, y = more, run(opset.activation_value.default, key, self.kind, self.slope) if value else None
        else:
            pulled, y = run(opset.activation_pull.default, g, more, key, self.kind, self.slope, value)
        return pulled, key if self.by_value else y, ()


class Norm(Piece):
    """A norm, and the activation behind it, if any. The key is the input.

    ``groups``: 0 for BatchNorm with batch statistics, None for a group of every channel. ``rank``: of the input, if it
    is known.
    """

    role = "norm"
    keyed = True

    def __init__(self, groups: int | None, eps: float, behind: str, constants: tuple, rank: int | None = None):
        self.every, self.groups = groups is None, groups or 0
        self.eps, self.rank = eps, rank
        self.behind, self.constants = behind, constants
        self.kind, self.slope = number_and_slope(behind, constants) if behind else (IDENTITY, 0.0)
        self.steps = 2 if behind else 1
        self.mean = self.rstd = self.variance = None

    @property
    def of_batch(self) -> bool:
        return not (self.every or self.groups)

    def fits(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
        """Whether there is a number for each channel, as many channels in each group, and maps that are not tiny."""
        channels = x.shape[1]
        each = all(t is None or t.shape == x.shape[1:2] for t in (weight, bias))
        whole = self.every or self.of_batch or (channels > 0 and channels % self.groups == 0)
        wide = self.of_batch or math.prod(x.shape[2:]) >= SMALLEST_MAP
        return each and whole and wide and self.rank in (None, x.dim())

    def value(self, x: Tensor, weight: Tensor | None, bias: Tensor | None):
        if not (has_maps(x) and self.fits(x, weight, bias)):
            raise Unfit
        self.groups = x.shape[1] if self.every else self.groups
        y, self.mean, self.rstd, self.variance = run(
            opset.norm_value.default, x, weight, bias, self.groups, self.eps, self.kind, self.slope
        )
        return y, x

    def plain(self, x: Tensor, weight: Tensor | None, bias: Tensor | None):
        return plain_value(x, weight, bias, self.groups, self.eps, self.kind, self.slope), x

    def plain_pull(self, c: Tensor, key: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return plain_pull(c, key, weight, bias, self.rstd, self.groups, self.kind, self.slope)

    def pull(self, c: Tensor, key: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return self._pull(c, None, key, False, weight, bias)[0]

    def push(self, t: Tensor, c: Tensor, key: Tensor, weight: Tensor | None, bias: Tensor | None):
        constants = self.mean, self.rstd, self.groups, self.kind, self.slope
        to_c, to_key, again, *to_parameters = run(
            opset.norm_pull_backward.default, t, c, key, weight, bias, *constants
        )
        return to_c, to_key, again, to_parameters

    def gradient(self, g: Tensor | None, more: Tensor | None, key: Tensor, value: bool, weight, bias):
        if g is None:
            return more, None, (None, None)
        to_key, y, *to_parameters = self._pull(g, more, key, value, weight, bias)
        return to_key, y, to_parameters

    def _pull(self, c, more, key, value, weight, bias):
        constants = self.mean, self.rstd, self.groups, self.kind, self.slope
        return run(opset.norm_pull.default, c, more, key, weight, bias, *constants, value)

    def saved_by_rules(self, key: Tensor, weight: Tensor | None, bias: Tensor | None) -> list[tuple]:
        found = [self._saved_by_norm(key, weight)]
        if self.behind:
            found.append(RULES[self.behind].forward(self._normalised(key, weight, bias), *self.constants)[1])
        return found

    def _normalised(self, key: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(key, self.groups, weight, bias, self.eps)

    def _saved_by_norm(self, key: Tensor, weight: Tensor | None) -> tuple:
        return key.flatten(2), weight, self.mean, self.rstd, key.dtype, key.dtype

    def update(self) -> None:
        """Running statistics, of a norm that has them."""


class BatchNorm(Norm):
    """With batch statistics, and running ones beside them."""

    def __init__(self, options: dict[str, Any], behind: str, constants: tuple):
        super().__init__(0, options["eps"], behind, constants)
        self.momentum = options["momentum"]
        self.running_mean, self.running_var = options["running_mean"], options["running_var"]

    def fits(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
        running = (self.running_mean, self.running_var)
        return all(t is None or t.shape == x.shape[1:2] for t in running) and super().fits(x, weight, bias)

    def _normalised(self, key: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:  # F.batch_norm loses a second derivative there
            return normalised(key, weight, bias, 0, self.eps)
        return F.batch_norm(key, None, None, weight, bias, True, 0.0, self.eps)

    def _saved_by_norm(self, key: Tensor, weight: Tensor | None) -> tuple:
        return key, weight, self.mean, self.rstd, self.eps

    def update(self) -> None:
        """As torch keeps them: the variance unbiased."""
        with torch.no_grad():
            if self.running_mean is not None:
                self.running_mean.mul_(1 - self.momentum).add_(self.mean, alpha=self.momentum)
            if self.running_var is not None:
                count = math.prod(self.shape) // self.shape[1]
                unbiased = self.variance * (count / (count - 1))
                self.running_var.mul_(1 - self.momentum).add_(unbiased, alpha=self.momentum)
