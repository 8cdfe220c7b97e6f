"""A chain's value and its vector-Jacobian products: one autograd node each, whose backward is written out.

What is kept between the sweeps: the keys, and for a product the cotangents at its activations. The value in front of
a weight, and the cotangent behind it, are made again from those where their outer product is taken, in passes that are
needed anyway; in backward without retain_graph=True each is given up once it was used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisherkernels.ops._autograd import again, ordinary, will_run

from .chain_pieces import Affine, Move, Piece, Unfit, pays


class Chain:
    """``slots``: where each piece's parameters are among the flat list of those, -1 for None; behind them come the
    constants of moves, once these have been evaluated.
    """

    def __init__(self, pieces: list[Piece], slots: list[tuple[int, ...]]):
        self.pieces, self.slots = pieces, slots
        self.constants: list[Tensor] = []

    def parameters(self, i: int, flat: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(flat[slot] if slot >= 0 else None for slot in self.slots[i])

    def take(self, i: int, flat: list[Tensor]) -> None:
        """Put the constants of piece i, if it is a move, at the end of the flat list."""
        piece = self.pieces[i]
        if isinstance(piece, Move):
            constants = piece.give_up_constants()
            self.slots[i] = tuple(range(len(flat), len(flat) + len(constants)))
            flat += constants

    def cut(self, i: int) -> None:
        """End it before piece i.

        Raises:
            Unfit: it is not worth while then, and nothing was drawn that its steps would draw again.
        """
        del self.pieces[i:], self.slots[i:]
        if not (pays([piece.role for piece in self.pieces]) or any(piece.draws for piece in self.pieces)):
            raise Unfit

    def for_products(self) -> tuple[Chain, list[int]]:
        """The same with the parameters of products alone, and where these were: no product has a weight's bias."""
        used = [
            slot if slot >= 0 and not (isinstance(piece, Affine) and j > 0) else -1
            for piece, slots in zip(self.pieces, self.slots, strict=True)
            for j, slot in enumerate(slots)
        ]
        chosen = sorted(set(used) - {-1})
        new = iter(-1 if slot < 0 else chosen.index(slot) for slot in used)
        return Chain(self.pieces, [tuple(next(new) for _ in slots) for slots in self.slots]), chosen

    @property
    def front(self) -> int:
        """1 where the first key is the chain's own input, else 0."""
        return int(self.pieces[0].keyed)

    @property
    def keys(self) -> int:
        """How many more there are."""
        return sum(piece.keyed for piece in self.pieces) - self.front

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Sequence[Tensor]]:
        """All keys, and the parameters."""
        count = self.front + self.keys
        return list(tensors[:count]), tensors[count:]

    @property
    def ends_with_key(self) -> bool:
        last = self.pieces[-1]
        return last.keyed and last.by_value


class ChainSweep(NamedTuple):
    """``chain``: as products take it; ``shared``: the keys, the input or outputs of the value's node, and the products'
    parameters; ``constants``: of moves.
    """

    value: Tensor
    chain: Chain
    shared: tuple[Tensor, ...]
    constants: list[Tensor]

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T c."""
        return _Product.apply(self.chain, cotangent, *self.shared)


def sweep(chain: Chain, x: Tensor, parameters: Sequence[Tensor]) -> ChainSweep:
    """The chain's value at x; cut before a piece that cannot take what comes.

    Raises:
        Unfit: nothing worth while is left.
    """
    results = _Value.apply(chain, x, *parameters)
    # Behind a view, so that its hooks run only where it has a gradient of its own.
    keyed = (piece for piece in chain.pieces if piece.keyed)
    keys = (*(x,) * chain.front, *results[: chain.keys])
    keys = tuple(key if piece.role else key.detach() for piece, key in zip(keyed, keys, strict=True))
    constants, chain.constants = chain.constants, []
    products, chosen = chain.for_products()
    flat = [*parameters, *constants]
    shared = (*keys, *(flat[slot] for slot in chosen))
    return ChainSweep(results[-1].view_as(results[-1]), products, shared, constants)


def _without_autocast(backward: Callable) -> Callable:
    """The sweep's own dtype also where backward is called under autocast."""

    @wraps(backward)
    def run(ctx, *received):
        if not torch.is_autocast_enabled("cpu"):
            return backward(ctx, *received)
        with torch.autocast("cpu", enabled=False):
            return backward(ctx, *received)

    return run


