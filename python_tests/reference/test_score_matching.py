"""The references and the library against the paper's equations written in scalar loops for affine networks."""

import math

import pytest
import torch
from torch import nn

from fisherkernels import losses, reference
from fisherkernels.priors import PolynomialExponentialFamily

L, N, D, d, K = 3, 2, 4, 2, 3


@pytest.fixture
def case():
    encoder, decoder = nn.Linear(D, 2 * d).double(), nn.Linear(d, D).double()
    prior = PolynomialExponentialFamily(d, K).double()
    with torch.no_grad():
        prior.raw_coefficients.normal_()
    x, eps = torch.randn(N, D).double(), torch.randn(L, N, d).double()
    return encoder, decoder, prior, x, eps, 0.5 + torch.rand(D).double()


def samples(encoder, decoder, x, eps):
    """For each data point: its mean, its standard deviations and, for each sample, z and f(z), in Python floats."""
    A, a, W, w = (p.tolist() for p in (encoder.weight, encoder.bias, decoder.weight, decoder.bias))
    for n, point in enumerate(x.tolist()):
        encoded = [sum(A[r][i] * point[i] for i in range(D)) + a[r] for r in range(2 * d)]
        mean, std = encoded[:d], [math.exp(s) for s in encoded[d:]]
        pairs = []
        for sample in eps[:, n].tolist():
            z = [mean[j] + std[j] * sample[j] for j in range(d)]
            pairs.append((z, [sum(W[i][j] * z[j] for j in range(d)) + w[i] for i in range(D)]))
        yield point, mean, std, pairs


def objective_by_loops(encoder, decoder, x, eps, variance, objective, unbiased):
    """Equations 8, 13 and 15, per data point."""
    A, gamma, values = encoder.weight.tolist(), variance.tolist(), []
    divergence = -sum(1 / g for g in gamma)
    for point, mean, std, pairs in samples(encoder, decoder, x, eps):
        scores = [[-(point[i] - f[i]) / gamma[i] for i in range(D)] for _, f in pairs]
        mean_square = sum(s**2 for score in scores for s in score) / L
        if unbiased:
            others = [(k, m) for k in range(L) for m in range(L) if k != m]
            products = [scores[k][i] * scores[m][i] for k, m in others for i in range(D)]
            square_mean = sum(products) / len(others)
        else:
            square_mean = sum((sum(score[i] for score in scores) / L) ** 2 for i in range(D))
        cross = 0.0
        for (z, _), score in zip(pairs, scores, strict=True):
            for i in range(D):
                # d/dx_i of sum_j -1/2 ((z_j - mean_j(x)) / std_j(x))^2 - log std_j(x), z fixed
                slope = sum(
                    (z[j] - mean[j]) / std[j] ** 2 * A[j][i] + ((z[j] - mean[j]) ** 2 / std[j] ** 2 - 1) * A[d + j][i]
                    for j in range(d)
                )
                cross += slope * score[i] / L
        values.append(
            {
                "m1": 0.5 * mean_square + divergence,
                "m2": mean_square + divergence - 0.5 * square_mean,
                "m3": cross + divergence + 0.5 * square_mean,
            }[objective]
        )
    return values


@pytest.mark.parametrize("package", [losses, reference])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("objective", ["m1", "m2", "m3"])
def test_learning(case, package, objective, unbiased):
    encoder, decoder, _, x, eps, variance = case
    options = {"objective": objective, "unbiased": unbiased, "variance": variance, "noise": eps, "num_samples": L}
    loss = package.score_matching_loss(encoder, decoder, x, reduction="none", **options).loss
    expected = objective_by_loops(encoder, decoder, x, eps, variance, objective, unbiased)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


def divergence_by_loops(encoder, decoder, prior, x, eps, variance, divergence):
    """Algorithm 1's two divergences, per data point; the KL divergence up to log p(x) and the prior's integral."""
    W, gamma, eta, values = decoder.weight.tolist(), variance.tolist(), prior.coefficients.tolist(), []
    for point, mean, std, pairs in samples(encoder, decoder, x, eps):
        total = 0.0
        for z, f in pairs:
            if divergence == "fisher":
                for j in range(d):
                    posterior_score = -(z[j] - mean[j]) / std[j] ** 2
                    prior_score = sum(k * eta[j][k - 1] * z[j] ** (k - 1) for k in range(1, K + 1))
                    likelihood_score = sum(W[i][j] * (point[i] - f[i]) / gamma[i] for i in range(D))
                    total += 0.5 * (posterior_score - prior_score - likelihood_score) ** 2 / L
                continue
            for i in range(D):
                total += 0.5 * ((point[i] - f[i]) ** 2 / gamma[i] + math.log(2 * math.pi * gamma[i])) / L
            for j in range(d):
                log_q = -0.5 * ((z[j] - mean[j]) / std[j]) ** 2 - math.log(std[j]) - 0.5 * math.log(2 * math.pi)
                total += (log_q - sum(eta[j][k - 1] * z[j] ** k for k in range(1, K + 1))) / L
        values.append(total)
    return values


@pytest.mark.parametrize("package", [losses, reference])
@pytest.mark.parametrize(("divergence", "reparametrize"), [("kl", True), ("fisher", True), ("fisher", False)])
def test_inference(case, package, divergence, reparametrize):
    encoder, decoder, prior, x, eps, variance = case
    options = {"prior": prior, "variance": variance, "noise": eps, "num_samples": L, "reparametrize": reparametrize}
    loss = package.inference_loss(encoder, decoder, x, divergence=divergence, reduction="none", **options).loss
    assert loss.tolist() == pytest.approx(divergence_by_loops(*case, divergence), rel=1e-12)


@pytest.mark.parametrize("objective", ["m1", "m2", "m3"])
@pytest.mark.parametrize("divergence", ["kl", "fisher"])
def test_a_step_of_the_encoder_can_be_differentiated(objective, divergence):
    """As bi-level updates do: d/d theta of the objective at phi - rate d inference / d phi, by finite differences."""
    encoder = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    decoder = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    x, eps = torch.randn(2, 3).double(), torch.randn(2, 2, 2, 1).double()
    theta, phi = dict(decoder.named_parameters()), dict(encoder.named_parameters())

    def after_a_step(*values):
        decode = in_place_of(decoder, dict(zip(theta, values, strict=True)))
        options = {"divergence": divergence, "noise": eps[0], "num_samples": 2, "decoder_gradient": True}
        loss = reference.inference_loss(in_place_of(encoder, phi), decode, x, **options).loss
        gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        moved = {name: p - 0.1 * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        options = {"objective": objective, "noise": eps[1], "num_samples": 2, "encoder_gradient": True}
        return reference.score_matching_loss(in_place_of(encoder, moved), decode, x, **options).loss

    assert torch.autograd.gradcheck(after_a_step, list(theta.values()), fast_mode=True)


def in_place_of(network, parameters):
    return lambda t: torch.func.functional_call(network, parameters, (t,))
