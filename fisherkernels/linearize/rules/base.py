"""What a rule is, and the helpers that let one rule serve a single cotangent and a stack of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Rule:
    """Value, Jacobian-vector and vector-Jacobian product of one operation, in differentiable tensor operations.

    ``forward(*args, **kwargs)`` takes what the torch function takes and returns ``(value, saved)``.
    ``vjp(saved, cotangent, stacked, needs)`` returns one cotangent per slot; ``needs`` says which slots depend on
    the input, the others may be None. ``jvp(saved, tangents, stacked)`` takes one tangent per slot, None where the
    slot does not depend on the input. ``stacked`` says that a leading dimension K runs over several cotangents or
    tangents. ``curvature(saved, tangents)`` sums the second derivatives along the tangents of a stack. Saved values are
    plain tuples, so that torch.compile can follow them.
    """

    uses_batch_statistics = False  # forward takes the keyword ``frozen``
    traffic = 3  # elements that a product reads and writes, per element of the value; 0 for a view or a matmul

    def slots(self, args: tuple) -> tuple:
        """The operands that may depend on the input, in the order of ``vjp``'s results."""
        return args[:1]

    def accepts(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the rule covers a call with these arguments (operands are seen as placeholders)."""
        return True

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, tuple]:
        raise NotImplementedError

    def vjp(self, saved: tuple, cotangent: Tensor, stacked: bool, needs: tuple) -> tuple:
        raise NotImplementedError

    def jvp(self, saved: tuple, tangents: tuple, stacked: bool) -> Tensor:
        raise NotImplementedError

    def curved(self, active: tuple) -> bool:
        """Whether there is a ``curvature``, where the slots ``active`` depend on the input: False for operations that
        are linear, or piecewise so.
        """
        return False

    def curvature(self, saved: tuple, tangents: tuple) -> Tensor:
        """sum_k D^2 f[t_k, t_k] over a stack of K tangents, shape of the value: see ``jvp`` for ``tangents``."""
        raise NotImplementedError

    def couples_samples(self, saved: tuple) -> bool:
        """Whether a sample's value depends on the others of its batch."""
        return False

    def keeps_samples(self, saved: tuple, operands: tuple, value: tuple) -> bool:
        """Whether samples stay apart along the first dimension, where these shapes agree in its size; ``operands``: one
        per slot, None where it does not depend on the input.
        """
        return True

    def of_one_sample(self, saved: tuple, active: tuple) -> tuple | None:
        """What ``vjp`` and ``jvp`` need for a batch of one; None where the Jacobian differs between samples.

        ``active`` says which slots depend on the input.
        """
        return None

    def flops(self, saved: tuple, operand: float, value: float) -> float:
        """Operations (two per multiply-add) of one product, given the sizes of the operand and the value."""
        return 0.0


class Layer(NamedTuple):
    """How a module calls a rule: ``arguments(module, read)`` follow the input, ``read(name)`` gives a parameter."""

    rule: str
    arguments: Callable[[nn.Module, Callable[[str], Tensor | None]], tuple] = lambda module, read: ()
    accepts: Callable[[nn.Module], bool] = lambda module: True


class SymmetricRule(Rule):
    """A rule of one operand whose Jacobian equals its transpose: elementwise functions, and BatchNorm."""

    def apply(self, saved: tuple, t: Tensor, stacked: bool) -> Tensor:
        raise NotImplementedError

    def vjp(self, saved: tuple, cotangent: Tensor, stacked: bool, needs: tuple) -> tuple:
        return (self.apply(saved, cotangent, stacked),)

    def jvp(self, saved: tuple, tangents: tuple, stacked: bool) -> Tensor:
        return self.apply(saved, tangents[0], stacked)


class ElementwiseRule(SymmetricRule):
    """A smooth function of every element: J is the diagonal a'(x), the second derivative the diagonal a''(x)."""

    def slopes(self, saved: tuple) -> tuple[Tensor, Tensor]:
        """a' and a'', shape of the value."""
        raise NotImplementedError

    def apply(self, saved: tuple, t: Tensor, stacked: bool) -> Tensor:
        return self.slopes(saved)[0] * t

    def curved(self, active: tuple) -> bool:
        return True

    def curvature(self, saved: tuple, tangents: tuple) -> Tensor:
        return self.slopes(saved)[1] * tangents[0].square().sum(0)


def fold(function: Callable[[Tensor], Tensor], t: Tensor, stacked: bool) -> Tensor:
    """``function`` over a batch dimension; a stack [K, N, ...] goes through as one batch of K*N."""
    if not stacked:
        return function(t)
    out = function(t.flatten(0, 1))  # [K*N, ...]
    return out.unflatten(0, (t.shape[0], t.shape[1]))


def lead(t: Tensor, stacked: bool) -> tuple[int, ...]:
    """(K,) for a stack, () for a single one."""
    return (t.shape[0],) if stacked else ()


def behind(dim: int, stacked: bool) -> int:
    """The dimension ``dim`` of the unstacked tensor, counted in a stack."""
    return dim + 1 if stacked and dim >= 0 else dim