class _Value(torch.autograd.Function):
    """-> the keys but for x, and the value where it is not the last of these."""

    @staticmethod
    def forward(ctx, chain, x, *parameters):
        keys, y, flat = [], x, list(parameters)
        for i, piece in enumerate(chain.pieces):
            try:
                y, key = piece.value(y, *chain.parameters(i, flat))
            except Unfit:
                chain.cut(i)
                break
            chain.take(i, flat)
            piece.shape = tuple(y.shape)
            if piece.keyed and i:
                keys.append(key)
        ctx.chain, chain.constants = chain, flat[len(parameters) :]
        ctx.count = len(flat)
        ctx.save_for_backward(x, *flat, *keys)
        ctx.set_materialize_grads(False)
        return tuple(keys) if chain.ends_with_key else (*keys, y)

    @staticmethod
    @_without_autocast
    def backward(ctx, *received):
        chain, count, inputs = ctx.chain, ctx.count, len(ctx.needs_input_grad)
        asked = [*_asked(ctx, inputs - 2), *[False] * (count - inputs + 2)]
        x, *saved = ctx.saved_tensors
        parameters, keys = saved[:count], [*[x] * chain.front, *saved[count:]]
        if not ordinary(received):
            return None, *again(partial(_plain_value, chain), (x, *parameters), received)[: inputs - 1]
        _release(ctx)
        del saved
        of_keys = [*[None] * chain.front, *received[: chain.keys]]
        g = None if chain.ends_with_key else received[-1]
        found, behind = _Found(chain, parameters, asked[1:]), _Behind()
        for i in range(len(chain.pieces) - 1, -1, -1):
            piece, given = chain.pieces[i], chain.parameters(i, parameters)
            if isinstance(piece, Affine):
                if g is None:
                    continue
                if found.asks(i, 1):
                    found.add(i, 1, piece.bias_gradient(g))
                if found.asks(i, 0):
                    behind.wait(i, g)
                g = piece.pull(g, None, *given) if i or asked[0] else None
            elif isinstance(piece, Move):
                g = None if g is None else piece.pull(g, None, *given)
                behind.moves.append((piece, given))
            else:
                key, more = keys.pop(), of_keys.pop()
                if g is None and more is None:
                    continue
                g, y, to_parameters = piece.gradient(g, more, key, behind.index is not None, *given)
                behind.arrive(found, y)
                for j, part in enumerate(to_parameters):
                    found.add(i, j, part)
        behind.arrive(found, x)
        return None, g if asked[0] else None, *found.gradients[: inputs - 2]


class _Product(torch.autograd.Function):
    """(cotangent, keys, parameters) -> J^T cotangent."""

    @staticmethod
    def forward(ctx, chain, cotangent, *tensors):
        keys, parameters = chain.split(tensors)
        kept, c = [], cotangent
        for i in range(len(chain.pieces) - 1, -1, -1):
            piece = chain.pieces[i]
            key = None
            if piece.keyed:
                key = keys.pop()
                kept.append(c)
            c = piece.pull(c, key, *chain.parameters(i, parameters))
        ctx.chain = chain
        ctx.save_for_backward(cotangent, *tensors, *kept)
        ctx.set_materialize_grads(False)
        return c.view_as(c) if c is cotangent else c

    @staticmethod
    @_without_autocast
    def backward(ctx, t):
        chain = ctx.chain
        if t is None:
            return (None,) * len(ctx.needs_input_grad)
        asked = _asked(ctx, len(ctx.needs_input_grad) - 2 - chain.front - chain.keys)
        cotangent, *saved = ctx.saved_tensors
        tensors, kept = saved[: len(asked) - 1], saved[len(asked) - 1 :]
        if not ordinary((t,)):
            return None, *again(partial(_plain_product, chain), (cotangent, *tensors), (t,))
        _release(ctx)
        del saved
        keys, parameters = chain.split(tensors)
        to_keys: list[Tensor | None] = []
        found, before = _Found(chain, parameters, asked[1 + len(keys) :]), _Before()
        for i, piece in enumerate(chain.pieces):
            given = chain.parameters(i, parameters)
            if isinstance(piece, Affine):
                if found.asks(i, 0):
                    before.wait(i, t)
                if not asked[0] and i == len(chain.pieces) - 1:
                    break  # J t would be the cotangent's gradient alone
                t = piece.push(t, given[0])
            elif isinstance(piece, Move):
                t = piece.push(t, *given)
                before.moves.append((piece, given))
            else:
                t, to_key, c, to_parameters = piece.push(t, kept.pop(), keys[len(to_keys)], *given)
                to_keys.append(to_key)
                before.arrive(found, c)
                for j, part in enumerate(to_parameters):
                    found.add(i, j, part)
        before.arrive(found, cotangent)
        return None, t if asked[0] else None, *to_keys, *found.gradients


