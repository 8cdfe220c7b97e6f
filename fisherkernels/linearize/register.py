"""Rules for a user's own layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .plan import forget_plans
from .rules import MODULES, RULES
from .rules.base import ElementwiseRule, Layer, Rule


def register_rule(layer: type[nn.Module], rule: Rule | type[Rule]) -> None:
    r"""Let :func:`linearize`, and with it every loss, metric and Laplacian, differentiate ``layer`` by ``rule``.

    The rule's ``forward(input, ...)`` takes the layer's input and then what it names: a parameter called ``weight``
    gets ``layer.weight``, read anew at every call. It returns the value and a tuple of what the products need;
    ``vjp(saved, cotangent, stacked, needs)`` and ``jvp(saved, tangents, stacked)`` apply :math:`J^T` and :math:`J`
    there. All are to be written in tensor operations that can be differentiated once, since their parameter gradient
    is what trains. ``stacked`` says that a dimension K of several vectors leads. ``curved(active)`` says whether the
    layer has second derivatives; if so, ``curvature(saved, tangents)`` sums them, :math:`\sum_k D^2 f[t_k, t_k]`. A
    function of every element by itself takes :class:`ElementwiseRule` instead, and defines ``forward`` and ``slopes``
    only. A layer that mixes the samples of a batch has to say so in ``couples_samples``.

    Counts for this very class, not for its subclasses, in every network linearised from now on; what torch.compile
    has compiled before keeps what it had. A second call for the same class replaces the first.

    Args:
        layer: a subclass of torch.nn.Module whose forward takes one tensor and returns one.
        rule: a :class:`Rule`, or a class of such without arguments.

    Raises:
        TypeError: ``layer`` is no class of modules, ``rule`` no rule, or one that does not define ``forward``, the
            products or ``curved``.

    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.ones(()))
    ...     def forward(self, x):
    ...         return self.weight * x
    >>> class ScaleRule(ElementwiseRule):
    ...     def forward(self, input, weight):
    ...         return weight * input, (input, weight)
    ...     def slopes(self, saved):
    ...         input, weight = saved
    ...         return weight.expand_as(input), torch.zeros_like(input)
    >>> register_rule(Scale, ScaleRule)
    >>> linearize(nn.Sequential(nn.Linear(3, 2), Scale()), torch.ones(1, 3)).rules
    {'0': 'linear', '1': 'ScaleRule'}
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"layer: expected a subclass of torch.nn.Module, received {_shown(layer)}")
    rule = rule() if isinstance(rule, type) and issubclass(rule, Rule) else rule
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fisherkernels.Rule, received {_shown(rule)}")
    base = ElementwiseRule if isinstance(rule, ElementwiseRule) else Rule
    wanted = ("forward", "slopes") if base is ElementwiseRule else ("forward", "vjp", "jvp", "curved")
    missing = [name for name in wanted if getattr(type(rule), name) is getattr(base, name)]
    if missing:
        raise TypeError(f"rule: expected {type(rule).__name__} to define {', '.join(missing)}")
    name = _free_name(rule)
    RULES[name] = rule
    MODULES[layer] = Layer(name, _attributes(rule))
    forget_plans()


def _attributes(rule: Rule) -> Callable[[nn.Module, Callable[[str], Any]], tuple]:
    """Reads from the module what the rule's forward names behind its input."""
    names = tuple(inspect.signature(rule.forward).parameters)[1:]

    def arguments(module: nn.Module, read: Callable[[str], Any]) -> tuple[Tensor | Any, ...]:
        return tuple(read(name) for name in names)

    return arguments


def _free_name(rule: Rule) -> str:
    """The class's name, with a number where another rule has it."""
    name, count = type(rule).__name__, 1
    while name in RULES and RULES[name] is not rule:
        count += 1
        name = f"{type(rule).__name__} {count}"
    return name


def _shown(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
