"""Whether code runs inside a transform of torch.func, or in another mode that sees through its operations."""

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def inside_transform() -> bool:
    """True inside grad, vmap, jvp, vjp, jacrev, ... of torch.func: values of tensors may then not be looked at."""
    return torch._C._are_functorch_transforms_active()


def plainly_eager() -> bool:
    """False where operations are traced, transformed or carry tangents: a node of our own would hide them."""
    return not (
        torch.compiler.is_compiling()
        or inside_transform()
        or torch.autograd.forward_ad._current_level >= 0
        or get_proxy_mode() is not None  # make_fx
    )


def for_graph() -> bool:
    """Whether torch.compile traces operations for a graph of its own: not to export it, and in no transform.

    Never in torch 2.10, which says of every graph that it is to be exported.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not inside_transform()


def records(*tensors: Tensor) -> bool:
    """Whether autograd will record a computation with these plain tensors, in their own dtype, now or for a graph."""
    open_to_us = plainly_eager() or for_graph()
    if not (torch.is_grad_enabled() and open_to_us) or torch.is_autocast_enabled(tensors[0].device.type):
        return False
    required = False
    for t in tensors:
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return False
        required = required or t.requires_grad
    return required
