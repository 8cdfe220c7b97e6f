"""Tangents and the sum of second derivatives along them, forward through the steps of a plan.

For y = f(a), tangents t_k and their sum of second derivatives L: t_k' = J t_k and
L' = J L + sum_k D^2 f[t_k, t_k]. With the unit vectors for tangents L is the Laplacian.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor

from fisherkernels import ops
from fisherkernels.kernels.linear_activation_tangents import has_kernel, linear_activation_tangents
from fisherkernels.linearize.rules import RULES
from fisherkernels.linearize.rules.base import ElementwiseRule
from fisherkernels.linearize.walk import Record, add, expanded, meet


class Carried(NamedTuple):
    """What belongs to one value: the stack of tangents, and the sum of second derivatives; None for zero.

    Both are tuples where the value is one. Tangents that no later step needs are None too.
    """

    tangents: Any
    laplacian: Any


NOTHING = Carried(None, None)


def sweep(
    record: Record,
    starts: dict[int, Tensor | None],
    output: int,
    keep_tangents: bool,
    bends: dict[int, Any] | None = None,
) -> Carried:
    """What value ``output`` gets from the tangents of the values ``starts``, [K, N, ...] or [K, 1, ...] for all samples
    alike, None for zero; what those values are made of is not looked at. Without ``keep_tangents`` the output's
    tangents are left out.

    ``bends``: what curved steps add to second derivatives, sum_k D^2 f[t_k, t_k], by value. Given with tangents it
    collects them instead of carrying them on; given without, they are carried on from there.
    """
    steps, start = record.steps[:output], min(starts)
    used, wanted = needed(record, starts, output, keep_tangents)
    last = {slot: i for i, step in enumerate(steps) for slot in step.slots if slot >= 0}
    collect = any(tangents is not None for tangents in starts.values())
    carried = {index: Carried(tangents, None) for index, tangents in starts.items()}
    for i in range(start, output):
        step = steps[i]
        slots = tuple(dict.fromkeys(step.slots)) if step.rule == "fallback" else step.slots
        operands = tuple(carried.get(slot, NOTHING) for slot in slots)
        for slot in slots:
            if last.get(slot) == i and slot != output:
                carried.pop(slot, None)  # frees it
        if i + 1 in starts or i + 1 not in used:
            continue
        if any(tangents is not None or laplacian is not None for tangents, laplacian in operands):
            if _goes_with_activation(record, i, operands[0].tangents, output):
                carried[i + 2] = _through_pair(record, i, operands[0], i + 2 in wanted)
                continue
            carried[i + 1] = _through(record, i, slots, operands, i + 1 in wanted)
        if bends is not None:
            carried[i + 1] = _bent(carried.get(i + 1, NOTHING), i + 1, bends, collect)
    return carried.get(output, NOTHING)


def _bent(own: Carried, index: int, bends: dict[int, Any], collect: bool) -> Carried:
    if not collect:
        return Carried(None, add(own.laplacian, bends.get(index)))
    if own.laplacian is not None:
        bends[index] = add(own.laplacian, bends.get(index))
    return Carried(own.tangents, None)


def needed(record: Record, starts: Collection[int], output: int, keep_tangents: bool) -> tuple[set[int], set[int]]:
    """Values that the output depends on, as far back as those to start at; and those among them whose tangents are
    needed: by the output, if its are, or by a curved step.
    """
    used, wanted = {output}, {output} if keep_tangents else set()
    for i in range(output - 1, -1, -1):
        if i + 1 not in used or i + 1 in starts:
            continue
        step = record.steps[i]
        slots = {slot for slot in step.slots if slot >= 0}
        used |= slots
        if i + 1 in wanted or curved(record, i):
            wanted |= slots
    return used, wanted


def curved(record: Record, i: int) -> bool:
    step = record.steps[i]
    if step.rule == "fallback":
        return True
    return record.saved[i] is not None and record.saved[i][0] == "rule" and RULES[step.rule].curved(active(step))


def active(step) -> tuple[bool, ...]:
    return tuple(slot >= 0 for slot in step.slots)


def _through(record: Record, i: int, slots: tuple, operands: tuple[Carried, ...], keep: bool) -> Carried:
    """Tangents and second derivatives of step i's value, given those of its operands."""
    step, saved = record.steps[i], record.saved[i]
    tangents = tuple(operand.tangents for operand in operands)
    laplacians = tuple(operand.laplacian for operand in operands)
    if step.rule == "fallback":
        return _through_fallback(record, i, slots, tangents, laplacians)
    if saved[0] == "item":
        return Carried(*(None if part is None else part[saved[1]] for part in operands[0]))
    rule = RULES[step.rule]
    if isinstance(rule, ElementwiseRule) and tangents[0] is not None:
        return _through_activation(rule, saved[1], tangents[0], laplacians[0], keep)
    laplacian = None if all(part is None for part in laplacians) else rule.jvp(saved[1], laplacians, False)
    if all(part is None for part in tangents):
        return Carried(None, laplacian)
    shapes = tuple(record.shapes[slot] if slot >= 0 else None for slot in slots)
    if rule.curved(active(step)):
        tangents = tuple(expanded(t, shape) for t, shape in zip(tangents, shapes, strict=True))
        given = tuple(
            _zeros(shape, tangents) if t is None and slot >= 0 else t
            for t, shape, slot in zip(tangents, shapes, slots, strict=True)
        )
        laplacian = add(laplacian, rule.curvature(saved[1], given))
    pushed = None
    if keep:
        saved, tangents = meet(record, i, tangents, shapes)
        pushed = rule.jvp(saved[1], tangents, True)
    return Carried(pushed, laplacian)


