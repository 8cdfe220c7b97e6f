"""What the Autograd kernels of all operators share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisherkernels.ops._library import twin
from fisherkernels.transforms import inside_transform, plainly_eager

_IMPLICIT = "FisherMetric differentiates implicitly. Use its solve and sample"


def needs_graph(*tensors: Tensor | None) -> bool:
    """True where autograd would record a call with these arguments."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def call(op, autograd: Callable, *args):
    """Calls an operator: by name while compiling, else its Autograd kernel, sparing the way through the dispatcher.

    Inside torch.func's transforms (grad, vmap, jvp, ...) its twin, made of operations that they all know.
    """
    if inside_transform():
        return twin(op)(*args)
    return op(*args) if torch.compiler.is_compiling() else autograd(*args)


def batched(gradients: Sequence[Tensor | None]) -> bool:
    """Whether torch.autograd.grad has made stacks of them (is_grads_batched)."""
    return any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in gradients)


def ordinary(gradients: Sequence[Tensor | None]) -> bool:
    """Whether a backward may hide its operations: no second derivative is asked for, no stacks of gradients
    (torch.autograd.grad's is_grads_batched), no transform and no tangents.
    """
    return not (batched(gradients) or torch.is_grad_enabled()) and plainly_eager()


def will_run(node: Any) -> bool:
    """Inside a backward: whether it is to come to this node of the graph."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that torch.autograd.grad was asked for
        return True


def again(function: Callable[..., tuple], inputs: tuple, received: tuple) -> tuple:
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


def below_autograd(op, *args):
    """Calls an operator's device kernel, past its Autograd kernel."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def not_differentiable(name: str, reason: str = _IMPLICIT) -> Callable:
    """An Autograd kernel for an operator without a derivative: an error where autograd would record the call."""

    def kernel(*args):
        flat = (part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else (arg,)))
        if needs_graph(*(part for part in flat if isinstance(part, Tensor))):
            raise RuntimeError(
                f"fisherkernels::{name} has no derivative of its own: {reason}, or call this operator under "
                "torch.no_grad()."
            )
        return below_autograd(getattr(torch.ops.fisherkernels, name).default, *args)

    return kernel


class _RefuseSecond(torch.autograd.Function):
    """Identity on the first `count` tensors, in a graph with all of them; its own backward is an error."""

    @staticmethod
    def forward(ctx, name, count, *tensors):
        ctx.name = name
        return tensors[:count]

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            f"fisherkernels::{ctx.name} is differentiable once: its gradient, computed with "
            "create_graph=True, was differentiated again. fisherkernels.reference can be differentiated twice."
        )


def single_backward(
    name: str, mask: Sequence[bool], grads: Sequence[Tensor], sources: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients as autograd wants them: None where not asked for, and an error if differentiated again.

    `sources` are the tensors that the gradients were computed from.
    """
    if torch.is_grad_enabled():
        sources = [t for t in sources if t is not None]
        grads = _RefuseSecond.apply(name, len(grads), *grads, *sources)
    return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))
