"""Value and vector-Jacobian products of a multi-layer perceptron, all layers of a sweep in one operator."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fisherkernels.ops._mlp_operators  # noqa: F401  (defines them)
from fisherkernels.ops._autograd import again, below_autograd, ordinary, will_run
from fisherkernels.ops._checks import (
    check_activations,
    check_full_precision,
    check_layers,
    check_matrix,
    check_same_shape,
    check_tensor,
)
from fisherkernels.ops._mlp_graph import graph_value, graph_vjp, in_graph
from fisherkernels.ops._mlp_plain import (
    CURVED,
    NOT_LAST,
    SWEEP_ACTIVATIONS,
    Constants,
    arrived,
    by_layer,
    columns_of,
    drawn_mask,
    plain_value,
    plain_vjp,
    product_parts,
    rows_of_kinds,
)
from fisherkernels.transforms import plainly_eager


class MLPSweep(NamedTuple):
    """What :func:`mlp_sweep` returns.

    Attributes:
        value: [N, m].
        hidden: what derivatives of the activations follow from, each [N, h_l]: what they gave, behind dropout (the
            last one is the value where one is behind all weights), but what they were given for "silu", "elu",
            "softplus" and "gelu".
        masks: of the dropouts, each [N, h_l], False where they set 0.
    """

    value: Tensor
    hidden: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    constants: Constants
    shared: tuple[Tensor, ...]  # hidden, padded, and the weights, as outputs of the value's node, and masks, padded

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T c, [N, h_0], for c [N, m].

        Raises:
            TypeError: ``cotangent`` is no tensor, or of another dtype than the value.
            ValueError: it has another shape or device.
        """
        check_tensor("mlp_sweep", "cotangent", cotangent, self.value)
        check_same_shape("mlp_sweep", "cotangent", cotangent, "the value", self.value)
        sweep = _chosen(cotangent, _VJP.apply, graph_vjp, plain_vjp)
        return sweep(self.constants, cotangent, *self.shared)


def mlp_sweep(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    negative_slopes: Sequence[float] | None = None,
    dropout: Sequence[float] | None = None,
) -> MLPSweep:
    r"""Linear, activation, ..., Linear (and a last activation) at x, and its vector-Jacobian products there.

    Forward y_l = a(u_l), u_l = y_(l-1) W_l^T + b_l; the product c_(l-1) = (c_l a'(u_l)) W_l. With dropout behind it
    m a(u_l) / (1 - p) stands in the activation's place, the mask m drawn once, by torch's generator. Each is one
    autograd node, and so is its backward: J t for the product, with the gradients of the weights as products of its two
    sweeps; the value's then adds its own gradients of the weights to those, in place (in graphs of torch.compile, in
    new tensors).
    Floor: 2 N Σ h_(l-1) h_l FLOPs for each of the two, twice that for each backward. Saved for backward: x, the hidden
    values (of "silu", "elu", "softplus" and "gelu" what these gave too), masks as bytes, and for a product its
    cotangents.

    Args:
        x: [N, h_0].
        weights: W_l, [h_l, h_(l-1)]; one at least.
        biases: b_l, [h_l], or None.
        activations: "tanh", "sigmoid", "relu" or "leaky_relu", behind each of the weights, or each but the last;
            "silu", "elu" (alpha 1), "softplus" (beta 1, linear above 20) or "gelu" (exact) behind any but the last.
        negative_slopes: of "leaky_relu", one per activation (0 or more); 0.01 where None.
        dropout: p of the dropout behind each activation, 0 <= p < 1; 0 where None. On a CPU the draw is that of
            ``F.dropout``.

    Returns:
        :class:`MLPSweep`: differentiable as often as needed, its ``vjp`` as well; backward with ``create_graph=True``
        evaluates the network again.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, mixed devices, another activation, a negative slope below 0,
            dropout of 1 or more.

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 11, whose terms are such products; their backward
    passes are derived by hand.
    """
    name = "mlp_sweep"
    check_full_precision(name, "x", x, "autocast networks are swept layer by layer")
    check_matrix(name, "x", x)
    slopes = [0.01] * len(activations) if negative_slopes is None else [float(slope) for slope in negative_slopes]
    dropout = [0.0] * len(activations) if dropout is None else [float(p) for p in dropout]
    count = len(weights)
    matched = len(biases) == count and len(activations) in (count, count - 1)
    if not (count and matched and len(slopes) == len(dropout) == len(activations)):
        raise ValueError(
            f"{name}: expected as many weights, biases and activations (or one activation less), and a negative slope "
            f"and a dropout for each activation, got {count}, {len(biases)}, {len(activations)}, {len(slopes)} and "
            f"{len(dropout)}"
        )
    check_layers(name, x, x.shape[1], weights, biases)
    check_activations(name, activations, SWEEP_ACTIVATIONS)
    if len(activations) == count and activations[-1] in NOT_LAST:
        others = ", ".join(kind for kind in SWEEP_ACTIVATIONS if kind not in NOT_LAST)
        raise ValueError(f"{name}: behind the last weight activations must be one of {others}, got {activations[-1]!r}")
    for i, slope in enumerate(slopes):
        if not slope >= 0:
            raise ValueError(f"{name}: negative_slopes[{i}] must be 0 or more, got {slope}")
    for i, p in enumerate(dropout):
        if not 0 <= p < 1:
            raise ValueError(f"{name}: dropout[{i}] must be at least 0 and less than 1, got {p}")
    kinds = [SWEEP_ACTIVATIONS.index(kind) for kind in activations]
    return unchecked_sweep(x, weights, biases, kinds, slopes, dropout)


