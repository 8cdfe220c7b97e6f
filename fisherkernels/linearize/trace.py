"""From a network to its plan: torch.fx names the operations, each gets its rule or the torch.func fallback."""

from __future__ import annotations

import contextlib
import dis
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from .chain import chains_of
from .decompositions import decomposition_of
from .decompositions.base import drop_unused
from .perceptron import perceptrons_of
from .plan import CALLS, Plan, Ref, Step, hooked, scalars, seen
from .rules import FUNCTIONS, METHODS, MODULES, RULES

# Results of these do not carry a derivative, whatever their argument.
_STATIC_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout"}
_STATIC_METHODS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "stride",
    "detach",
    "new_zeros",
    "new_ones",
    "new_tensor",
}
_STATIC_METHODS |= {"gt", "ge", "lt", "le", "eq", "ne", "argmax", "argmin", "sign", "get_device"}
_STATIC_FUNCTIONS = {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like}
_STATIC_FUNCTIONS |= {
    torch.randn_like,
    torch.numel,
    torch.argmax,
    torch.argmin,
    torch.sign,
    torch.is_tensor,
    len,
}
_STATIC_FUNCTIONS |= {operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne}
_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
_IN_PLACE_OPERATORS |= {operator.ifloordiv, operator.imod, operator.ipow}
_IN_PLACE_OPERATORS |= {operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift}
# What may share memory with the first operand, by the names of methods, functions and rules of modules.
_VIEWS = {"view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "select"}
_VIEWS |= {"t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "adjoint", "expand", "expand_as"}
_VIEWS |= {"broadcast_to", "chunk", "split", "tensor_split", "unbind", "narrow", "diagonal", "as_strided", "detach"}
_VIEWS |= {"contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "positive", "identity"}
_VIEWS |= {"unfold", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_VIEWED_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real", "imag"}
_TRACE_ERRORS = (
    fx.proxy.TraceError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    KeyError,
)
_TRACE_ERRORS += (IndexError, AssertionError, NameError)

FALLBACK = "fallback"
EVALUATE = "evaluate"


class _Untraceable(Exception):
    """The graph does not describe the forward: a reason to hand the whole module to torch.func."""


class _Proxy(fx.Proxy):
    """Records ``h += 1`` as what it is, where fx would record ``h = h + 1``."""


def _augmented(operation: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


for _operation in _IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_operation.__name__}__", _augmented(_operation))


class _Tracer(fx.Tracer):
    """Leaves: modules with a rule, torch.nn's own without one or a decomposition, hooked ones, and what cannot be
    traced by itself.
    """

    proxy_buffer_attributes = True  # what is computed of buffers is computed anew at every call

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if type(module) in MODULES or hooked(module):
            return True
        if super().is_leaf_module(module, path) and decomposition_of(module) is None:  # torch.nn's, containers aside
            return True
        if torch.nn.utils.parametrize.is_parametrized(module):
            return True
        return not _traceable(module)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        decomposed = decomposition_of(module)
        return super().call_module(module, partial(decomposed, module) if decomposed else forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the first argument and those without a default; the others keep theirs."""
        forward = decomposition_of(self.root) or root_fn
        _, first, *others = inspect.signature(forward).parameters.values()
        plain = (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        given = first, *(p for p in others if p.default is p.empty and p.kind in plain)
        return forward, [self.root, *(self.create_proxy("placeholder", p.name, (), {}) for p in given)]


def _traceable(module: nn.Module) -> bool:
    try:
        _graph(module)
    except (*_TRACE_ERRORS, _Untraceable):
        return False
    return True


def _graph(module: nn.Module) -> fx.Graph:
    if hooked(module) or torch.nn.utils.parametrize.is_parametrized(module):
        raise _Untraceable
    tracer = _Tracer()
    with _state_kept(module):
        graph = tracer.trace(module)
    drop_unused(graph)
    held = {id(t) for t in (*module.parameters(), *module.buffers())}
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op == "get_attr" and id(_attribute(module, node.target)) not in held:
            raise _Untraceable  # a tensor made while tracing: perhaps a random one, to be drawn anew at each call
        if node.op == "call_module" and _may_be_none(module, node) and _looks_for_none(module):
            raise _Untraceable  # a traced result is never None
        for changed in _written(node, module):
            known = _sharing(changed, node, module)
            if any(other.op == "get_attr" for other in known):
                raise _Untraceable  # a buffer is written
            readers = {user for other in known for user in other.users if not _of_shape(user)}
            if any(order[reader] > order[node] for reader in readers):
                raise _Untraceable  # the changed operand is read again afterwards, by some name
    return graph


def _may_be_none(root: nn.Module, node: fx.Node) -> bool:
    """Whether it calls a user's own module that has no rule and is not traced, and may give anything."""
    module = root.get_submodule(node.target)
    return type(module).__module__.partition(".")[0] != "torch" and _layer_rule(module) == FALLBACK


def _looks_for_none(module: nn.Module) -> bool:
    """Whether its forward asks something for None."""
    code = getattr(type(module).forward, "__code__", None)
    return code is None or any("NONE" in part.opname or part.opname == "IS_OP" for part in dis.get_instructions(code))


@contextlib.contextmanager
def _state_kept(module: nn.Module) -> Iterator[None]:
    """Tracing runs the forward once; one that changes buffers or plain attributes by itself has to run every time."""
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in module.buffers()]
    attributes = [(m, dict(scalars(m))) for m in module.modules()]
    try:
        yield
    finally:
        written = [
            (buffer, copy)
            for buffer, version, copy in buffers
            if buffer._version != version and not torch.equal(buffer, copy)
        ]
        for buffer, copy in written:
            buffer.detach().copy_(copy)
        changed = [(m, before) for m, before in attributes if dict(scalars(m)) != before]
        for m, before in changed:
            vars(m).update(before)
    if written or changed:
        raise _Untraceable


def _attribute(root: nn.Module, path: str) -> Any:
    """Past ``Module.__getattr__``: while a module around this one is traced, that gives proxies."""
    *modules, name = path.split(".")
    for part in modules:
        root = root._modules[part]
    for table in (root._parameters, root._buffers, vars(root)):
        if name in table:
            return table[name]
    return getattr(root, name)


def _written(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The operands that are changed in place."""
    first = node.args[:1]
    if node.op == "call_module":
        written = bool(getattr(root.get_submodule(node.target), "inplace", False))
    elif node.op == "call_method":
        written = node.target.endswith("_") and not node.target.endswith("__")
    elif node.op == "call_function":
        named = getattr(node.target, "__name__", "")
        written = named.endswith("_") and not named.endswith("__")
        written = written or node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace", False))
    else:
        return []
    return _operands((first if written else (), node.kwargs.get("out")))


def _operands(given: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    if isinstance(given, (tuple, list)):
        return [node for part in given for node in _operands(part)]
    return [given] if isinstance(given, fx.Node) else []


def _sharing(node: fx.Node, writer: fx.Node, root: nn.Module) -> set[fx.Node]:
    """The node, and those that may share memory with it, but for what comes of the writer."""
    found, open_ends = {node}, [node]
    while open_ends:
        at = open_ends.pop()
        near = _operands(at.args[:1]) if _is_view(at, root) else []
        near += [user for user in at.users if _is_view(user, root) and at in _operands(user.args[:1])]
        open_ends += [other for other in near if other not in found and other is not writer]
        found.update(open_ends)
    return found


def _of_shape(node: fx.Node) -> bool:
    """Whether it reads no numbers."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel")
    return node.op == "call_function" and node.target is getattr and node.args[1] in _STATIC_ATTRIBUTES


def _is_view(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_method":
        return node.target in _VIEWS or node.target.endswith("_")
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in _VIEWED_ATTRIBUTES
        return node.target is operator.getitem or getattr(node.target, "__name__", "") in _VIEWS
    return node.op == "call_module" and _layer_rule(root.get_submodule(node.target)) in _VIEWS


def make_plan(net: nn.Module) -> Plan:
    """The plan of ``net``; one warning names the modules and operations that go through torch.func."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):  # tracing runs the forward's Python, which may draw numbers
            steps, output = _single(_layer_rule(net)) if type(net) in MODULES else _steps(net, _graph(net))
    except (*_TRACE_ERRORS, _Untraceable):
        steps, output = _single(FALLBACK)
    slow = [step.name or type(net).__name__ for step in steps if step.rule == FALLBACK]
    if slow:
        warnings.warn(
            f"fisherkernels.linearize: no rule for {', '.join(slow)} of {type(net).__name__}; torch.func "
            "differentiates there (correct, slower, and not inside torch.compile's full graph)",
            stacklevel=2,
        )
    canonical = {id(p): name for name, p in net.named_parameters()}
    names = tuple((name, canonical[id(p)]) for name, p in net.named_parameters(remove_duplicate=False))
    called = {step.target for step in steps if step.kind == "module"}  # these run, or are read, at every call
    found = net.named_modules(remove_duplicate=False)
    modules = tuple(seen(path, module, not _inside(path, called)) for path, module in found)
    size = sum(p.numel() for p in net.parameters() if not nn.parameter.is_lazy(p))
    perceptrons = perceptrons_of(steps, output)
    return Plan(steps, output, modules, names, perceptrons, chains_of(steps, output, perceptrons), size)


def _inside(path: str, called: set[str]) -> bool:
    return any(path == outer or not outer or path.startswith(outer + ".") for outer in called)


def _single(rule: str) -> tuple[tuple[Step, ...], Ref]:
    """A network that is one layer."""
    return (Step("", "module", "", rule, (Ref(0),), (), (0,)),), Ref(1)


def _layer_rule(module: nn.Module) -> str:
    layer = MODULES.get(type(module))
    return layer.rule if layer and not hooked(module) and layer.accepts(module) else FALLBACK


def _steps(net: nn.Module, graph: fx.Graph) -> tuple[tuple[Step, ...], Any]:
    index: dict[fx.Node, int] = {}
    active: set[int] = set()
    steps: list[Step] = []
    output: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if index:  # linearize gives the forward one tensor
                raise _Untraceable
            index[node] = 0
            active.add(0)
        elif node.op == "output":
            output = _spec(node.args[0], index)
            if not _is_tensor_or_tuple(output):
                raise _Untraceable
        else:
            step = _step(net, node, index, active)
            index[node] = _append(steps, step)
            if step.slots and any(slot >= 0 for slot in step.slots):
                active.add(index[node])
    return tuple(steps), output


def _append(steps: list[Step], step: Step) -> int:
    steps.append(step)
    return len(steps)  # step i makes value i + 1


def _is_tensor_or_tuple(output: Any) -> bool:
    if isinstance(output, Ref):
        return True
    return type(output) is tuple and all(isinstance(part, Ref) for part in output)


def _spec(arg: Any, index: dict[fx.Node, int]) -> Any:
    """fx arguments with every node replaced by a Ref; lists become tuples, which torch.compile takes as constants."""
    if isinstance(arg, fx.Node):
        return Ref(index[arg])
    if isinstance(arg, (tuple, list)):
        return tuple(_spec(part, index) for part in arg)
    if isinstance(arg, slice):
        return slice(_spec(arg.start, index), _spec(arg.stop, index), _spec(arg.step, index))
    if isinstance(arg, dict):
        raise _Untraceable
    return arg


def _active_refs(spec: Any, active: set[int]) -> list[int]:
    if isinstance(spec, Ref):
        return [spec.index] if spec.index in active else []
    if isinstance(spec, tuple):
        return [i for part in spec for i in _active_refs(part, active)]
    if isinstance(spec, slice):
        return _active_refs((spec.start, spec.stop, spec.step), active)
    return []


_KINDS = {
    "call_module": "module",
    "call_function": "function",
    "call_method": "method",
    "get_attr": "attribute",
}


def _step(net: nn.Module, node: fx.Node, index: dict[fx.Node, int], active: set[int]) -> Step:
    kind = _KINDS[node.op]
    args = _spec(node.args, index)
    kwargs = tuple((key, _spec(value, index)) for key, value in node.kwargs.items())
    name = node.target if kind == "module" else node.name
    target = node.target
    if kind == "function":
        target = id(node.target)
        CALLS[target] = node.target
    used = _active_refs((args, kwargs), active)
    if not used or _static(node):
        return Step(name, kind, target, EVALUATE, args, kwargs, ())
    rule = _rule(net, node, args, dict(kwargs))
    if rule != FALLBACK:
        slots = tuple(a.index if isinstance(a, Ref) and a.index in active else -1 for a in RULES[rule].slots(args))
        if sorted(i for i in slots if i >= 0) == sorted(used):
            return Step(name, kind, target, rule, args, kwargs, slots)
    return Step(name, kind, target, FALLBACK, args, kwargs, tuple(used))


def _static(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _STATIC_METHODS
    if node.op == "call_function":
        return node.target in _STATIC_FUNCTIONS or (node.target is getattr and node.args[1] in _STATIC_ATTRIBUTES)
    return False


def _rule(net: nn.Module, node: fx.Node, args: tuple, kwargs: dict) -> str:
    """The name of the rule for a call, or the fallback."""
    if node.op == "call_module":
        return _layer_rule(net.get_submodule(node.target)) if len(args) == 1 and not kwargs else FALLBACK
    if node.op == "call_method":
        rule = METHODS.get(node.target)
    else:
        rule = "slice" if node.target is operator.getitem else FUNCTIONS.get(node.target)
    if rule is None:
        return FALLBACK
    try:
        inspect.signature(RULES[rule].forward).bind(*args, **kwargs)
    except TypeError:
        return FALLBACK
    return rule if args and RULES[rule].accepts(*args, **kwargs) else FALLBACK
