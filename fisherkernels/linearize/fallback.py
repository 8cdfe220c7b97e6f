"""Derivatives of what no rule covers, by torch.func: exact, differentiable once more, one pass per vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .nested import differentiable_leaves, filled, leaves, mapped, replaced, spread

_CONSTANTS = (type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)


class Fallback:
    """``function(*inputs) -> (value, aux)`` linearised by ``torch.func.vjp``.

    Inputs and value are tensors, or nested tuples of tensors and constants: what is no floating point tensor has no
    tangent and no cotangent, None in their place. The function is evaluated once: the pullback keeps what was drawn
    then.
    """

    def __init__(self, function: Callable[..., tuple[Any, Any]], inputs: tuple, name: str):
        self.inputs, self.function, self.name = inputs, function, name
        self._primals = differentiable_leaves(inputs)
        found: list[Any] = []

        def parts(*primals: Tensor) -> tuple[tuple[Tensor, ...], tuple]:
            value, aux = self._at(primals)
            found.append(value)
            tensors = tuple(part for part in leaves(value) if isinstance(part, Tensor))
            return differentiable_leaves(value) or primals[:1], (tensors, aux)  # torch.func wants some output

        if self._primals:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no higher derivatives
                _, self.pullback, (tensors, self.aux) = torch.func.vjp(parts, *self._primals, has_aux=True)
        else:
            _, (tensors, self.aux) = parts()
        outside = iter(tensors)  # no longer torch.func's wrappers
        self.value = mapped(lambda part: next(outside) if isinstance(part, Tensor) else part, found[0])
        self._constant = not (self._primals and differentiable_leaves(self.value))

    def vjp(self, cotangent: Any, stacked: bool) -> tuple:
        """One cotangent per input; parts of a tuple value that nothing used come as None."""
        if self._constant:
            return (None,) * len(self.inputs)
        cotangents = filled(cotangent, self.value, stacked)
        return spread(_loop(self.pullback, cotangents, self._primals, stacked), self.inputs)

    def jvp(self, tangents: tuple, stacked: bool) -> Any:
        """J t is the transpose of the pullback, which is linear in the cotangent.

        Its gradient takes torch's formulas to third order, where BatchNorm's refuse and LayerNorm's are wrong.
        """
        if self._constant:
            return None
        like = tuple(map(torch.zeros_like, differentiable_leaves(self.value)))
        _, push = torch.func.vjp(self.pullback, like)
        return spread(_loop(lambda t: push(t)[0], filled(tangents, self.inputs, stacked), like, stacked), self.value)

    def curvature(self, tangents: tuple) -> Any:
        """sum_k D^2 f[t_k, t_k] over stacks of tangents, one per input: by forward mode twice or, where an operation
        has none, by reverse mode four times.
        """
        if self._constant:
            return None
        stacks = filled(tangents, self.inputs, True)

        def value(*primals: Tensor) -> tuple[Tensor, ...]:
            return differentiable_leaves(self._at(primals)[0])

        def along(push: Callable[..., Any], *t: Tensor) -> tuple[Tensor, ...]:
            return push(lambda *primals: push(value, primals, t), self._primals, t)

        try:
            with sdpa_kernel(SDPBackend.MATH):
                try:
                    second = torch.func.vmap(partial(along, _push))(*stacks)
                except NotImplementedError:
                    second = torch.func.vmap(partial(along, _push_by_reverse))(*stacks)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise ValueError("net: a layer without a rule draws at random; use eval() for its Laplacian") from error
        return spread(tuple(part.sum(0) for part in second), self.value)

    def _at(self, primals: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """The function where its inputs' floating point tensors are ``primals``, of which it may overwrite copies."""
        value, aux = self.function(*replaced(self.inputs, tuple(primal.clone() for primal in primals)))
        for leaf in leaves(value):
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                raise TypeError(
                    f"net: expected a tensor, or a tuple of tensors and constants, of {self.name}, which has no rule; "
                    f"got {type(leaf).__name__}"
                )
        return value, aux


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
    _, push = torch.func.vjp(pull, tuple(map(torch.zeros_like, value)))
    return push(tangents)[0]


def _loop(function: Callable[[tuple], tuple], given: tuple, like: tuple, stacked: bool) -> tuple[Tensor, ...]:
    """``function`` of tensors, or over the members of stacks of them; empty stacks give empty ones of ``like``."""
    if not stacked:
        return function(given)
    members = list(zip(*(stack.unbind() for stack in given), strict=True))
    if not members:
        return tuple(own.new_zeros((0, *own.shape)) for own in like)
    return tuple(torch.stack(parts) for parts in zip(*map(function, members), strict=True))
