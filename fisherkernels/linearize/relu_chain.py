"""Networks of Linear layers with ReLUs between them: J is a product of weights and of masks of active units."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .last_linear import last_linear, same_content

if TYPE_CHECKING:
    from .linearization import Linearization


class ReluChain(NamedTuple):
    """J = W diag(m_L) W_L ... diag(m_1) W_1 per sample, with m_l = [values[l] > 0] and W the last linear layer's."""

    first: Tensor  # W_1 [h_1, d]
    weights: tuple[Tensor, ...]  # W_2, ..., W_L, [h_l, h_(l-1)]
    values: tuple[Tensor, ...]  # what the ReLUs gave, [N, h_1], ..., [N, h_L]


def relu_chain(lin: Linearization) -> ReluChain | None:
    record, last = lin._record, last_linear(lin)
    if last is None:
        return None
    weights, values = [], []
    slot = last.input_index
    while slot > 0:
        slot = _past_views(lin, slot)
        step = record.steps[slot - 1]
        if step.rule != "relu":
            return None
        values.append(record.saved[slot - 1][1][0].flatten(1))
        slot = _past_views(lin, step.slots[0])
        step = record.steps[slot - 1]
        if slot == 0 or step.rule != "linear":
            return None
        weights.append(record.saved[slot - 1][1][0])
        slot = step.slots[0]
    if not weights or any(weight.dim() != 2 for weight in weights):
        return None
    return ReluChain(weights[-1], tuple(reversed(weights[:-1])), tuple(reversed(values)))


def _past_views(lin: Linearization, slot: int) -> int:
    while slot > 0 and same_content(lin, slot - 1):
        slot = lin._record.steps[slot - 1].slots[0]
    return slot
