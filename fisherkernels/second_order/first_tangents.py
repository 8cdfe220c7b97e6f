"""Where a sweep of tangents starts: past the first Linear layers, with no more tangents than those have units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fisherkernels.linearize.last_linear import same_content
from fisherkernels.linearize.rules import RULES
from fisherkernels.linearize.walk import Record, keeps_samples, meet
from fisherkernels.ops._autograd import single_backward
from fisherkernels.second_order.sweep import active, curved, needed
from fisherkernels.transforms import inside_transform

if TYPE_CHECKING:
    from fisherkernels.linearize import Linearization

_WELL_CONDITIONED = {torch.float32: 1e-3, torch.float64: 1e-7}  # smallest over largest pivot


class Entry(NamedTuple):
    """A value that tangents start at, and the steps to it from the input: a Linear layer's, or the input itself."""

    index: int
    path: tuple[int, ...] = ()


def classes_of_entries(lin: Linearization, keep: bool) -> list[list[Entry]]:
    """Entries in classes that no second derivative connects: tangents of two classes never meet in a value whose
    tangents are needed (the output's, with ``keep``), nor in a curved step.
    """
    record, output = lin._record, lin._plan.output.index
    entries = _entries(record, output)
    sources = {entry.index: {entry} for entry in entries}
    used, wanted = needed(record, sources, output, keep)
    groups = [{entry} for entry in entries if entry.index in wanted]
    for i, step in enumerate(record.steps[:output]):
        if i + 1 in wanted:
            sources.setdefault(i + 1, set().union(*(sources.get(slot, ()) for slot in step.slots)))
            meeting = sources[i + 1]
        elif i + 1 in used and curved(record, i):
            meeting = set().union(*(sources.get(slot, ()) for slot in step.slots))
        else:
            continue
        joined = set().union(*(group for group in groups if group & meeting))
        groups = [group for group in groups if not group & meeting] + ([joined] if joined else [])
    return [sorted(group) for group in groups]


def count_of(lin: Linearization, members: list[Entry], n: int) -> int:
    """How many tangents a class needs where all n unit vectors are asked for."""
    if any(not entry.path for entry in members):
        return n
    return min(n, sum(lin._record.shapes[entry.index][1] for entry in members))


def first_tangents(lin: Linearization, members: list[Entry], x: Tensor, stack: Tensor | None) -> dict[int, Tensor]:
    """The tangents [K, 1 or N, ...] of a class's values. ``stack``: those of x; None for all unit vectors.

    Sums over tangents of second derivatives depend on sum_k t_k t_k^T only, and add up over classes, so that each has
    its own K: no more than its Linear layers have units; all of the input's where that is used otherwise.
    """
    tangents = [_pushed(lin, entry.path, stack, x) for entry in members]
    if all(entry.path for entry in members) and all(t.shape[1] == 1 for t in tangents):
        joint = compressed(torch.cat([t.squeeze(1) for t in tangents], 1))
        tangents = [t.unsqueeze(1) for t in joint.split([t.shape[2] for t in tangents], 1)]
    return {entry.index: t for entry, t in zip(members, tangents, strict=True)}


def _entries(record: Record, output: int) -> list[Entry]:
    """Linear layers that x [N, ...] reaches by steps whose Jacobian all samples share; x, if it goes anywhere else."""
    users: dict[int, list[int]] = {}
    for i, step in enumerate(record.steps[:output]):
        for slot in {slot for slot in step.slots if slot >= 0}:
            users.setdefault(slot, []).append(i)
    found = []

    def all_found(index: int, path: tuple[int, ...]) -> bool:
        if index == output:
            return False
        complete = True
        for i in users.get(index, ()):
            if record.steps[i].rule == "linear" and len(record.shapes[index]) == 2:
                found.append(Entry(i + 1, (*path, i)))
            else:
                complete = _alike(record, i) and all_found(i + 1, (*path, i)) and complete
        return complete

    return found if all_found(0, ()) else [Entry(0), *found]


def _alike(record: Record, i: int) -> bool:
    step, saved = record.steps[i], record.saved[i]
    if step.rule == "fallback" or saved[0] != "rule" or sum(active(step)) != 1 or not keeps_samples(record, i):
        return False
    return RULES[step.rule].of_one_sample(saved[1], active(step)) is not None


def _pushed(lin: Linearization, path: tuple[int, ...], t: Tensor | None, x: Tensor) -> Tensor:
    """Tangents of x, or all unit vectors (None), past the steps of a path."""
    record = lin._record
    for i in path:
        step, saved = record.steps[i], record.saved[i]
        if t is None and same_content(lin, i):
            continue
        if t is None and step.rule == "linear":
            t = saved[1][0].t().unsqueeze(1)  # [n, 1, h]
            continue
        (slot,) = (slot for slot in step.slots if slot >= 0)
        t = _unit_vectors(x, record.shapes[slot]) if t is None else t
        shapes = tuple(record.shapes[slot] if slot >= 0 else None for slot in step.slots)
        saved, given = meet(record, i, tuple(t if is_active else None for is_active in active(step)), shapes)
        t = RULES[step.rule].jvp(saved[1], given, True)
    return _unit_vectors(x, x.shape) if t is None else t


def _unit_vectors(x: Tensor, shape) -> Tensor:
    n = math.prod(x.shape[1:])
    return torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *shape[1:])


def compressed(t: Tensor) -> Tensor:
    """At most h tangents with the sum over k of t_k t_k^T of given ones [K, h], which is all that second derivatives
    summed over them depend on.
    """
    if t.shape[0] <= t.shape[1]:
        return t
    if not torch.compiler.is_compiling() and not inside_transform():
        factor, failed = torch.linalg.cholesky_ex(t.detach().t() @ t.detach())
        pivots = factor.diagonal()
        if not failed and pivots.amin() > _WELL_CONDITIONED[t.dtype] * pivots.amax():
            return _CholeskyTangents.apply(t, factor)
    # t loses nothing along these directions. What a change of t adds across them enters squared, so that they may be
    # constants of the gradient.
    directions, _ = torch.linalg.qr(t.detach())  # [K, h]
    return directions.t() @ t


class _CholeskyTangents(torch.autograd.Function):
    """L^T of t^T t = L L^T, for functions of that product only: their gradient for L^T is 2 L^T S, S symmetric, for t
    it is 2 t S.
    """

    @staticmethod
    def forward(ctx, t: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(t, factor)
        return factor.t().contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor):
        t, factor = ctx.saved_tensors
        with torch.no_grad():
            to_t = t @ torch.linalg.solve_triangular(factor.t(), grad, upper=True)
        return *single_backward("laplacian", (True,), (to_t,), (grad, t)), None
