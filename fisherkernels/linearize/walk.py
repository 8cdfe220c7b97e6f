"""Tangents forward and cotangents backward through the steps of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fisherkernels.transforms import records

from .plan import Step
from .rules import RULES


class Record(NamedTuple):
    """What one evaluation left behind: value i + 1 is made by step i, value 0 is the input."""

    steps: tuple[Step, ...]
    saved: list[Any]  # None, a Fallback, ("item", index, size) or ("rule", what the rule saved)
    shapes: list[Any]  # of every value; a tuple of such for a tuple, None where it is no tensor
    batch: int  # N
    sweeps: dict[int, tuple[int, Any]]  # last step of a stretch that is one: its first, its sweep
    folded: dict[int, tuple[tuple[int, ...], Callable[[], list[tuple]]]]  # its last step: its steps, what they saved

    def unfold(self, last: int | None = None) -> None:
        """Fill in what the steps of a chain, or of all, saved."""
        for chosen in list(self.folded) if last is None else [last]:
            found = self.folded.get(chosen)
            if found is None:  # another thread was faster
                continue
            steps, saved = found
            for i, kept in zip(steps, saved(), strict=True):
                self.saved[i] = ("rule", kept)
            self.folded.pop(chosen, None)


def shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(shape_of, value)) if isinstance(value, (tuple, list)) else None


def tensor_shapes(shape: Any) -> tuple[tuple[int, ...], ...]:
    """Of the tensors that a value is, or holds."""
    if shape is None:
        return ()
    if any(part is None or isinstance(part, tuple) for part in shape):
        return tuple(own for part in shape for own in tensor_shapes(part))
    return (shape,)


def push(record: Record, tangent: Tensor, stacked: bool, keep: tuple[int, ...], alike: bool = False) -> list[Any]:
    """The tangents of the values ``keep``, None for one that does not depend on the input.

    ``alike``: the stack is [K, 1, ...], the same for every sample. It stays so through steps whose Jacobian is the
    same for every sample, and is expanded to [K, N, ...] where another one meets it.
    """
    steps = record.steps[: max(keep)]
    last = {slot: i for i, step in enumerate(steps) for slot in step.slots if slot >= 0}
    tangents: list[Any] = [tangent]
    for i, step in enumerate(steps):
        slots = tuple(dict.fromkeys(step.slots)) if step.rule == "fallback" else step.slots
        operands = tuple(tangents[slot] if slot >= 0 else None for slot in slots)
        for slot in slots:
            if slot >= 0 and last[slot] == i and slot not in keep:
                tangents[slot] = None  # frees it
        saved = record.saved[i]
        if all(t is None for t in operands):
            tangents.append(None)
            continue
        if alike:
            saved, operands = meet(record, i, operands, tuple(record.shapes[slot] for slot in slots))
        if step.rule == "fallback":
            tangents.append(saved.jvp(operands, stacked))
        elif saved[0] == "item":
            tangents.append(operands[0][saved[1]])
        else:
            tangents.append(RULES[step.rule].jvp(saved[1], operands, stacked))
    return [tangents[index] for index in keep]


def pull(
    record: Record, cotangents: list[Any], stacked: bool, alike: bool = False, seen: dict[int, Any] | None = None
) -> Tensor | None:
    """The input's cotangent, given those of values 0, ..., len(cotangents) - 1, a list that is used up; those of the
    values ``seen`` are put there.
    """
    for i in range(len(cotangents) - 2, -1, -1):
        step, received = record.steps[i], cotangents[i + 1]
        if received is None or not step.slots:
            continue
        cotangents[i + 1] = None  # frees it
        if seen is not None and i + 1 in seen:
            seen[i + 1] = received
        if i in record.sweeps and not (stacked or alike) and seen is None:
            first, sweep = record.sweeps[i]
            if received.dtype is sweep.value.dtype and records(received, *sweep.shared):
                slot = record.steps[first].slots[0]
                cotangents[slot] = add(cotangents[slot], sweep.vjp(received))
                continue
        if i in record.folded:
            record.unfold(i)
        saved = record.saved[i]
        if alike and (step.rule == "fallback" or saved[0] == "rule"):
            saved, (received,) = meet(record, i, (received,), (record.shapes[i + 1],))
        _pull_step(step, saved, received, stacked, cotangents)
    return cotangents[0]


def _pull_step(step: Step, saved: Any, cotangent: Any, stacked: bool, cotangents: list[Any]) -> None:
    """Add the cotangents of a step's operands to those of the values they are."""
    if step.rule == "fallback":
        slots = tuple(dict.fromkeys(step.slots))
        results = saved.vjp(cotangent, stacked)
    elif saved[0] == "item":
        _, item, size = saved
        parts = list(cotangents[step.slots[0]] or [None] * size)
        parts[item] = add(parts[item], cotangent)
        cotangents[step.slots[0]] = parts
        return
    else:
        slots = step.slots
        results = RULES[step.rule].vjp(saved[1], cotangent, stacked, tuple(slot >= 0 for slot in slots))
    for slot, result in zip(slots, results, strict=True):
        if slot >= 0 and result is not None:
            cotangents[slot] = add(cotangents[slot], result)


