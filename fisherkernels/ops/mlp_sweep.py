"""Value and vector-Jacobian products of a multi-layer perceptron, all layers of a sweep in one operator."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._autograd import below_autograd, not_differentiable
from fisherkernels.ops._checks import (
    check_activations,
    check_full_precision,
    check_layers,
    check_matrix,
    check_same_shape,
    check_tensor,
)
from fisherkernels.ops._layout import row_stride
from fisherkernels.ops._library import define
from fisherkernels.transforms import plainly_eager

SWEEP_ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu")
_CURVED = (0, 1)  # with a second derivative

aten = torch.ops.aten


class MLPSweep(NamedTuple):
    """What :func:`mlp_sweep` returns.

    Attributes:
        value: [N, m].
        hidden: what the activations gave, each [N, h_l]; the last one is the value where one is behind all weights.
    """

    value: Tensor
    hidden: tuple[Tensor, ...]
    constants: tuple[list[int], list[float]]  # activations by their number, negative slopes
    shared: tuple[Tensor, ...]  # what the activations gave, padded, and the weights, as outputs of the value's node

    def vjp(self, cotangent: Tensor) -> Tensor:
        """J^T c, [N, h_0], for c [N, m].

        Raises:
            TypeError: ``cotangent`` is no tensor, or of another dtype than the value.
            ValueError: it has another shape or device.
        """
        check_tensor("mlp_sweep", "cotangent", cotangent, self.value)
        check_same_shape("mlp_sweep", "cotangent", cotangent, "the value", self.value)
        sweep = _VJP.apply if plainly_eager() else _plain_vjp
        return sweep(self.constants, cotangent, *self.shared)


def mlp_sweep(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    negative_slopes: Sequence[float] | None = None,
) -> MLPSweep:
    r"""Linear, activation, ..., Linear (and a last activation) at x, and its vector-Jacobian products there.

    Forward y_l = a(y_(l-1) W_l^T + b_l); the product c_(l-1) = (c_l a'(y_l)) W_l. Each is one autograd node, and so is
    its backward: J t for the product, with the gradients of the weights as products of its two sweeps; the value's
    then adds its own gradients of the weights onto those, in place. Floor: 2 N Σ h_(l-1) h_l FLOPs for each of the two,
    twice that for each backward. Saved for backward: x, the hidden values, and for a product its cotangents.

    Args:
        x: [N, h_0].
        weights: W_l, [h_l, h_(l-1)]; one at least.
        biases: b_l, [h_l], or None.
        activations: "tanh", "sigmoid", "relu" or "leaky_relu", behind each of the weights, or each but the last.
        negative_slopes: of "leaky_relu", one per activation (0 or more); 0.01 where None.

    Returns:
        :class:`MLPSweep`: differentiable as often as needed, its ``vjp`` as well; backward with ``create_graph=True``
        evaluates the network again.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, mixed devices, another activation, a negative slope below 0.

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 11, whose terms are such products; their backward
    passes are derived by hand.
    """
    name = "mlp_sweep"
    check_full_precision(name, "x", x, "autocast networks are swept layer by layer")
    check_matrix(name, "x", x)
    slopes = [0.01] * len(activations) if negative_slopes is None else [float(slope) for slope in negative_slopes]
    count = len(weights)
    matched = len(biases) == count and len(slopes) == len(activations) and len(activations) in (count, count - 1)
    if not (count and matched):
        raise ValueError(
            f"{name}: expected as many weights, biases and activations (or one activation less), and a negative slope "
            f"for each activation, got {count}, {len(biases)}, {len(activations)} and {len(slopes)}"
        )
    check_layers(name, x, x.shape[1], weights, biases)
    check_activations(name, activations, SWEEP_ACTIVATIONS)
    for i, slope in enumerate(slopes):
        if not slope >= 0:
            raise ValueError(f"{name}: negative_slopes[{i}] must be 0 or more, got {slope}")
    return unchecked_sweep(x, weights, biases, [SWEEP_ACTIVATIONS.index(kind) for kind in activations], slopes)


def unchecked_sweep(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], kinds: list[int], slopes: list[float]
) -> MLPSweep:
    """:func:`mlp_sweep` of what is known to go together; activations by their number."""
    count, active = len(weights), len(kinds)
    sweep = _Value.apply if plainly_eager() else _plain_value
    results = sweep((kinds, slopes), count, x, *weights, *biases)
    rows = [_columns(h, w.shape[0]) for h, w in zip(results, weights, strict=False)]
    # Behind a view, so that its hooks run only where it has a gradient of its own.
    value = rows[-1].contiguous() if rows[-1] is not results[count - 1] else rows[-1].view_as(rows[-1])
    return MLPSweep(value, tuple(rows[:active]), (kinds, slopes), results[:active] + results[count:])


class _Value(torch.autograd.Function):
    """-> what each activation gave, padded, or the value behind the last weight, then the weights again: their
    gradients in a product come through here.
    """

    @staticmethod
    def forward(ctx, constants, count, x, *parameters):
        weights, biases = parameters[:count], parameters[count:]
        biases = [x.new_empty(0) if bias is None else bias for bias in biases]
        value, rows = below_autograd(torch.ops.fisherkernels.mlp_value.default, x, weights, biases, *constants)
        if len(rows) < count:
            rows.append(value)
        ctx.constants, ctx.count = constants, count
        ctx.save_for_backward(x, *parameters, *rows[: len(constants[0])])
        ctx.set_materialize_grads(False)
        return *rows, *(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx, *received):
        (kinds, slopes), count, needs = ctx.constants, ctx.count, ctx.needs_input_grad[2:]
        x, *others = ctx.saved_tensors
        parameters, hidden = others[: 2 * count], others[2 * count :]
        if torch.is_grad_enabled() or not _ordinary(received):
            again = partial(_plain_value, ctx.constants, count)
            return None, None, *_again(again, (x, *parameters), received)
        of_rows, given = received[:count], received[count:]  # given: made by _VJP.backward for this node alone
        top = max((i + 1 for i, gradient in enumerate(of_rows) if gradient is not None), default=0)
        if top == 0:
            return None, None, None, *given, *[None] * count
        weights = parameters[:top]
        to_weights, add = [], False
        if _trains(ctx):
            add = any(part is not None for part in given[:top])
            make = partial(torch.zeros_like if add else torch.empty_like, memory_format=torch.contiguous_format)
            to_weights = [make(w) if g is None else g.contiguous() for w, g in zip(weights, given, strict=False)]
        by_hidden = []
        if any(gradient is not None for gradient in of_rows[: top - 1]):
            pairs = zip(hidden, of_rows[: top - 1], strict=False)
            by_hidden = [torch.zeros_like(h) if gradient is None else gradient.contiguous() for h, gradient in pairs]
        gradient = _columns(of_rows[top - 1], weights[-1].shape[0])
        to_biases = [x.new_empty(w.shape[0]) for w in to_weights]
        to_x = below_autograd(
            torch.ops.fisherkernels.mlp_value_backward.default,
            gradient, by_hidden, x, hidden[:top], weights, kinds[:top], slopes[:top],
            to_weights, to_biases, add, needs[0],
        )  # fmt: skip
        behind = [None] * (count - top)
        results = [to_x, *(to_weights or [None] * top), *given[top:], *(to_biases or [None] * top), *behind]
        return None, None, *(part if needed else None for part, needed in zip(results, needs, strict=True))


class _VJP(torch.autograd.Function):
    """(cotangent, what the activations gave, weights) -> J^T cotangent."""

    @staticmethod
    def forward(ctx, constants, cotangent, *tensors):
        active = len(constants[0])
        op = torch.ops.fisherkernels.mlp_vjp.default
        pulled, before, behind = below_autograd(op, cotangent, tensors[:active], tensors[active:], *constants)
        ctx.constants = constants
        ctx.save_for_backward(cotangent, *tensors, *before, *behind)
        ctx.set_materialize_grads(False)
        return pulled

    @staticmethod
    def backward(ctx, tangent):
        constants, active, inputs = ctx.constants, len(ctx.constants[0]), len(ctx.needs_input_grad) - 1
        if tangent is None:
            return (None,) * (1 + inputs)
        cotangent, *others = ctx.saved_tensors
        tensors, rest = others[: inputs - 1], others[inputs - 1 :]
        if torch.is_grad_enabled() or not _ordinary((tangent,)):
            return None, *_again(lambda *a: (_plain_vjp(constants, *a),), (cotangent, *tensors), (tangent,))
        hidden, weights = tensors[:active], tensors[active:]
        between, node = len(weights) - 1, weights[0].grad_fn
        make = partial(torch.empty_like, memory_format=torch.contiguous_format)
        to_weights = [make(w) for w in weights] if node is not None and _trains(node) else []
        to_hidden = _curved_rows_like(weights, constants[0], tangent)
        to_cotangent = below_autograd(
            torch.ops.fisherkernels.mlp_vjp_backward.default,
            tangent, cotangent, rest[:between], rest[between:], hidden, weights, *constants, to_weights, to_hidden,
        )  # fmt: skip
        return (
            None,
            to_cotangent if ctx.needs_input_grad[1] else None,
            *_by_layer(constants[0], to_hidden),
            *(to_weights or [None] * len(weights)),
        )


def _by_layer(activations: list[int], curved: list[Tensor]) -> list[Tensor | None]:
    """Tensors of the curved activations, None for the others."""
    given = iter(curved)
    return [next(given) if kind in _CURVED else None for kind in activations]


def _ordinary(gradients: Sequence[Tensor | None]) -> bool:
    """Not batched (torch.autograd.grad's is_grads_batched), in a transform or with tangents."""
    batched = torch._C._functorch.is_legacy_batchedtensor
    return plainly_eager() and not any(gradient is not None and batched(gradient) for gradient in gradients)


def _trains(node: Any) -> bool:
    """Whether this backward, of all or of some inputs, is to give the gradient of a parameter of a _Value."""
    run, asked = torch._C._current_graph_task_id(), getattr(node, "asked", (None, False))
    if asked[0] != run:
        asked = run, any(_runs(parameter) for parameter, _ in node.next_functions[1:] if parameter is not None)
        node.asked = asked
    return asked[1]


def _runs(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that torch.autograd.grad was asked for
        return True


def _again(function: Callable[..., tuple], inputs: tuple, received: tuple) -> tuple:
    """Gradients by autograd, through a second evaluation: to be differentiated again, batched, or with tangents."""
    required = [t is not None and t.requires_grad for t in inputs]
    with torch.enable_grad():
        # Views: only what goes through this evaluation counts, also where an input depends on another.
        views = [t.view_as(t) if needed else t for t, needed in zip(inputs, required, strict=True)]
        outputs = function(*views)
    pairs = zip(outputs, received, strict=True)
    used = [(output, given) for output, given in pairs if given is not None and output.requires_grad]
    if not used:
        return (None,) * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in used],
            [t for t, needed in zip(views, required, strict=True) if needed],
            [given for _, given in used],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return tuple(next(found) if needed else None for needed in required)


def _plain_value(constants, count, x, *parameters):
    weights, biases = parameters[:count], parameters[count:]
    rows = []
    for weight, bias, kind, slope in zip_longest(weights, biases, *constants):
        x = F.linear(x, weight, bias)
        x = x if kind is None else _activated(x, kind, slope)
        rows.append(x if kind is None else _padded(x))
    return *rows, *(weight.view_as(weight) for weight in weights)


def _plain_vjp(constants, cotangent, *tensors):
    active = len(constants[0])
    hidden, weights = tensors[:active], tensors[active:]
    for h, weight, kind, slope in reversed(list(zip_longest(hidden, weights, *constants))):
        if h is not None:
            cotangent = _scaled(cotangent, h[:, : len(weight)], kind, slope)
        cotangent = cotangent @ weight
    return cotangent


def _activated(x: Tensor, kind: int, slope: float) -> Tensor:
    name = SWEEP_ACTIVATIONS[kind]
    return F.leaky_relu(x, slope) if name == "leaky_relu" else getattr(torch, name)(x)


def _scaled(t: Tensor, y: Tensor, kind: int, slope: float) -> Tensor:
    """a' t from y = a(x)."""
    if kind in _CURVED:
        return (aten.tanh_backward, aten.sigmoid_backward)[kind](t, y)
    if SWEEP_ACTIVATIONS[kind] == "relu":
        return aten.threshold_backward(t, y.detach(), 0)
    return aten.leaky_relu_backward(t, y.detach(), slope, True)


def _columns(rows: Tensor, columns: int) -> Tensor:
    return rows if rows.shape[1] == columns else rows[:, :columns]


def _padded(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, row_stride(rows.shape[1]) - rows.shape[1]))


def _value(x, weights, biases, activations, slopes):
    given = [bias if bias.numel() else None for bias in biases]
    rows = [part.clone() for part in _plain_value((activations, slopes), len(weights), x, *weights, *given)]
    hidden = rows[: len(activations)]
    return rows[len(weights) - 1] if len(hidden) < len(weights) else x.new_empty(0), hidden


def _vjp(cotangent, hidden, weights, activations, slopes):
    before, behind = [], []
    for i, (h, weight, kind, slope) in reversed(list(enumerate(zip_longest(hidden, weights, activations, slopes)))):
        if h is not None:
            between = i < len(weights) - 1
            behind += [_padded(cotangent)] if between and kind in _CURVED else []
            cotangent = _scaled(cotangent, h[:, : len(weight)], kind, slope)
            before += [_padded(cotangent)] if between else []
        cotangent = cotangent @ weight
    return cotangent, [part.clone() for part in before[::-1]], [part.clone() for part in behind[::-1]]


def _vjp_backward(tangent, cotangent, before, behind, hidden, weights, activations, slopes, to_weights, to_hidden):
    last, curved = len(weights) - 1, iter(to_hidden)
    unscaled = [*_by_layer(activations[:last], behind), cotangent]
    for i, weight in enumerate(weights):
        active, width = i < len(hidden), len(weight)
        y = hidden[i][:, :width] if active else None
        if to_weights:
            arrived = before[i][:, :width] if i < last else cotangent
            if i == last and active:
                arrived = _scaled(cotangent, y, activations[i], slopes[i])
            to_weights[i].copy_(arrived.t() @ tangent)
        tangent = tangent @ weight.t()
        if not active:
            continue
        if activations[i] in _CURVED:
            drift = 1 - 2 * y if SWEEP_ACTIVATIONS[activations[i]] == "sigmoid" else -2 * y
            next(curved).copy_(_padded(tangent * unscaled[i][:, :width] * drift))
        tangent = _scaled(tangent, y, activations[i], slopes[i])
    return tangent


def _value_backward(
    gradient, by_hidden, x, hidden, weights, activations, slopes, to_weights, to_biases, add, of_input
):  # fmt: skip
    for i in range(len(weights) - 1, -1, -1):
        if i < len(hidden):
            if i < len(by_hidden):
                gradient = gradient + by_hidden[i][:, : len(weights[i])]
            gradient = _scaled(gradient, hidden[i][:, : len(weights[i])], activations[i], slopes[i])
        operand = hidden[i - 1][:, : weights[i].shape[1]] if i else x
        if to_weights:
            product = gradient.t() @ operand
            to_weights[i].copy_(to_weights[i] + product if add else product)
            to_biases[i].copy_(gradient.sum(0))
        gradient = gradient @ weights[i] if i or of_input else x.new_empty(0)
    return gradient


def _rows_like(weights, activations, like: Tensor) -> list[Tensor]:
    samples = like.shape[0]
    return [like.new_empty(samples, row_stride(w.shape[0])) for w, _ in zip(weights, activations, strict=False)]


def _curved_rows_like(weights, activations, like: Tensor) -> list[Tensor]:
    curved = [w for w, kind in zip(weights, activations, strict=False) if kind in _CURVED]
    return _rows_like(curved, curved, like)


def _value_fake(x, weights, biases, activations, slopes):
    sizes = (len(x), len(weights[-1])) if len(activations) < len(weights) else (0,)
    return x.new_empty(sizes), _rows_like(weights, activations, x)


def _vjp_fake(cotangent, hidden, weights, activations, slopes):
    pulled = cotangent.new_empty(len(cotangent), weights[0].shape[1])
    between = activations[: len(weights) - 1]
    return pulled, _rows_like(weights, between, cotangent), _curved_rows_like(weights, between, cotangent)


def _vjp_backward_fake(tangent, cotangent, *_):
    return cotangent.new_empty(cotangent.shape)


def _value_backward_fake(gradient, by_hidden, x, *others):
    return x.new_empty(x.shape if others[-1] else (0,))


_REASON = "mlp_sweep builds its graph. Use that"
_NETWORK = "Tensor[] weights, int[] activations, float[] slopes"
define(
    "mlp_value",
    "(Tensor x, Tensor[] weights, Tensor[] biases, int[] activations, float[] slopes)"
    " -> (Tensor value, Tensor[] hidden)",
    twin=_value,
    fake=_value_fake,
    autograd=not_differentiable("mlp_value", _REASON),
)
define(
    "mlp_vjp",
    f"(Tensor cotangent, Tensor[] hidden, {_NETWORK}) -> (Tensor pulled, Tensor[] before, Tensor[] behind)",
    twin=_vjp,
    fake=_vjp_fake,
    autograd=not_differentiable("mlp_vjp", _REASON),
)
define(
    "mlp_vjp_backward",
    f"(Tensor tangent, Tensor cotangent, Tensor[] before, Tensor[] behind, Tensor[] hidden, {_NETWORK},"
    " Tensor(a!)[] to_weights, Tensor(b!)[] to_hidden) -> Tensor",
    twin=_vjp_backward,
    fake=_vjp_backward_fake,
    autograd=not_differentiable("mlp_vjp_backward", _REASON),
)
define(
    "mlp_value_backward",
    f"(Tensor gradient, Tensor[] by_hidden, Tensor x, Tensor[] hidden, {_NETWORK}, Tensor(a!)[] to_weights,"
    " Tensor(b!)[] to_biases, bool add, bool of_input) -> Tensor",
    twin=_value_backward,
    fake=_value_backward_fake,
    autograd=not_differentiable("mlp_value_backward", _REASON),
)
