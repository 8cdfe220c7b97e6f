"""NIFTy.re's `draw_linear_residual`, one call per item: mapped by `jax.lax.map`, or vectorised by `jax.vmap`."""

from unittest.mock import patch

import torch

from ..jax_arrays import to_jax, to_torch
from .by_hand import weights_of

NIFTY = {"requires": ("jax", "nifty.re"), "own_allocator": True}


def sampler(mapped):
    """prepare(decoder, tolerance) as in `routes`; `mapped` is "lax.map" or "vmap"."""

    def prepare(decoder, tolerance):
        import jax

        weights = tuple(to_jax(w.detach()) for w in weights_of(decoder))
        jitted = jax.jit(lambda weights, variance, *items: _batch(mapped, weights, variance, tolerance, items))

        def sample(mean, variance, data_noise, latent_noise):
            with jax.enable_x64(mean.dtype == torch.float64):
                items = (to_jax(t) for t in (mean, data_noise, latent_noise))
                return to_torch((jitted(weights, to_jax(variance), *items),))[0]

        return sample

    return prepare


def _batch(mapped, weights, variance, tolerance, items):
    import jax

    def one(item):
        return _sample(weights, variance, tolerance, *item)

    return jax.vmap(one)(items) if mapped == "vmap" else jax.lax.map(one, items)


def _sample(weights, variance, tolerance, mean, data_noise, latent_noise):
    import jax
    import nifty.re as jft
    from jax import numpy as jnp
    from nifty.re import evi

    def decoder(z):
        for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            z = jnp.maximum(W @ z + b, 0)
        return weights[-2] @ z + weights[-1]

    std = jnp.sqrt(variance)
    likelihood = jft.Gaussian(jnp.zeros_like(data_noise), lambda x: x / variance, lambda x: x / std).amend(decoder)
    draws = [data_noise, latent_noise]  # in the order in which it asks for them
    with patch.object(evi, "random_like", side_effect=lambda *args, **kwargs: draws.pop(0)):
        residual, _ = jft.draw_linear_residual(
            likelihood, mean, jax.random.PRNGKey(0), cg=jft.static_cg, cg_kwargs={"tol": tolerance}
        )
    return mean + residual
