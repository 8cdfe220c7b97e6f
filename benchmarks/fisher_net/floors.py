"""FLOPs that a sample needs on each route, counted over products of matrices, and what the metric is like.

direct: forward pass, tangents through all but the first layer, half of the Gram matrix, Cholesky. CG: forward pass, one
pass down for J^T n, and one up and one down per product with M, as many as exact arithmetic needs for the slowest item.
Both may replace the last weight W [D, h] by a triangular R [h, h] with R^T R = W^T W where that is less, the noise
variance being one number. The direct route may leave out, sample by sample, the rows and columns of units that the
ReLUs switch off, with W^T W between the tangents. Backward adds a solve, two tangents, and the tangents' own backward
pass (to the tangents and to the weights); a forward pass is not repeated, and the derivative of a ReLU is constant.
"""

import torch

from . import conjugate_gradients, exact, images, trained


def sample(latent_dim, inputs):
    """{route: FLOPs}; inputs: mean, data_noise, latent_noise."""
    mean, data_noise, latent_noise = (t.double() for t in inputs)
    batch, d = len(mean), latent_dim
    M, rhs = _system(latent_dim, mean, data_noise, latent_noise)
    products = _products_needed(M, rhs, latent_noise)
    active = gram_of_active_units(latent_dim, active_units(latent_dim, mean))
    forward = 2 * batch * _products(_widths(latent_dim)[:-1])
    solve = batch * (d**3 / 3 + 4 * d**2)
    project = min(2 * batch * d * trained.PIXELS, _pass(latent_dim, batch))
    gram = min(active, *(gram_of_tangents(latent_dim, batch, reduced) for reduced in (False, True)))
    return {
        "direct": float(forward + gram + project + solve),
        "CG": float(forward + _pass(latent_dim, batch) + _apply(latent_dim, batch, products)),
    }


def gram_of_tangents(latent_dim, batch, reduced):
    """From the weights to the Gram matrices of J, or of R T for the tangents T at the last layer's input."""
    _, *hidden, D = _widths(latent_dim)
    h, d = hidden[-1], latent_dim
    inner = 2 * batch * d * _products(hidden)
    if reduced:
        return _reduction(h, D) + inner + batch * d * h * (h + 1) + batch * d * (d + 1) * h
    return inner + 2 * batch * d * h * D + batch * d * (d + 1) * D


@torch.no_grad()
def active_units(latent_dim, mean):
    """[N, layers]: how many units of each hidden layer are on."""
    counts, value = [], mean.double()
    for layer in trained.auto_encoder(latent_dim).decoder.double():
        value = layer(value)
        if isinstance(layer, torch.nn.ReLU):
            counts.append((value > 0).sum(1))
    return torch.stack(counts, 1)


def gram_of_active_units(latent_dim, units):
    """The same by way of W^T W and of the units that are on, [N, layers]."""
    _, *hidden, D = _widths(latent_dim)
    units, d = units.double(), latent_dim
    inner = 2 * d * (units[:, :-1] * units[:, 1:]).sum()
    closing = d * (2 * units[:, -1] ** 2 + (d + 1) * units[:, -1]).sum()
    return hidden[-1] * (hidden[-1] + 1) * D + float(inner + closing)


def sample_backward(latent_dim, inputs):
    """{route: FLOPs}; inputs: mean, data_noise, latent_noise, grad."""
    *forward_inputs, grad = inputs
    forward = sample(latent_dim, forward_inputs)
    M, _ = _system(latent_dim, *(t.double() for t in forward_inputs))
    products = _products_needed(M, grad.double(), torch.zeros_like(grad, dtype=torch.float64))
    one_pass = _pass(latent_dim, len(grad))
    return {
        "direct": forward["direct"] + 4 * len(grad) * latent_dim**2 + 6 * one_pass,
        "CG": forward["CG"] + _apply(latent_dim, len(grad), products) + 6 * one_pass,
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


def _apply(latent_dim, batch, products):
    """That many products with M of each item."""
    *inner, D = _widths(latent_dim)
    reduced = _reduction(inner[-1], D) + products * 2 * batch * (2 * _products(inner) + inner[-1] ** 2)
    return min(2 * products * _pass(latent_dim, batch), reduced)


def _reduction(h, D):
    """Half of W^T W and its Cholesky factor."""
    return h * (h + 1) * D + h**3 / 3


def _products(widths):
    return sum(before * after for before, after in zip(widths[:-1], widths[1:], strict=True))