def vector_size(record: Record, index: int, forward: bool) -> int:
    """Numbers held at once while one tangent goes to value ``index``, or one cotangent comes from it."""
    sizes = [_numbers(shape) for shape in record.shapes]
    active = [tuple({slot for slot in step.slots if slot >= 0}) for step in record.steps[:index]]
    order = range(index) if forward else range(index - 1, -1, -1)
    last = {slot: i for i, slots in enumerate(active) for slot in slots}
    alive = {0 if forward else index}
    peak = sizes[0 if forward else index]
    for i in order:
        made = (i + 1,) if forward else active[i]
        if not active[i] or not (forward or i + 1 in alive):
            continue
        alive.update(made)
        scratch = max(sizes[made_index] for made_index in made)
        peak = max(peak, sum(sizes[alive_index] for alive_index in alive) + scratch)
        alive -= {slot for slot in active[i] if last[slot] == i and slot != index} if forward else {i + 1}
    return peak


def value_size(record: Record) -> int:
    """Numbers of all values: what a graph keeps of one tangent, at least."""
    return sum(map(_numbers, record.shapes))


def _numbers(shape: Any) -> int:
    return sum(map(math.prod, tensor_shapes(shape)))


def add(a: Any, b: Any) -> Any:
    """a + b, None for zero; part by part where they are tuples."""
    if a is None or b is None:
        return b if a is None else a
    return a + b if isinstance(a, Tensor) else tuple(add(p, q) for p, q in zip(a, b, strict=True))


def keeps_samples(record: Record, i: int) -> bool:
    """Whether sample n of step i's value is made of sample n of its operands, by the look of the shapes."""
    step, saved = record.steps[i], record.saved[i]
    if step.rule == "fallback":
        return False
    operands = tuple(record.shapes[slot] if slot >= 0 else None for slot in step.slots)
    for shape in (*(record.shapes[slot] for slot in step.slots if slot >= 0), record.shapes[i + 1]):
        parts = tensor_shapes(shape)
        if not parts or any(part[:1] != (record.batch,) for part in parts):
            return False
    return saved[0] == "item" or RULES[step.rule].keeps_samples(saved[1], operands, record.shapes[i + 1])


def meet(record: Record, i: int, given: tuple, shapes: tuple) -> tuple[Any, tuple]:
    """Step i's saved values for a batch of one where that serves all samples; else what is given, expanded."""
    step, saved = record.steps[i], record.saved[i]
    if keeps_samples(record, i) and all(_of_one(t, shape) for t, shape in zip(given, shapes, strict=True)):
        if saved[0] == "item":
            return saved, given
        single = RULES[step.rule].of_one_sample(saved[1], tuple(slot >= 0 for slot in step.slots))
        if single is not None:
            return ("rule", single), given
    return saved, tuple(expanded(t, shape) for t, shape in zip(given, shapes, strict=True))


def _of_one(t: Any, shape: Any) -> bool:
    if isinstance(t, (tuple, list)):
        return all(_of_one(part, own) for part, own in zip(t, shape, strict=True))
    return t is None or t.shape[1] != shape[0]


def expanded(t: Any, shape: Any) -> Any:
    """A stack [K, 1, ...] seen as [K, *shape]; others as they are."""
    if isinstance(t, (tuple, list)):
        return tuple(expanded(part, own) for part, own in zip(t, shape, strict=True))
    return t if t is None or t.shape[1:] == shape else t.expand(t.shape[0], *shape)
