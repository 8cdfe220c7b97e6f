"""Tensors to JAX's arrays and back, without a copy."""

import torch


def to_jax(tensor):
    import jax

    with jax.enable_x64(tensor.dtype == torch.float64):
        return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(arrays):
    """A tuple, waited for."""
    import jax

    return tuple(torch.from_dlpack(array) for array in jax.block_until_ready(arrays))
