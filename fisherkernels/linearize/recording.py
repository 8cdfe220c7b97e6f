"""Whether autograd records what is computed, operation by operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fisherkernels.transforms import inside_transform


def records(*tensors: Tensor) -> bool:
    """Whether eager autograd will record a computation with these plain tensors.

    Not under torch.compile, which sees through the operations, nor under autocast and transforms, which change them.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or inside_transform():
        return False
    if torch.autograd.forward_ad._current_level >= 0 or torch.is_autocast_enabled(tensors[0].device.type):
        return False
    required = False
    for t in tensors:
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return False
        required = required or t.requires_grad
    return required
