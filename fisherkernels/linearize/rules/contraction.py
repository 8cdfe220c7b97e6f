"""Products of tensors that sum over shared indices: einsum, and matmul in its terms."""

from __future__ import annotations

import operator
from itertools import combinations

import torch
from torch import Tensor

from .base import Rule

_LETTERS = "abcdefghijklmnopqrstuvwxy"
_STACK = "z"  # the index of a stack of tangents


class Einsum(Rule):
    """y = einsum(equation, *operands), linear in each: J t puts t in the operand's place, J^T c contracts c with the
    other operands, D^2 y[t, t] puts tangents in two places.
    """

    traffic = 0

    def slots(self, args):
        return args[1] if type(args[1]) is tuple else args[1:]

    def accepts(self, equation, *operands):
        if not isinstance(equation, str) or "." in equation or _STACK in equation:
            return False
        terms, _ = _parsed(equation)
        return all(len(set(term)) == len(term) for term in terms)  # no diagonals

    def forward(self, equation: str, *operands):
        operands = operands[0] if isinstance(operands[0], (tuple, list)) else operands
        terms, result = _parsed(equation)
        return torch.einsum(equation, *operands), _saved(terms, result, operands)

    def jvp(self, saved, tangents, stacked):
        terms, result, operands, _ = saved
        total = None
        for i, t in enumerate(tangents):
            if t is not None:
                part = _contracted(terms, result, operands, {i: t}, stacked, stacked)
                total = part if total is None else total + part
        return total

    def vjp(self, saved, cotangent, stacked, needs):
        terms, result, operands, sizes = saved
        results = []
        for i, need in enumerate(needs):
            if not need:
                results.append(None)
                continue
            others = [(term, part) for j, (term, part) in enumerate(zip(terms, operands, strict=True)) if j != i]
            kept = _kept(i, terms, result, sizes)
            front = _STACK * stacked
            equation = ",".join([front + result, *(term for term, _ in others)]) + "->" + front + kept
            c = torch.einsum(equation, cotangent, *(part for _, part in others))
            lead = c.shape[: int(stacked)]
            pulled = c.reshape(*lead, *(size if letter in kept else 1 for letter, size in sizes[i].items()))
            results.append(pulled.expand(*lead, *sizes[i].values()))
        return tuple(results)

    def curved(self, active):
        return sum(active) > 1

    def curvature(self, saved, tangents):
        terms, result, operands, _ = saved
        total = None
        for i, j in combinations([i for i, t in enumerate(tangents) if t is not None], 2):
            part = _contracted(terms, result, operands, {i: tangents[i], j: tangents[j]}, True, False)
            total = part if total is None else total + part
        return 2 * total

    def keeps_samples(self, saved, operands, value):
        terms, result = saved[:2]
        active = [term for term, shape in zip(terms, operands, strict=True) if shape is not None]
        return all(result[:1] == term[:1] for term in active)

    def of_one_sample(self, saved, active):
        terms, result, operands, sizes = saved
        constant = [i for i, is_active in enumerate(active) if not is_active]
        if len(constant) < len(terms) - 1 or any(sizes[i].get(result[0], 1) > 1 for i in constant):
            return None
        return terms, result, operands, tuple({**size, result[0]: 1} if result[0] in size else size for size in sizes)

    def flops(self, saved, operand, value):
        sizes = {}
        for own in saved[3]:
            for letter, size in own.items():
                sizes[letter] = max(size, sizes.get(letter, 1))
        summed = set(sizes) - set(saved[1])
        work = 2.0 * value
        for letter in summed:
            work *= sizes[letter]
        return work


def _parsed(equation: str) -> tuple[list[str], str]:
    """The operands' indices and the value's; those that occur once, in alphabetical order, where no arrow is."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return left.split(","), result


def _kept(i: int, terms, result: str, sizes) -> str:
    """Indices along which an operand's cotangent varies: not one that is summed over in it alone (the cotangent is
    the same along it), nor one of size 1 that was repeated (its cotangents add up).
    """
    others = [size for j, size in enumerate(sizes) if j != i]
    return "".join(
        letter
        for letter, size in sizes[i].items()
        if all(other.get(letter, 1) <= size for other in others)
        and (letter in result or any(other.get(letter) == size for other in others))
    )


def _saved(terms: list[str], result: str, operands) -> tuple:
    sizes = tuple(dict(zip(term, part.shape, strict=True)) for term, part in zip(terms, operands, strict=True))
    return tuple(terms), result, tuple(operands), sizes


def _contracted(terms, result, operands, tangents: dict, stacked: bool, kept: bool) -> Tensor:
    """The product with tangents in some operands' places, their stack kept or summed over."""
    front = _STACK * stacked
    left = ",".join(front + term if i in tangents else term for i, term in enumerate(terms))
    parts = (tangents.get(i, operand) for i, operand in enumerate(operands))
    return torch.einsum(f"{left}->{_STACK * kept}{result}", *parts)


class Matmul(Einsum):
    """y = a b, with vectors and broadcasting as in torch.matmul."""

    def slots(self, args):
        return args[:2]

    def accepts(self, input, other):
        return True

    def forward(self, input: Tensor, other: Tensor):
        value = torch.matmul(input, other)
        rows, columns = input.dim() > 1, other.dim() > 1
        batch = max(input.dim() - 2, other.dim() - 2, 0)
        a = _LETTERS[batch - max(input.dim() - 2, 0) : batch] + "u" * rows + "w"
        b = _LETTERS[batch - max(other.dim() - 2, 0) : batch] + "w" + "v" * columns
        return value, _saved([a, b], _LETTERS[:batch] + "u" * rows + "v" * columns, (input, other))


RULES = {"einsum": Einsum(), "matmul": Matmul()}
FUNCTIONS = {
    torch.einsum: "einsum",
    operator.matmul: "matmul",
    torch.matmul: "matmul",
    torch.mm: "matmul",
    torch.bmm: "matmul",
    torch.mv: "matmul",
}
METHODS = {name: "matmul" for name in ("matmul", "mm", "bmm", "mv")}
MODULES: dict = {}
