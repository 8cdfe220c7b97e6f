"""What a Jacobian-vector product costs, by the shapes of its steps: input of a cost model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .plan import submodule
from .rules import RULES
from .walk import tensor_shapes

if TYPE_CHECKING:
    from .linearization import Linearization


class Work(NamedTuple):
    """Of one tangent (or cotangent) of one sample.

    Attributes:
        flops_per_tangent: operations of the matrix products and convolutions, two per multiply-add; a layer without
            a rule counts as two per parameter.
        bytes_per_tangent: bytes that the elementwise steps read and write.
        steps: how many steps compute anything (views do not).
    """

    flops_per_tangent: float
    bytes_per_tangent: float
    steps: int


def work_of(lin: Linearization) -> Work:
    record = lin._record
    flops, elements, steps = 0.0, 0.0, 0
    for i, (step, saved) in enumerate(zip(record.steps, record.saved, strict=True)):
        slots = [slot for slot in step.slots if slot >= 0]
        if not slots or (step.rule != "fallback" and saved[0] == "item"):
            continue
        operand, value = (_size(record.shapes[index], record.batch) for index in (slots[0], i + 1))
        if step.rule == "fallback":
            module = submodule(lin._net, step.target) if step.kind == "module" else None
            own = 0.0 if module is None else 2.0 * sum(p.numel() for p in module.parameters())
            traffic = 3 * value
        else:
            rule = RULES[step.rule]
            own, traffic = rule.flops(saved[1], operand, value), rule.traffic * value
        flops, elements, steps = flops + own, elements + traffic, steps + int(own > 0 or traffic > 0)
    return Work(flops, elements * lin._input.element_size(), steps)


def _size(shape: Any, batch: int) -> float:
    """Numbers per sample."""
    return sum(
        float(math.prod(own[1:])) if own and own[0] == batch else math.prod(own) / max(batch, 1)
        for own in tensor_shapes(shape)
    )
