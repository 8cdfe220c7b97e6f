"""Derivatives of what no rule covers, by torch.func: exact, differentiable once more, one pass per vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class Fallback:
    """``function(*inputs) -> (value, aux)`` linearised by ``torch.func.vjp``.

    The function is evaluated once: the pullback keeps what was drawn then.
    """

    def __init__(self, function: Callable[..., tuple[Any, Any]], inputs: tuple[Tensor, ...]):
        self.inputs, self.function = inputs, function
        self.value, self.pullback, self.aux = torch.func.vjp(function, *inputs, has_aux=True)

    def vjp(self, cotangent: Any, stacked: bool) -> tuple[Tensor, ...]:
        """One cotangent per input; parts of a tuple value that nothing used come as None."""
        if not isinstance(cotangent, Tensor):
            given = next(c for c in cotangent if c is not None)
            front = given.shape[:1] if stacked else ()
            pairs = zip(cotangent, self.value, strict=True)
            cotangent = tuple(given.new_zeros((*front, *v.shape)) if c is None else c for c, v in pairs)
        return _loop(self._pull, cotangent, self.inputs) if stacked else self._pull(cotangent)

    def jvp(self, tangents: tuple[Tensor | None, ...], stacked: bool) -> Any:
        """J t is the transpose of the pullback, which is linear in the cotangent.

        Its gradient takes torch's formulas to third order, where BatchNorm's refuse and LayerNorm's are wrong.
        """
        given = next(t for t in tangents if t is not None)
        front = given.shape[:1] if stacked else ()
        pairs = zip(tangents, self.inputs, strict=True)
        tangents = tuple(x.new_zeros((*front, *x.shape)) if t is None else t for t, x in pairs)
        like = _map(torch.zeros_like, self.value)
        _, push = torch.func.vjp(self._pull, like)
        return _loop(lambda t: push(t)[0], tangents, like) if stacked else push(tangents)[0]

    def curvature(self, tangents: tuple[Tensor | None, ...]) -> Any:
        """sum_k D^2 f[t_k, t_k] over stacks of tangents, one per input: by forward mode twice or, where an operation
        has none, by reverse mode four times.
        """
        given = next(t for t in tangents if t is not None)
        pairs = zip(tangents, self.inputs, strict=True)
        stacks = tuple(x.new_zeros((len(given), *x.shape)) if t is None else t for t, x in pairs)

        def value(*inputs: Tensor) -> Any:
            return self.function(*inputs)[0]

        def along(push: Callable[..., Any], *t: Tensor) -> Any:
            return push(lambda *inputs: push(value, inputs, t), self.inputs, t)

        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no higher derivatives
                try:
                    second = torch.func.vmap(partial(along, _push))(*stacks)
                except NotImplementedError:
                    second = torch.func.vmap(partial(along, _push_by_reverse))(*stacks)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise ValueError("net: a layer without a rule draws at random; use eval() for its Laplacian") from error
        return _map(lambda part: part.sum(0), second)

    def _pull(self, cotangent: Any) -> tuple[Tensor, ...]:
        if not isinstance(cotangent, Tensor):
            cotangent = type(self.value)(cotangent)
        return self.pullback(cotangent)


def module_function(module: nn.Module, parameters: dict[str, Tensor]) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    """The module as a function of its inputs, on copies of the buffers, which it returns beside the value."""

    def call(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        plain = [(m, name, t) for m in module.modules() for name, t in vars(m).items() if isinstance(t, Tensor)]
        value = functional_call(module, {**parameters, **buffers}, args, kwargs)
        for (
            m,
            name,
            t,
        ) in plain:  # a hook (torch.nn.utils.weight_norm) would leave torch.func's wrapper in the module
            setattr(m, name, t)
        return value, buffers

    return call


def store_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Running statistics as the one evaluation left them."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


def _push(function: Callable[..., Any], inputs: tuple, tangents: tuple) -> Any:
    return torch.func.jvp(function, inputs, tangents)[1]


def _push_by_reverse(function: Callable[..., Any], inputs: tuple, tangents: tuple) -> Any:
    value, pull = torch.func.vjp(function, *inputs)
    _, push = torch.func.vjp(pull, _map(torch.zeros_like, value))
    return push(tangents)[0]


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return function(value) if isinstance(value, Tensor) else tuple(map(function, value))


def _loop(function: Callable[[Any], Any], stack: Any, like: Any) -> Any:
    """``function`` over the members of a stack (a tensor or a tuple of such); an empty one gives ``like`` by none."""
    members = (
        list(stack.unbind()) if isinstance(stack, Tensor) else list(zip(*(s.unbind() for s in stack), strict=True))
    )
    if not members:
        return _map(lambda v: v.new_zeros((0, *v.shape)), like)
    results = [function(member) for member in members]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
