"""Ways to draw a posterior sample: prepare(decoder, tolerance) gives sample(mean, variance, data_noise, latent_noise).

A sample is mean + M^-1 (J^T n + eta) [N, d], n = data_noise / sqrt(variance), from mean [N, d], variance (0-d),
data_noise [N, D] and latent_noise = eta [N, d]. CG starts at eta.
"""

import torch
from torch import func

import fisherkernels as fk

from . import by_hand, conjugate_gradients, exact


def ours(method):
    def prepare(decoder, tolerance):
        def sample(mean, variance, data_noise, latent_noise):
            metric = fk.FisherMetric(decoder, mean, variance)
            noise = (data_noise[None], latent_noise[None])
            return metric.sample(noise=noise, method=method, tol=tolerance)[0]

        return sample

    return prepare


def compiled(prepare):
    return lambda decoder, tolerance: torch.compile(prepare(decoder, tolerance), fullgraph=True)


def torch_func_maps(decoder):
    """linearise(mean) -> v [N, d] -> J v [N, D], and c -> J^T c."""

    def flat(z):
        return decoder(z).flatten(1)

    def linearise(mean):
        _, pull = func.vjp(flat, mean)
        return lambda v: func.jvp(flat, (mean,), (v,))[1], lambda c: pull(c)[0]

    return linearise


def by_hand_maps(decoder):
    weights = by_hand.weights_of(decoder)

    def linearise(mean):
        masks = by_hand.masks_of(weights, mean)
        return lambda v: by_hand.jvp(weights, masks, v), lambda c: by_hand.vjp(weights, masks, c)

    return linearise


def system(push, pull, variance, data_noise, latent_noise):
    """The product v -> M v and the right-hand side J^T n + eta."""
    return lambda v: pull(push(v) / variance) + v, pull(data_noise / variance.sqrt()) + latent_noise


def cg(maps):
    def prepare(decoder, tolerance):
        linearise = maps(decoder)

        def sample(mean, variance, data_noise, latent_noise):
            product, rhs = system(*linearise(mean), variance, data_noise, latent_noise)
            return mean + conjugate_gradients.solve(product, rhs, latent_noise, tolerance)[0]

        return sample

    return prepare


def implicit_cg(maps):
    """As :func:`cg`, with gradients by implicit differentiation."""

    def prepare(decoder, tolerance):
        linearise = maps(decoder)

        def sample(mean, variance, data_noise, latent_noise):
            push, pull = linearise(mean)
            with torch.no_grad():
                product, rhs = system(push, pull, variance, data_noise, latent_noise)
                offset, _ = conjugate_gradients.solve(product, rhs, latent_noise, tolerance)
            residual = pull(data_noise / variance.sqrt() - push(offset) / variance) + latent_noise - offset

            def solve(grad):
                return conjugate_gradients.solve(product, grad, torch.zeros_like(grad), tolerance)[0]

            return mean + implicit(residual, offset, solve)

        return sample

    return prepare


def implicit(residual, offset, solve):
    """The offset with the gradients of M^-1 rhs: those of the residual rhs - M offset, after one more solve."""
    residual.register_hook(solve)
    return offset + (residual - residual.detach())


def torch_func_cholesky(chunk_size=None):
    def prepare(decoder, tolerance):
        def sample(mean, variance, data_noise, latent_noise):
            M, rhs = exact.system(decoder, mean, variance, data_noise, latent_noise, chunk_size)
            return mean + torch.cholesky_solve(rhs[..., None], torch.linalg.cholesky(M))[..., 0]

        return sample

    return prepare


def by_hand_direct(decoder, tolerance):
    weights = by_hand.weights_of(decoder)
    return lambda mean, *arguments: mean + by_hand.direct(weights, mean, *arguments)[0]


def by_hand_implicit_direct(decoder, tolerance):
    """Both passes compiled; the second solve uses the factor at hand."""
    weights = by_hand.weights_of(decoder)
    direct = torch.compile(by_hand.direct, fullgraph=True)
    residual_of = torch.compile(by_hand.residual, fullgraph=True)

    def sample(mean, *arguments):
        with torch.no_grad():
            offset, factor = direct(weights, mean, *arguments)
        residual = residual_of(weights, mean, *arguments, offset)
        return mean + implicit(residual, offset, lambda grad: torch.cholesky_solve(grad[..., None], factor)[..., 0])

    return sample


def linear_operator_cg(decoder, tolerance):
    from linear_operator.utils.linear_cg import linear_cg

    def sample(mean, variance, data_noise, latent_noise):
        metric = fk.FisherMetric(decoder, mean, variance)
        shape = metric.linearization.value.shape
        rhs = metric.linearization.vjp((data_noise / variance.sqrt()).view(shape)) + latent_noise
        offset = linear_cg(
            lambda v: metric.matvec(v[..., 0])[..., None],  # v [N, d, 1]
            rhs[..., None],
            initial_guess=latent_noise[..., None],
            tolerance=tolerance,
            max_iter=1000,
            eps=1e-30,  # its default of 1e-10 freezes items whose squared residual is below that
        )
        return mean + offset[..., 0]

    return sample
