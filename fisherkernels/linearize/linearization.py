"""The value of a network at a point and its linear map there, computed forward by explicit rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .chain import NormSweep, SweptChain, begins, norm_in_graph
from .coupling import coupled_steps, train_mode_batch_norm
from .fallback import Fallback, module_function, store_buffers
from .jacobian import all_tangents, jacobian_of
from .last_linear import LastLinear, last_linear
from .perceptron import SweptPerceptron, parts_of, pieces_of, sweep_of
from .plan import CALLS, Plan, Ref, Step, Stretch, holds, plan_of, submodule
from .relu_chain import ReluChain, relu_chain
from .rules import MODULES, RULES
from .walk import Record, add, pull, push, shape_of
from .work import Work, work_of
from .wrappers import refuse_distributed, synchronised_batch_norm

_FALLBACK_NAME = "fallback (torch.func)"


def linearize(
    net: nn.Module, x: Tensor, *, parameters: dict[str, Tensor] | None = None, batch_statistics: str = "batch"
) -> Linearization:
    """Evaluate ``net`` at ``x`` once and keep its Jacobian J = d net / d x there as a linear map.

    The map is computed by one explicit rule per layer in ordinary tensor operations, so that whatever is built
    from ``value``, ``vjp`` and ``jvp`` trains with a single first-order ``backward()``: no double backward, and
    one graph for torch.compile. Layers without a rule are differentiated by ``torch.func``; a warning names them
    and ``rules`` shows them.

    Args:
        net: any module whose forward takes one tensor and returns a tensor or a tuple of tensors. Its train/eval
            mode counts: dropout masks are drawn once, running statistics are updated once.
        x: [N, ...] floating point.
        parameters: tensors that stand in for the module's own, by their names in ``net.named_parameters()``; the
            rest stay.
        batch_statistics: "batch": BatchNorm in train mode couples the samples, and ``vjp`` is what ``autograd.grad``
            of the batch sum gives. "frozen": the batch statistics count as constants of the linear map; the value
            and its own gradient are the same.

    Returns:
        A :class:`Linearization`.

    Raises:
        TypeError: ``net`` is no module or a DDP/FSDP wrapper, or ``x`` no floating point tensor.
        ValueError: an unknown ``batch_statistics`` or parameter name, a parameter of another shape, or frozen
            statistics in a layer that no rule covers.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> x, c = torch.randn(5, 3), torch.randn(5, 2)
        >>> lin = linearize(net, x)
        >>> torch.allclose(lin.vjp(c), torch.func.vjp(net, x)[1](c)[0], atol=1e-6)
        True
    """
    return _linearize(net, x, parameters, batch_statistics, True)


def linearize_for_stacks(net: nn.Module, x: Tensor, *, batch_statistics: str = "batch") -> Linearization:
    """:func:`linearize` for who wants tangents, or stacks: no chain is swept, whose steps would be asked for next."""
    return _linearize(net, x, None, batch_statistics, False)


def _linearize(
    net: nn.Module, x: Tensor, parameters: dict[str, Tensor] | None, batch_statistics: str, chains: bool
) -> Linearization:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    refuse_distributed(net, "net")
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating point tensor, got {x.dtype}; scale integer images to floats first")
    if batch_statistics not in ("batch", "frozen"):
        raise ValueError(f'batch_statistics: expected "batch" or "frozen", got {batch_statistics!r}')
    plan = plan_of(net)
    if torch.compiler.is_compiling():
        holds(net, plan)  # each look becomes a guard: train(), eval() or a changed layer compiles anew
    return Linearization(net, x, plan, parameters, batch_statistics == "frozen", chains)


class Linearization:
    """``value``, and the linear map there; made by :func:`linearize`.

    Attributes:
        value: net(x), a tensor or a tuple of tensors.
        rules: module path or operation name -> the rule that differentiates it, or "fallback (torch.func)".
    """

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        plan: Plan,
        parameters: dict[str, Tensor] | None = None,
        frozen: bool = False,
        chains: bool = True,
    ):
        self._net, self._plan, self._frozen = net, plan, frozen
        self._parameters = _checked(net, parameters)
        self._canonical = dict(plan.names) if self._parameters else {}
        self._input = x
        self._coupled: tuple[str, ...] | None = None
        count = len(plan.steps)
        values: list[Any] = [x, *[None] * count]
        batch = x.shape[0] if x.dim() else 1
        self._folded = Record(plan.steps, [None] * count, [shape_of(x), *[None] * count], batch, {}, {})
        runs = dict.fromkeys(plan.perceptrons, self._run_perceptron)
        if chains and not frozen:
            runs |= dict.fromkeys(plan.chains, self._run_chain)
        stretches = {stretch.steps[0]: stretch for stretch in runs}
        inside = {i for stretch in runs for i in (*stretch.steps, *stretch.between)}
        for i in range(count):
            if i in stretches:
                runs[stretches[i]](stretches[i], values)
            elif i not in inside:
                self._run(i, values)
        self.value = _checked_value(net, _resolve(plan.output, values))
        self._whole = isinstance(plan.output, Ref) and not isinstance(self.value, Tensor)  # a tuple made by one step

    @property
    def _record(self) -> Record:
        """With what every step saved, also in chains."""
        self._folded.unfold()
        return self._folded

    @property
    def rules(self) -> dict[str, str]:
        return {
            self._name(step): _FALLBACK_NAME if step.rule == "fallback" else step.rule
            for step in self._plan.steps
            if any(slot >= 0 for slot in step.slots)
        }

    def vjp(self, cotangent: Tensor | tuple[Tensor, ...]) -> Tensor:
        """J^T c, shape of x; [K, *x.shape] for a stack c [K, *value.shape].

        Where the value is a tuple, c is a tuple of tensors shaped as its parts, or of stacks.

        Raises:
            TypeError: not a tensor (a tuple of tensors where the value is one).
            ValueError: the shape is neither the value's nor a stack of it.
        """
        stacked = _stacked("cotangent", cotangent, self.value)
        cotangents: list[Any] = [None] * (len(self._plan.steps) + 1)
        self._seed(cotangents, cotangent)
        pulled = pull(self._folded, cotangents, stacked)
        if pulled is None:
            given = cotangent if isinstance(cotangent, Tensor) else cotangent[0]
            return self._input.new_zeros(((given.shape[0],) if stacked else ()) + tuple(self._input.shape))
        return pulled

    def jvp(self, tangent: Tensor) -> Tensor | tuple[Tensor, ...]:
        """J t, shape of value; [K, *value.shape] for a stack t [K, *x.shape].

        Raises:
            TypeError: not a tensor.
            ValueError: the shape is neither x's nor a stack of it.
        """
        stacked = _stacked("tangent", tangent, self._input)
        front = (tangent.shape[0],) if stacked else ()
        output, value = self._plan.output, self.value
        single = isinstance(output, Ref)
        refs, values = ((output,), (value,)) if single else (output, value)
        pushed = push(self._record, tangent, stacked, tuple(ref.index for ref in refs))
        parts = tuple(v.new_zeros((*front, *v.shape)) if t is None else t for t, v in zip(pushed, values, strict=True))
        return parts[0] if single else parts

    @property
    def coupled(self) -> tuple[str, ...]:
        """Names of the steps that make a sample's value depend on other samples of the batch, () if there are none.

        There J mixes samples: a stack of tangents is no stack of per-sample Jacobian columns. BatchNorm with batch
        statistics is known by its rule. Where layers without a rule (or shapes that do not lead with N) leave it
        open, two vector-Jacobian products of part of the batch show it, outside torch.compile.
        """
        if self._coupled is None:
            self._coupled = coupled_steps(self)
        return self._coupled

    def jacobian(self, *, memory_budget: float = 2**30) -> Tensor:
        """J per sample, [N, out, in]: value and x flattened behind their first dimension.

        Built from tangents where in <= out, else from cotangents, so many at a time that what they hold at once
        beside the result stays under the budget, one at least. A graph for backward keeps more. The result may be
        strided, and share memory between samples where J does not depend on them.

        Args:
            memory_budget: bytes.

        Raises:
            TypeError: ``memory_budget`` is no number.
            ValueError: it is not positive, the value is a tuple or not [N, ...], or ``coupled`` is not empty (BatchNorm
                in train mode, unless the linearisation was made with ``batch_statistics="frozen"``).
        """
        return jacobian_of(self, memory_budget)

    def tangents(self) -> Tensor:
        """J's columns, the tangents of x's dimensions: a stack [d, N, *value.shape[1:]] for x [N, d].

        Through the leading layers whose Jacobian is the same for every sample (Linear, convolutions, reshapes) the
        basis goes once, as [d, 1, ...]. The result may share memory between samples (strides of 0).

        Raises:
            ValueError: x is not [N, d], the value no single tensor [N, ...], or ``coupled`` is not empty.
        """
        return all_tangents(self)

    def last_linear(self) -> LastLinear | None:
        """Where the value is the output W h + b of a Linear layer, reshaped at most: W and the map from x to h.

        J = W T then, T the Jacobian of h [N, h]; None where anything else comes last.
        """
        return last_linear(self)

    def relu_chain(self) -> ReluChain | None:
        """Where the network is Linear, ReLU, ..., Linear, with reshapes at most between them: its weights and units."""
        return relu_chain(self)

    def work(self) -> Work:
        """What one Jacobian-vector product costs per sample."""
        return work_of(self)

    def _run(self, i: int, values: list[Any], call: tuple[tuple, dict] | None = None) -> None:
        """The value of step i and what its products need; ``call``: what its rule takes behind its input, if known."""
        step = self._plan.steps[i]
        args = _resolve(step.args, values)
        kwargs = {key: _resolve(part, values) for key, part in step.kwargs}
        saved: Any = None
        if step.rule == "evaluate":
            value = self._evaluate(step, args, kwargs)
        elif step.rule == "fallback":
            value, saved = self._fall_back(step, values)
        elif step.rule == "slice" and isinstance(args[0], (tuple, list)):
            value, saved = args[0][args[1]], ("item", args[1], len(args[0]))
        else:
            rule = RULES[step.rule]
            args, kwargs = (args + self._attributes(step), kwargs) if call is None else (args[:1] + call[0], call[1])
            if rule.uses_batch_statistics:
                kwargs = {**kwargs, "frozen": self._frozen}
            value, kept = rule.forward(*args, **kwargs)
            saved = ("rule", kept)
        values[i + 1], self._folded.saved[i], self._folded.shapes[i + 1] = value, saved, shape_of(value)

    def _attributes(self, step: Step) -> tuple:
        """A module's own arguments of its rule, which follow its input."""
        if step.kind != "module":
            return ()
        module = submodule(self._net, step.target)
        return tuple(MODULES[type(module)].arguments(module, self._reader(step.target, module)))

    def _calls(self, stretch: Stretch, values: list[Any]) -> list[tuple[tuple, dict]]:
        """What each step's rule takes behind its input; the steps of none between, which it may need, run."""
        for i in stretch.between:
            self._run(i, values)
        calls = []
        for i in stretch.steps:
            step = self._plan.steps[i]
            kwargs = {key: _resolve(part, values) for key, part in step.kwargs}
            calls.append((_resolve(step.args[1:], values) + self._attributes(step), kwargs))
        return calls

    def _run_perceptron(self, stretch: Stretch, values: list[Any]) -> None:
        """In sweeps where that can be."""
        calls, steps = self._calls(stretch, values), self._plan.steps
        rules = tuple(steps[i].rule for i in stretch.steps)
        parts = parts_of(calls, rules)
        x, at = values[steps[stretch.steps[0]].slots[0]], 0
        for begin, end in pieces_of(parts, rules, x):
            for i in stretch.steps[at:begin]:
                self._run(i, values)
            found = stretch.steps[begin:end]
            swept = sweep_of(parts[begin:end], rules[begin:end], values[steps[found[0]].slots[0]])
            at = begin if swept is None else end
            if swept is not None:
                self._keep(swept, found, values)
        for i in stretch.steps[at:]:
            self._run(i, values)

    def _run_chain(self, stretch: Stretch, values: list[Any]) -> None:
        """As one, or in as few as can be."""
        calls, steps = self._calls(stretch, values), self._plan.steps
        rules = tuple(steps[i].rule for i in stretch.steps)
        if torch.compiler.is_compiling():
            return self._run_for_graph(stretch, rules, calls, values)
        at, hopeful = 0, True
        while at < len(rules):
            i = stretch.steps[at]
            x = values[steps[i].slots[0]]
            count = None
            if hopeful and begins(rules[at], x):
                chain = SweptChain(rules[at:], calls[at:])
                count = chain.run(x)
                hopeful = count is not None
            if not count:
                self._run(i, values, calls[at])
                at += 1
                continue
            self._keep(chain, stretch.steps[at : at + count], values)
            at += count

    def _keep(self, found: SweptChain | SweptPerceptron | NormSweep, swept: tuple[int, ...], values: list[Any]) -> None:
        """The value and the products of these steps."""
        last = swept[-1]
        for i, shape in zip(swept, found.shapes, strict=True):
            self._folded.shapes[i + 1] = shape
        self._folded.sweeps[last], self._folded.folded[last] = (swept[0], found.sweep), (swept, found.saved)
        values[last + 1] = found.sweep.value

    def _run_for_graph(
        self, stretch: Stretch, rules: tuple[str, ...], calls: list[tuple[tuple, dict]], values: list[Any]
    ) -> None:
        """Step by step, but for a norm and the activation behind it."""
        at = 0
        while at < len(rules):
            i = stretch.steps[at]
            x = values[self._plan.steps[i].slots[0]]
            sweep = norm_in_graph(rules, calls, at, x)
            if sweep is None:
                self._run(i, values, calls[at])
                at += 1
                continue
            self._keep(sweep, stretch.steps[at : at + sweep.norm.steps], values)
            at += sweep.norm.steps

    def _evaluate(self, step: Step, args: tuple, kwargs: dict) -> Any:
        """A step whose result does not depend on the input, or carries no derivative of it."""
        if step.kind == "attribute":
            path, _, name = step.target.rpartition(".")
            return self._reader(path, submodule(self._net, path))(name)
        if step.kind == "module":
            module = submodule(self._net, step.target)
            return torch.func.functional_call(module, self._parameters_of(step.target), args, kwargs)
        if step.kind == "method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        return CALLS[step.target](*args, **kwargs)

    def _fall_back(self, step: Step, values: list[Any]) -> tuple[Any, Fallback]:
        slots = tuple(dict.fromkeys(step.slots))
        module = submodule(self._net, step.target) if step.kind == "module" else None
        if module is not None:
            self._refuse_frozen(module, step)
            self._refuse_synchronised(module, step)
            function = module_function(module, self._parameters_of(step.target))
        elif step.kind == "method":
            function = _with_aux(lambda first, *rest, **options: getattr(first, step.target)(*rest, **options))
        else:
            function = _with_aux(CALLS[step.target])

        def of_active(*active: Tensor) -> tuple[Any, Any]:
            local = list(values)
            for slot, value in zip(slots, active, strict=True):
                local[slot] = value
            kwargs = {key: _resolve(part, local) for key, part in step.kwargs}
            return function(*_resolve(step.args, local), **kwargs)

        fallback = Fallback(of_active, tuple(values[slot] for slot in slots), self._name(step))
        if module is not None:
            store_buffers(module, fallback.aux)
        return fallback.value, fallback

    def _refuse_frozen(self, module: nn.Module, step: Step) -> None:
        found = train_mode_batch_norm(module)
        if self._frozen and found is not None:
            path = ".".join(p for p in (step.target, found) if p)
            name = path or type(module).__name__
            raise ValueError(f'batch_statistics="frozen": {name} in train mode has no rule')

    def _refuse_synchronised(self, module: nn.Module, step: Step) -> None:
        found = synchronised_batch_norm(module)
        if found is not None:
            name = ".".join(p for p in (step.target, found) if p) or type(module).__name__
            raise TypeError(
                f"net: {name} is a SyncBatchNorm in train mode, which couples the samples of several processes; there "
                "is no rule for that. Take GroupNorm, or BatchNorm, whose statistics are each process's own"
            )

    def _name(self, step: Step) -> str:
        return step.name or type(self._net).__name__

    def _seed(self, cotangents: list[Any], cotangent: Any) -> None:
        output = self._plan.output
        if isinstance(output, Ref):
            cotangents[output.index] = list(cotangent) if self._whole else cotangent
            return
        for ref, c in zip(output, cotangent, strict=True):
            cotangents[ref.index] = add(cotangents[ref.index], c)

    def _reader(self, path: str, module: nn.Module) -> Callable[[str], Any]:
        """Looks up a parameter (the given one, if any) or another attribute of the module at ``path``."""

        def read(name: str) -> Any:
            if self._parameters:
                full = self._canonical.get(f"{path}.{name}" if path else name)
                if full in self._parameters:
                    return self._parameters[full]
            return getattr(module, name)

        return read

    def _parameters_of(self, path: str) -> dict[str, Tensor]:
        """The given parameters of one submodule, by their names inside it."""
        prefix = f"{path}." if path else ""
        return {
            name[len(prefix) :]: self._parameters[full]
            for name, full in self._plan.names
            if name.startswith(prefix) and full in self._parameters
        }


