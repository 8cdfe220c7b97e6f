"""How a density's free number is chosen: by the likelihood of points that were left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
MAX_HELD_OUT = 1000


def split(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Four fifths of the points [N, d] to fit to, and a random fifth (at most ``MAX_HELD_OUT``) to judge by."""
    count = min(len(points) // 5, MAX_HELD_OUT)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    return points[order[count:]], points[order[:count]]


def select(grid: Sequence[Value], points: Tensor, seed: int, score: Callable[[Value, Tensor, Tensor], float]) -> Value:
    """The value of the grid with the highest ``score(value, fitted, held out)``, a mean log-likelihood."""
    fitted, held_out = split(points, seed)
    return max(grid, key=lambda value: score(value, fitted, held_out))
