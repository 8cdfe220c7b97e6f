"""Whether code runs inside a transform of torch.func."""

import torch


def inside_transform() -> bool:
    """True inside grad, vmap, jvp, vjp, jacrev, ... of torch.func: values of tensors may then not be looked at."""
    return torch._C._are_functorch_transforms_active()
