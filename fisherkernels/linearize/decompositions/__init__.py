"""Modules of torch.nn that are traced as the operations they consist of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import multihead_attention, transformer

_FILES = (multihead_attention, transformer)

DECOMPOSITIONS = {kind: entry for file in _FILES for kind, entry in file.DECOMPOSITIONS.items()}


def decomposition_of(module: nn.Module) -> Callable[..., Any] | None:
    """The forward to trace in place of the module's own, for modules of these very classes."""
    found = DECOMPOSITIONS.get(type(module))
    return found.forward if found and found.accepts(module) else None
