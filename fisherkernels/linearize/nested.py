"""Nested tuples of tensors and constants: floating point tensors carry derivatives, the rest has None in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def differentiable(part: Any) -> bool:
    return isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex())


def leaves(value: Any) -> list[Any]:
    """Tensors and constants, in order."""
    return [leaf for part in value for leaf in leaves(part)] if _is_tree(value) else [value]


def differentiable_leaves(value: Any) -> tuple[Tensor, ...]:
    return tuple(filter(differentiable, leaves(value)))


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with the function's result for each tensor or constant."""
    if not _is_tree(value):
        return function(value)
    make = getattr(type(value), "_make", type(value))  # a named tuple's own constructor takes its fields apart
    return make([mapped(function, part) for part in value])


def replaced(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    """``value`` with other floating point tensors."""
    given = iter(tensors)
    return mapped(lambda part: next(given) if differentiable(part) else part, value)


def spread(tensors: tuple[Tensor, ...], like: Any) -> Any:
    """One tensor for each floating point tensor of ``like``, None for its constants."""
    given = iter(tensors)
    return mapped(lambda part: next(given) if differentiable(part) else None, like)


def filled(given: Any, like: Any, stacked: bool) -> tuple[Tensor, ...]:
    """What is given for each floating point tensor of ``like``, zeros for None; stacks if ``stacked``."""
    first = next(t for t in leaves(given) if t is not None)
    front = first.shape[:1] if stacked else ()
    found = [(t, own) for t, own in _pairs(given, like) if differentiable(own)]
    return tuple(own.new_zeros((*front, *own.shape)) if t is None else t for t, own in found)


def _pairs(given: Any, like: Any) -> Iterator[tuple[Any, Any]]:
    if not _is_tree(like):
        yield given, like
        return
    for part, own in zip([None] * len(like) if given is None else given, like, strict=True):
        yield from _pairs(part, own)


def _is_tree(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not isinstance(value, torch.Size)