def _checked(net: nn.Module, parameters: dict[str, Tensor] | None) -> dict[str, Tensor]:
    if not parameters:
        return {}
    own = dict(net.named_parameters())
    for name, value in parameters.items():
        if name not in own:
            raise ValueError(f"parameters: {name!r} is no parameter of {type(net).__name__}; it has {', '.join(own)}")
        if value.shape != own[name].shape:
            raise ValueError(f"parameters: {name!r} expected shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
    return parameters


def _checked_value(net: nn.Module, value: Any) -> Any:
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, (tuple, list)):
            parts += part
        elif not isinstance(part, Tensor):
            where = "" if part is value else " in a tuple"
            raise TypeError(
                f"net: expected {type(net).__name__} to return a tensor or a tuple of tensors, got "
                f"{type(part).__name__}{where}"
            )
    return value


def _with_aux(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict]]:
    return lambda *args, **kwargs: (function(*args, **kwargs), {})


def _resolve(spec: Any, values: list[Any]) -> Any:
    """Arguments with every Ref replaced by its value."""
    if isinstance(spec, Ref):
        return values[spec.index]
    if isinstance(spec, tuple):
        return tuple(_resolve(part, values) for part in spec)
    if isinstance(spec, slice):
        return slice(_resolve(spec.start, values), _resolve(spec.stop, values), _resolve(spec.step, values))
    return spec


def _stacked(argument: str, given: Any, like: Any) -> bool:
    """Whether ``given`` is a stack of tensors shaped as ``like``, or one such; an error when it is neither."""
    if isinstance(like, Tensor):
        if not isinstance(given, Tensor):
            raise TypeError(f"{argument}: expected a tensor, got {type(given).__name__}")
        if given.shape == like.shape:
            return False
        if given.shape[1:] == like.shape and given.dim() > 0:
            return True
        shape = ", ".join(map(str, like.shape))
        raise ValueError(f"{argument}: expected shape [{shape}] or a stack [K, {shape}], got {list(given.shape)}")
    if not isinstance(given, (tuple, list)) or len(given) != len(like):
        raise TypeError(f"{argument}: expected a tuple of {len(like)} tensors, got {type(given).__name__}")
    kinds = {_stacked(f"{argument}[{i}]", g, part) for i, (g, part) in enumerate(zip(given, like, strict=True))}
    if len(kinds) > 1:
        raise ValueError(f"{argument}: expected all parts single or all parts stacked, got a mixture")
    return kinds.pop()