def _through_activation(
    rule: ElementwiseRule, saved: tuple, t: Tensor, laplacian: Tensor | None, keep: bool
) -> Carried:
    slope, curvature = rule.slopes(saved)  # [N, ...]
    (count, batch), rows, columns = t.shape[:2], len(slope), slope.shape[1:].numel()
    matrices = (None if part is None else part.reshape(rows, columns) for part in (laplacian, slope, curvature))
    pushed, total = ops.activation_tangents(t.reshape(count, batch, columns), *matrices, keep_tangents=keep)
    return Carried(pushed.view(count, *slope.shape) if keep else None, total.view(slope.shape))


def _goes_with_activation(record: Record, i: int, t: Any, output: int) -> bool:
    """Whether step i is a Linear layer whose value goes into the activation behind it alone, with a kernel for both."""
    step = record.steps[i]
    if step.rule != "linear" or i + 1 >= output or not isinstance(t, Tensor) or not has_kernel(t):
        return False
    rule = RULES.get(record.steps[i + 1].rule)
    users = sum(i + 1 in later.slots for later in record.steps[:output])
    shape = record.shapes[i + 1]
    return isinstance(rule, ElementwiseRule) and users == 1 and i + 1 in record.steps[i + 1].slots and (
        len(shape) == 2 and t.dim() == 3 and t.shape[1] == shape[0]
    )  # fmt: skip


def _through_pair(record: Record, i: int, operand: Carried, keep: bool) -> Carried:
    (weight,), saved = record.saved[i][1], record.saved[i + 1][1]
    slope, curvature = RULES[record.steps[i + 1].rule].slopes(saved)
    pushed, total = linear_activation_tangents(*operand, weight, slope, curvature, keep_tangents=keep)
    return Carried(pushed, total)


def _through_fallback(record: Record, i: int, slots: tuple, tangents: tuple, laplacians: tuple) -> Carried:
    saved = record.saved[i]
    shapes = tuple(record.shapes[slot] for slot in slots)
    tangents = tuple(expanded(t, shape) for t, shape in zip(tangents, shapes, strict=True))
    pushed, total = None, None
    if any(t is not None for t in tangents):
        pushed = saved.jvp(tangents, True)
        total = saved.curvature(tangents)
    if any(part is not None for part in laplacians):
        total = add(total, saved.jvp(laplacians, False))
    return Carried(pushed, total)


def _zeros(shape: tuple, tangents: tuple) -> Tensor:
    given = next(t for t in tangents if t is not None)
    return given.new_zeros((len(given), *shape))