def unchecked_sweep(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    kinds: list[int],
    slopes: list[float],
    dropout: list[float],
) -> MLPSweep:
    """:func:`mlp_sweep` of what is known to go together; activations by their number."""
    count, active = len(weights), len(kinds)
    constants = Constants(kinds, slopes, [1 / (1 - p) if p else 0.0 for p in dropout])
    widths = [weight.shape[0] for weight, p in zip(weights, dropout, strict=False) if p]
    masks = tuple(drawn_mask(x, width, p) for width, p in zip(widths, filter(None, dropout), strict=True))
    sweep = _chosen(x, _Value.apply, graph_value, plain_value)
    results = sweep(constants, count, x, *weights, *biases, *masks)
    rows = [columns_of(h, w.shape[0]) for h, w in zip(results, weights, strict=False)]
    # Behind a view, so that its hooks run only where it has a gradient of its own.
    value = rows[-1].contiguous() if rows[-1] is not results[count - 1] else rows[-1].view_as(rows[-1])
    return MLPSweep(
        value,
        tuple(rows[:active]),
        tuple(map(columns_of, masks, widths)),
        constants,
        (*results[:active], *results[count:], *masks),
    )


def _chosen(x: Tensor, eager: Callable, graph: Callable, plain: Callable) -> Callable:
    if plainly_eager():
        return eager
    return graph if in_graph(x) else plain


