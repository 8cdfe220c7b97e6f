"""The plan of a network: its operations in order, in plain Python values, and when to make it again."""

from __future__ import annotations

import ctypes
import types
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .decompositions import DECOMPOSITIONS


class Ref(NamedTuple):
    """The value of an earlier step (or of the input, index 0) as an argument."""

    index: int


class Step(NamedTuple):
    """One operation. ``rule``: a rule's name, "fallback" (torch.func) or "evaluate" (independent of the input)."""

    name: str  # module path or operation name, as shown by Linearization.rules
    kind: str  # "module", "function", "method" or "attribute"
    target: Any  # module path, key of CALLS, method name or attribute path
    rule: str
    args: tuple
    kwargs: tuple[tuple[str, Any], ...]
    slots: tuple  # one index per operand that may depend on the input, -1 where it does not


class Module(NamedTuple):
    """What the plan took for granted about one module."""

    path: str
    kind: type
    training: bool
    children: tuple[str, ...]
    hooked: bool
    taken: Taken | None


class Taken(NamedTuple):
    """What Python control flow or constants of a traced forward may have used."""

    scalars: tuple[tuple[str, Any], ...]  # attributes
    functions: tuple[tuple[str, int], ...]  # attributes, keys of CALLS
    absent: tuple[str, ...]  # parameters that are None


class Stretch(NamedTuple):
    """Steps that can be one sweep: of a perceptron, see perceptron.py, or of a chain, see chain.py."""

    steps: tuple[int, ...]
    between: tuple[int, ...]  # others on the way, of no value in it: parameters that are read or computed


class Plan(NamedTuple):
    steps: tuple[Step, ...]
    output: Any  # Ref, or a tuple of such
    modules: tuple[Module, ...]
    names: tuple[tuple[str, str], ...]  # parameter name, the name under which named_parameters lists it (tied weights)
    perceptrons: tuple[Stretch, ...]
    chains: tuple[Stretch, ...]
    size: int  # numbers in all parameters


# Functions that steps call, or that modules hold, by id: torch.compile takes a plan's numbers and strings as constants
# only.
CALLS: dict[int, Callable[..., Any]] = {}
_PLANS: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()


def uses_of(steps: tuple[Step, ...], output: Any) -> Counter[int]:
    """How often each value is an argument, or part of the output."""
    return Counter(_refs((*((step.args, step.kwargs) for step in steps), output)))


def draws(step: Step) -> bool:
    """Whether a step without a rule may draw random numbers, as what computes a parameter can."""
    if step.kind == "attribute":
        return False
    if step.kind == "module":
        return True
    function = None if step.kind == "method" else CALLS[step.target]
    if getattr(function, "__module__", None) in ("_operator", "builtins"):
        return False
    packet = getattr(torch.ops.aten, step.target if function is None else function.__name__, None)
    if packet is None:
        return True
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, name).tags for name in packet.overloads())


def _refs(spec: Any) -> list[int]:
    if isinstance(spec, Ref):
        return [spec.index]
    if isinstance(spec, tuple):
        return [i for part in spec for i in _refs(part)]
    if isinstance(spec, slice):
        return _refs((spec.start, spec.stop, spec.step))
    return []


def submodule(net: nn.Module, path: str) -> nn.Module:
    """``net.get_submodule(path)``; while compiling in the form that torch.compile follows with guards."""
    module = net
    if path:
        compiling = torch.compiler.is_compiling()
        for name in path.split("."):
            module = getattr(module, name) if compiling else module._modules[name]
    return module


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says: by hooks, or by a forward of this very module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def scalars(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Plain attributes of a module that is traced, which become constants; torch.nn's others are read at every call."""
    if type(module).__module__.startswith("torch.nn") and type(module) not in DECOMPOSITIONS:
        return ()
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "training"
        and (value is None or isinstance(value, (bool, int, float, str)))
    )


def seen(path: str, module: nn.Module, traced: bool) -> Module:
    taken = _taken_from(module) if traced else None
    return Module(path, type(module), module.training, tuple(module._modules), hooked(module), taken)


def _taken_from(module: nn.Module) -> Taken | None:
    functions = {name: value for name, value in vars(module).items() if _global_function(value)}
    CALLS.update((id(function), function) for function in functions.values())
    absent = tuple(name for name, parameter in module._parameters.items() if parameter is None)
    taken = Taken(scalars(module), tuple((name, id(function)) for name, function in functions.items()), absent)
    return taken if any(taken) else None


def _global_function(value: Any) -> bool:
    """Alive anyway: a closure, a lambda's default or a bound method may hold the module itself."""
    if isinstance(value, types.FunctionType):
        return "<" not in value.__qualname__  # <locals>, <lambda>
    owners = (types.ModuleType, type, type(None))
    return isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, owners)


def holds(net: nn.Module, plan: Plan) -> bool:
    """Whether all that the plan took for granted is still so. Under torch.compile every look becomes a guard."""
    for known in plan.modules:
        module = submodule(net, known.path)
        if (
            type(module) is not known.kind
            or module.training != known.training
            or tuple(module._modules) != known.children
            or hooked(module) != known.hooked
        ):
            return False
        taken = known.taken
        if taken is None:
            continue
        for name, value in taken.scalars:
            if getattr(module, name) != value:
                return False
        for name, key in taken.functions:
            if getattr(module, name) is not CALLS[key]:
                return False
        for name in taken.absent:
            if getattr(module, name) is not None:
                return False
    return True


def plan_of(net: nn.Module) -> Plan:
    """The plan of ``net``; kept until train(), eval(), a replaced layer, a hook or a changed attribute."""
    return _plan_at(id(net)) if torch.compiler.is_compiling() else _plan_of(net)


@torch.compiler.assume_constant_result
def _plan_at(address: int) -> Plan:
    # By id, which dynamo guards: torch 2.10 takes no module as the argument of a constant's function.
    return _plan_of(ctypes.cast(address, ctypes.py_object).value)


def _plan_of(net: nn.Module) -> Plan:
    plan = _PLANS.get(net)
    if plan is None or not _still(net, plan):
        from .trace import make_plan

        plan = make_plan(net)
        _PLANS[net] = plan
    return plan


def forget_plans() -> None:
    """Every network is planned anew: for rules that were not there before."""
    _PLANS.clear()


def _still(net: nn.Module, plan: Plan) -> bool:
    try:
        return holds(net, plan)
    except (AttributeError, KeyError):  # a module or attribute is gone
        return False
