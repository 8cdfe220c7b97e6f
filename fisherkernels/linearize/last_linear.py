"""Networks that end in a Linear layer: J = W T, with T the Jacobian of what enters it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from .jacobian import input_tangents
from .plan import Ref
from .walk import pull, push

if TYPE_CHECKING:
    from .linearization import Linearization

_SAME_CONTENT = {"identity", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "dropout"}


class LastLinear:
    """The last layer of a network, h -> h W^T + b, and the map of everything before it.

    Attributes:
        weight: W [D, h], in the graph.
        output_shape: the value's shape behind N; its sizes multiply to D.
        input_index: which value of the record h is.
    """

    def __init__(self, lin: Linearization, weight: Tensor, index: int):
        self._lin, self.input_index = lin, index
        self.weight = weight
        self.output_shape = tuple(lin.value.shape[1:])

    def tangents(self) -> Tensor:
        """T's columns, a stack [d, N, h] for x [N, d]; it may share memory between samples (strides of 0).

        Raises:
            ValueError: x is not [N, d], or the network couples samples.
        """
        return input_tangents(self._lin, self.input_index)

    def push(self, tangent: Tensor) -> Tensor:
        """T t [..., N, h] for t [..., *x.shape].

        Raises:
            ValueError: the last sizes are not those of x.
        """
        shape = self._lin._record.shapes[0]
        front = _front("tangent", tangent, shape)
        stack = tangent.reshape(math.prod(front), *shape)
        (pushed,) = push(self._lin._record, stack, True, (self.input_index,))
        return pushed.reshape(*front, *pushed.shape[1:])

    def pull(self, cotangent: Tensor) -> Tensor:
        """T^T c [..., *x.shape] for c [..., N, h].

        Raises:
            ValueError: the last sizes are not N and h.
        """
        shape = self._lin._record.shapes[self.input_index]
        front = _front("cotangent", cotangent, shape)
        stack = cotangent.reshape(math.prod(front), *shape)
        pulled = pull(self._lin._record, [*[None] * self.input_index, stack], True)
        return pulled.reshape(*front, *pulled.shape[1:])


def last_linear(lin: Linearization) -> LastLinear | None:
    record, output = lin._record, lin._plan.output
    if not isinstance(output, Ref) or output.index == 0:
        return None
    i = output.index - 1
    while same_content(lin, i):
        i = record.steps[i].slots[0] - 1
        if i < 0:
            return None
    step = record.steps[i]
    if step.rule != "linear":
        return None
    index = step.slots[0]
    (weight,) = record.saved[i][1]
    shape = record.shapes[index]
    if len(shape) != 2 or shape[0] != record.batch or weight.dim() != 2:
        return None
    return LastLinear(lin, weight, index)


def same_content(lin: Linearization, i: int) -> bool:
    """Whether step i passes each sample's numbers on, in their order."""
    record = lin._record
    step, saved = record.steps[i], record.saved[i]
    if step.rule not in _SAME_CONTENT or (step.rule == "dropout" and saved[1][0] is not None):
        return False
    return record.shapes[i + 1][:1] == (record.batch,) == record.shapes[step.slots[0]][:1]


def _front(argument: str, given: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    count = given.dim() - len(shape)
    if count < 0 or tuple(given.shape[count:]) != shape:
        raise ValueError(f"{argument}: expected shape [..., {', '.join(map(str, shape))}], got {list(given.shape)}")
    return tuple(given.shape[:count])
