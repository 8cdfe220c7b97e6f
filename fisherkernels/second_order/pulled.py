"""Networks with one output: its gradient, pulled back, meets what curved steps add to second derivatives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fisherkernels.linearize.walk import keeps_samples, pull

if TYPE_CHECKING:
    from fisherkernels.linearize import Linearization


def can_pull(lin: Linearization) -> bool:
    """Whether there is one output and every step has a rule that keeps samples apart in front."""
    steps = lin._record.steps[: lin._plan.output.index]
    return math.prod(lin.value.shape[1:]) == 1 and all(
        keeps_samples(lin._record, i) for i, step in enumerate(steps) if any(slot >= 0 for slot in step.slots)
    )


def pulled(lin: Linearization, bends: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Jacobian [N, 1, n] and the output's second derivatives, the sum of <c_v, bends[v]>, c_v the cotangent of value v.

    One vector-Jacobian product of the network gives both; second derivatives need not go through the layers.
    """
    value, shape = lin.value, lin._record.shapes[0]
    seen = dict.fromkeys(bends)
    score = pull(lin._record, [*[None] * lin._plan.output.index, torch.ones_like(value)], False, seen=seen)
    total = torch.zeros_like(value)
    for index, bend in bends.items():
        if seen[index] is not None:
            total = total + _per_sample(bend * seen[index], len(value)).sum(1).view(value.shape)
    score = value.new_zeros(shape) if score is None else score
    return _per_sample(score, len(value)).unsqueeze(1), total


def _per_sample(t: Tensor, batch: int) -> Tensor:
    return t.reshape(batch, math.prod(t.shape[1:]))
