"""FLOPs that a sample needs on each route, counted over products of matrices, and what the metric is like.

direct: forward pass, tangents through all but the first layer, half of the Gram matrix, Cholesky. CG: forward pass, one
pass down for J^T n, and one up and one down per product with M, as many as exact arithmetic needs for the slowest item.
Backward adds a solve, two tangents, and the tangents' own backward pass (to the tangents and to the weights); a forward
pass is not repeated, and the derivative of a ReLU is constant.
"""

import torch

from . import conjugate_gradients, exact, images, trained


def sample(latent_dim, inputs):
    """{route: FLOPs}; inputs: mean, data_noise, latent_noise."""
    mean, data_noise, latent_noise = (t.double() for t in inputs)
    batch, (d, *hidden, D) = len(mean), _widths(latent_dim)
    forward = 2 * batch * _products([d, *hidden])
    tangents = 2 * batch * d * _products([*hidden, D])
    solve = batch * (d**3 / 3 + 4 * d**2)
    gram, project = batch * d * (d + 1) * D, 2 * batch * d * D
    M, rhs = _system(latent_dim, mean, data_noise, latent_noise)
    products = _products_needed(M, rhs, latent_noise)
    return {
        "direct": float(forward + tangents + gram + project + solve),
        "CG": float(forward + (1 + 2 * products) * _pass(latent_dim, batch)),
    }


def sample_backward(latent_dim, inputs):
    """{route: FLOPs}; inputs: mean, data_noise, latent_noise, grad."""
    *forward_inputs, grad = inputs
    forward = sample(latent_dim, forward_inputs)
    M, _ = _system(latent_dim, *(t.double() for t in forward_inputs))
    products = _products_needed(M, grad.double(), torch.zeros_like(grad, dtype=torch.float64))
    one_pass = _pass(latent_dim, len(grad))
    return {
        "direct": forward["direct"] + 4 * len(grad) * latent_dim**2 + 6 * one_pass,
        "CG": forward["CG"] + 2 * products * one_pass + 6 * one_pass,
    }


def facts(latent_dim, mean):
    decoder, variance = _decoder_and_variance(latent_dim)
    described = exact.describe(decoder, mean.double(), variance)
    return {"images": images.source(), "noise variance": trained.NOISE_VARIANCE, **described}


def _products_needed(M, rhs, start):
    product = lambda v: (M @ v[..., None])[..., 0]  # noqa: E731
    return conjugate_gradients.solve(product, rhs, start, conjugate_gradients.RELATIVE_RESIDUAL)[1]


@torch.no_grad()
def _system(latent_dim, mean, data_noise, latent_noise):
    decoder, variance = _decoder_and_variance(latent_dim)
    return exact.system(decoder, mean, variance, data_noise, latent_noise)


def _decoder_and_variance(latent_dim):
    decoder = trained.auto_encoder(latent_dim).decoder.double()
    return decoder, torch.tensor(trained.NOISE_VARIANCE, dtype=torch.float64)


def _widths(latent_dim):
    return latent_dim, *trained.HIDDEN[::-1], trained.PIXELS


def _pass(latent_dim, batch):
    """One tangent through the decoder, or one cotangent back."""
    return 2 * batch * _products(_widths(latent_dim))


def _products(widths):
    return sum(before * after for before, after in zip(widths[:-1], widths[1:], strict=True))
