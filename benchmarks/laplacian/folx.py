"""folx's forward Laplacian, compiled by JAX; gradients by `jax.grad` of the sum."""

import torch

from ..jax_arrays import to_jax, to_torch
from .nets import activation_of, weights_of

FOLX = {"requires": ("jax", "folx"), "install": "folx", "own_allocator": True}


def forward(net):
    """run(x [N, n]) gives (laplacian [N, 1],)."""
    import jax

    return _runner(net, jax.jit(_laplacian(activation_of(net))))


def backward(net):
    """run(x [N, n]) gives the Laplacian [N, 1] and the gradient of its sum by every parameter."""
    import jax

    laplacian = _laplacian(activation_of(net))

    def summed(weights, x):
        values = laplacian(weights, x)[0]
        return values.sum(), values

    @jax.jit
    def with_gradients(weights, x):
        gradients, values = jax.grad(summed, has_aux=True)(weights, x)
        return values, *gradients

    return _runner(net, with_gradients)


def _laplacian(activation):
    """(weights, x [N, n]) -> (laplacian [N, 1],)."""
    import folx
    import jax

    bend = {"tanh": jax.numpy.tanh, "SiLU": jax.nn.silu}[activation]

    def batch(weights, x):
        def net(item):
            for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                item = bend(W @ item + b)
            return (weights[-2] @ item + weights[-1])[0]

        of_one = folx.ForwardLaplacianOperator(0)(net)  # no sparsity: the layers are dense
        return (jax.vmap(lambda item: of_one(item)[0])(x)[:, None],)

    return batch


def _runner(net, jitted):
    import jax

    weights = tuple(to_jax(w.detach()) for w in weights_of(net))

    def run(x):
        # Its own default on GPUs is TF32.
        precision = "default" if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "highest"
        with jax.enable_x64(x.dtype == torch.float64), jax.default_matmul_precision(precision):
            return to_torch(jitted(weights, to_jax(x)))

    return run