class _Value(torch.autograd.Function):
    """-> each activation's key, padded, and the value where none is behind the last weight, then the weights again:
    their gradients in a product come through here.
    """

    @staticmethod
    def forward(ctx, constants, count, x, *parameters):
        weights, biases, masks = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
        biases = [x.new_empty(0) if bias is None else bias for bias in biases]
        op = torch.ops.fisherkernels.mlp_value.default
        value, rows, beside = below_autograd(op, x, weights, biases, *constants, masks)
        ctx.constants, ctx.count = constants, count
        ctx.save_for_backward(x, *parameters, *rows, *beside)
        if len(rows) < count:
            rows.append(value)
        ctx.set_materialize_grads(False)
        return *rows, *(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx, *received):
        count, active, needs = ctx.count, len(ctx.constants.kinds), ctx.needs_input_grad[2:]
        x, *others = ctx.saved_tensors
        taken = len(needs) - 1  # weights, biases, masks
        parameters, hidden, beside = others[:taken], others[taken:][:active], others[taken + active :]
        if not ordinary(received):
            function = partial(plain_value, ctx.constants, count)
            return None, None, *again(function, (x, *parameters), received)
        of_rows, given = received[:count], received[count:]  # given: made by a product's backward for this node alone
        top, by_hidden = arrived(of_rows, hidden)
        if top == 0:
            return None, None, None, *given, *[None] * (taken - count)
        weights = parameters[:top]
        to_weights, add = [], False
        if _trains(ctx):
            add = any(part is not None for part in given[:top])
            make = partial(torch.zeros_like if add else torch.empty_like, memory_format=torch.contiguous_format)
            to_weights = [make(w) if g is None else g.contiguous() for w, g in zip(weights, given, strict=False)]
        gradient = columns_of(of_rows[top - 1], weights[-1].shape[0])
        constants = ctx.constants.below(top)
        to_biases = [x.new_empty(w.shape[0]) for w in to_weights]
        to_x = below_autograd(
            torch.ops.fisherkernels.mlp_value_backward.default,
            gradient, by_hidden, x, hidden[: len(constants.kinds)], beside, weights, *constants,
            parameters[2 * count :][: constants.masks()], to_weights, to_biases, add, needs[0],
        )  # fmt: skip
        behind = [None] * (taken - count - top)
        results = [to_x, *(to_weights or [None] * top), *given[top:], *(to_biases or [None] * top), *behind]
        return None, None, *(part if needed else None for part, needed in zip(results, needs, strict=True))


class _VJP(torch.autograd.Function):
    """(cotangent, the activations' keys, weights, masks) -> J^T cotangent."""

    @staticmethod
    def forward(ctx, constants, cotangent, *tensors):
        hidden, weights, masks = product_parts(constants, tensors)
        op = torch.ops.fisherkernels.mlp_vjp.default
        pulled, before, behind = below_autograd(op, cotangent, hidden, weights, *constants, masks)
        ctx.constants = constants
        ctx.save_for_backward(cotangent, *tensors, *before, *behind)
        ctx.set_materialize_grads(False)
        return pulled

    @staticmethod
    def backward(ctx, tangent):
        constants, inputs = ctx.constants, len(ctx.needs_input_grad) - 1
        if tangent is None:
            return (None,) * (1 + inputs)
        cotangent, *others = ctx.saved_tensors
        tensors, rest = others[: inputs - 1], others[inputs - 1 :]
        if not ordinary((tangent,)):
            return None, *again(lambda *a: (plain_vjp(constants, *a),), (cotangent, *tensors), (tangent,))
        hidden, weights, masks = product_parts(constants, tensors)
        between, node = len(weights) - 1, weights[0].grad_fn
        # The value may have been swept by a graph, or step by step: its weights are then others'.
        ours = isinstance(node, _Value._backward_cls)
        trains = _trains(node) if ours else any(ctx.needs_input_grad[2 + len(hidden) :])
        make = partial(torch.empty_like, memory_format=torch.contiguous_format)
        to_weights = [make(w) for w in weights] if trains else []
        to_hidden = rows_of_kinds(CURVED, weights, constants.kinds, tangent)
        to_cotangent = below_autograd(
            torch.ops.fisherkernels.mlp_vjp_backward.default,
            tangent, cotangent, rest[:between], rest[between:], hidden, weights, *constants, masks, to_weights,
            to_hidden,
        )  # fmt: skip
        return (
            None,
            to_cotangent if ctx.needs_input_grad[1] else None,
            *by_layer(CURVED, constants.kinds, to_hidden),
            *(to_weights or [None] * len(weights)),
            *[None] * len(masks),
        )


def _trains(node: Any) -> bool:
    """Whether this backward, of all or of some inputs, is to give the gradient of a parameter of a _Value."""
    run, asked = torch._C._current_graph_task_id(), getattr(node, "asked", (None, False))
    if asked[0] != run:
        asked = run, any(will_run(parameter) for parameter, _ in node.next_functions[1:] if parameter is not None)
        node.asked = asked
    return asked[1]