class _Found:
    """Gradients of the parameters that are asked for, added up where one is used twice."""

    def __init__(self, chain: Chain, parameters: Sequence[Tensor], asked: Sequence[bool]):
        self.chain, self.parameters, self.asked = chain, parameters, asked
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def asks(self, i: int, j: int) -> bool:
        """Whether piece i's parameter j is to get a gradient."""
        slot = self.chain.slots[i][j]
        return slot >= 0 and self.asked[slot]

    def add(self, i: int, j: int, part: Tensor | None) -> None:
        """A gradient of that, where it is asked for."""
        if part is not None and self.asks(i, j):
            slot = self.chain.slots[i][j]
            so_far = self.gradients[slot]
            self.gradients[slot] = part if so_far is None else so_far + part


class _Waiting:
    """A weight, one of whose gradient's factors is known, and the moves between it and the other one."""

    def __init__(self):
        self.index: int | None = None
        self.factor: Tensor | None = None
        self.moves: list[tuple[Move, tuple]] = []

    def wait(self, index: int, factor: Tensor) -> None:
        self.index, self.factor, self.moves = index, factor, []

    def finish(self, found: _Found, x: Tensor, g: Tensor) -> None:
        i, chain = self.index, found.chain
        weight = chain.parameters(i, found.parameters)[0]
        found.add(i, 0, chain.pieces[i].weight_gradient(x, g, weight))
        self.index = self.factor = None


class _Behind(_Waiting):
    """The value's backward: waits for what was in front of the weight."""

    def arrive(self, found: _Found, x: Tensor | None) -> None:
        if self.index is not None:
            for move, constants in reversed(self.moves):
                x = move.push(x, *constants)
            self.finish(found, x, self.factor)
        self.moves = []


class _Before(_Waiting):
    """The product's backward: waits for the cotangent behind the weight."""

    def arrive(self, found: _Found, c: Tensor) -> None:
        if self.index is not None:
            for move, constants in reversed(self.moves):
                c = move.pull(c, None, *constants)
            self.finish(found, self.factor, c)
        self.moves = []


def _asked(ctx: Any, parameters: int) -> list[bool]:
    """Which of a node's tensors are to get a gradient in this backward; the last ones, parameters, all that can where
    one of them is (to ask of a leaf takes an exception).
    """
    pairs = list(zip(ctx.needs_input_grad[1:], ctx.next_functions, strict=True))
    can = [needed and node is not None for needed, (node, _) in pairs]
    first = len(can) - parameters
    some = any(can[i] and will_run(pairs[i][1][0]) for i in range(first, len(can)))
    return [can[i] and (some if i >= first else will_run(pairs[i][1][0])) for i in range(len(can))]


def _release(ctx: Any) -> None:
    """Saved tensors are this backward's alone, unless the graph is to be kept."""
    if hasattr(ctx, "maybe_clear_saved_tensors"):
        ctx.maybe_clear_saved_tensors()


def _plain_value(chain: Chain, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    keys = []
    for i, piece in enumerate(chain.pieces):
        x, key = piece.plain(x, *chain.parameters(i, parameters))
        if piece.keyed and i:
            keys.append(key)
    return tuple(keys) if chain.ends_with_key else (*keys, x)


def _plain_product(chain: Chain, c: Tensor, *tensors: Tensor) -> tuple[Tensor]:
    keys, parameters = chain.split(tensors)
    for i in range(len(chain.pieces) - 1, -1, -1):
        piece, given = chain.pieces[i], chain.parameters(i, parameters)
        c = piece.plain_pull(c, keys.pop(), *given) if piece.keyed else piece.pull(c, None, *given)
    return (c,)
