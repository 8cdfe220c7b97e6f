"""The references and the library against eq. 11 written in scalar loops for affine networks."""

import math

import pytest
import torch
from torch import nn

from fisherkernels import losses, reference
from fisherkernels.priors import PolynomialExponentialFamily

L, N, D, d, K = 2, 3, 4, 2, 3


def affine_case():
    encoder, decoder = nn.Linear(D, 2 * d).double(), nn.Linear(d, D).double()
    prior = PolynomialExponentialFamily(d, K).double()
    with torch.no_grad():
        prior.raw_coefficients.normal_()
    x, eps = torch.randn(N, D).double(), torch.randn(L, N, d).double()
    return encoder, decoder, prior, x, eps, 0.5 + torch.rand(D).double()


def eq_11(encoder, decoder, prior, x, eps, variance, stability):
    """Each term per sample, in Python floats: every Jacobian of an affine network is its weight."""
    A, a, W, w = (p.tolist() for p in (encoder.weight, encoder.bias, decoder.weight, decoder.bias))
    eta, x, eps, gamma = prior.coefficients.tolist(), x.tolist(), eps.tolist(), variance.tolist()
    terms = {name: [0.0] * N for name in ("posterior", "reconstruction", "stability")}
    for n in range(N):
        encoded = [sum(A[r][i] * x[n][i] for i in range(D)) + a[r] for r in range(2 * d)]
        mean, sigma = encoded[:d], [math.exp(s) for s in encoded[d:]]
        for sample in range(L):
            e = eps[sample][n]
            z = [mean[j] + sigma[j] * e[j] for j in range(d)]
            f = [sum(W[i][j] * z[j] for j in range(d)) + w[i] for i in range(D)]
            for j in range(d):
                q_score = -(z[j] - mean[j]) / sigma[j] ** 2
                prior_score = sum(k * eta[j][k - 1] * z[j] ** (k - 1) for k in range(1, K + 1))
                decoder_score = sum(W[i][j] * (x[n][i] - f[i]) / gamma[i] for i in range(D))
                terms["posterior"][n] += 0.5 * (q_score - prior_score - decoder_score) ** 2 / L
            for i in range(D):
                laplacian = -1 / gamma[i]
                terms["reconstruction"][n] += (0.5 * ((x[n][i] - f[i]) / gamma[i]) ** 2 + laplacian) / L
            for i in range(D):
                # log q(z|x) = sum_j -1/2 ((z_j - mean_j(x)) / sigma_j(x))^2 - log sigma_j(x), z fixed
                if stability == "posterior":
                    slope = sum(
                        (z[j] - mean[j]) / sigma[j] ** 2 * A[j][i]
                        + ((z[j] - mean[j]) ** 2 / sigma[j] ** 2 - 1) * A[d + j][i]
                        for j in range(d)
                    )
                else:
                    slope = sum(A[d + j][i] for j in range(d))
                terms["stability"][n] += 0.5 * slope**2 / L
    return terms


IMPLEMENTATIONS = {
    "library": losses.fisher_ae_loss,
    "reference": reference.fisher_ae_loss,
    "reference in one pass": lambda *args, **options: reference.fisher_ae_loss(
        *args, encoder_passes=1, **options
    ),
}


@pytest.mark.parametrize("stability", ["posterior", "log_std"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_equals_eq_11(name, stability):
    encoder, decoder, prior, x, eps, variance = affine_case()
    expected = eq_11(encoder, decoder, prior, x, eps, variance, stability)
    options = {"prior": prior, "variance": variance, "noise": eps, "num_samples": L, "stability": stability}
    loss, terms = IMPLEMENTATIONS[name](encoder, decoder, x, **options)
    for key, values in expected.items():
        assert terms[key].tolist() == pytest.approx(values, rel=1e-12), key
    assert loss.item() == pytest.approx(sum(map(sum, expected.values())) / N, rel=1e-12)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("decoder_gradient", ["full", "stopped"])
def test_gradients_equal_finite_differences(name, decoder_gradient):
    """Full: of the loss as written. Stopped: of the loss with the decoder's score held at its value."""
    encoder, decoder, prior, x, eps, variance = affine_case()
    variance.requires_grad_()
    options = {"prior": prior, "variance": variance, "noise": eps, "num_samples": L}
    loss = IMPLEMENTATIONS[name](encoder, decoder, x, decoder_gradient=decoder_gradient, **options).loss
    parameters = [
        encoder.weight,
        encoder.bias,
        decoder.weight,
        decoder.bias,
        prior.raw_coefficients,
        variance,
    ]
    gradients = torch.autograd.grad(loss, parameters)

    with torch.no_grad():
        mean, log_std = encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * eps
        held = (x - decoder(z)) / variance @ decoder.weight if decoder_gradient == "stopped" else None

        def value():
            return whole_loss(encoder, decoder, prior, x, eps, variance, held)

        for parameter, gradient in zip(parameters, gradients, strict=True):
            flat = parameter.data.view(-1)
            for i in range(flat.numel()):
                centre, step = flat[i].item(), 1e-5
                flat[i] = centre + step
                above = value()
                flat[i] = centre - step
                below = value()
                flat[i] = centre
                slope = (above - below).item() / (2 * step)
                assert gradient.view(-1)[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def whole_loss(encoder, decoder, prior, x, eps, variance, held):
    """Eq. 11 for affine networks in matrices, the decoder's score replaced by `held` where given."""
    mean, log_std = encoder(x).chunk(2, 1)
    z = mean + log_std.exp() * eps
    residual = (x - decoder(z)) / variance
    decoder_score = residual @ decoder.weight if held is None else held
    powers = torch.arange(1, K + 1)
    prior_score = (powers * prior.coefficients * z[..., None] ** (powers - 1)).sum(-1)
    mismatch = -eps * torch.exp(-log_std) - prior_score - decoder_score
    slope = torch.cat([eps * torch.exp(-log_std), eps**2 - 1], dim=2) @ encoder.weight
    squares = mismatch.square().sum(2) + residual.square().sum(2) + slope.square().sum(2)
    return 0.5 * squares.mean() - (1 / variance).sum()
