"""The bi-level loss and its gradients against double backward through ``torch.autograd.grad``."""

import math

import pytest
import torch
from torch import nn

from fisherkernels import losses
from fisherkernels.training.bilevel import bilevel_loss

N, D, LATENT = 4, 5, 2


def build(dtype=torch.float64):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 2 * LATENT)).to(dtype)
    decoder = nn.Sequential(nn.Linear(LATENT, 6), nn.Softplus(), nn.Linear(6, D)).to(dtype)
    return encoder, decoder, torch.randn(N, D, dtype=dtype)


def call(net, weights, tensor):
    w1, b1, w2, b2 = weights
    return torch.addmm(b2, net[1](torch.addmm(b1, tensor, w1.T)), w2.T)


def posterior(encoder, phi, x, eps):
    mean, log_std = call(encoder, phi, x).chunk(2, dim=1)
    return mean, log_std, mean + log_std.exp() * eps


def inference(encoder, decoder, phi, x, eps, divergence, reparametrize, variance):
    mean, log_std, z = posterior(encoder, phi, x, eps)
    theta = list(decoder.parameters())
    total = 0
    for sample in z:
        if divergence == "kl":
            error = x - call(decoder, theta, sample)
            kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
            total = total + (error**2).sum(1) / (2 * variance) + kl
            continue
        leaf = sample if reparametrize else sample.detach().requires_grad_()
        log_p = -((x - call(decoder, theta, leaf)) ** 2).sum() / (2 * variance) - 0.5 * (leaf**2).sum()
        (score,) = torch.autograd.grad(log_p, leaf, create_graph=True)
        if not reparametrize:
            sample = leaf.detach()
        total = total + 0.5 * ((-(sample - mean) / (2 * log_std).exp() - score) ** 2).sum(1)
    return (total / len(z)).mean()


def oracle(encoder, decoder, x, noise, step_size, objective, unbiased, divergence, reparametrize, variance):
    phi = [parameter.detach().requires_grad_() for parameter in encoder.parameters()]
    for eps in noise[:-1]:
        loss = inference(encoder, decoder, phi, x, eps, divergence, reparametrize, variance)
        gradient = torch.autograd.grad(loss, phi, create_graph=True)
        phi = [parameter - step_size * g for parameter, g in zip(phi, gradient, strict=True)]
    _, _, z = posterior(encoder, phi, x, noise[-1])
    theta = list(decoder.parameters())
    scores = torch.stack([-(x - call(decoder, theta, sample)) / variance for sample in z])  # [L, N, D]
    square = scores.square().sum(2).mean(0)
    pairs = torch.einsum("lnd,mnd->nlm", scores, scores)
    if unbiased:
        pairs = pairs - torch.diag_embed(pairs.diagonal(dim1=1, dim2=2))
        of_mean = pairs.sum((1, 2)) / (len(z) * (len(z) - 1))
    else:
        of_mean = pairs.mean((1, 2))
    divergence_of_score = -D / variance
    if objective == "m1":
        return (0.5 * square + divergence_of_score).mean()
    if objective == "m2":
        return (square + divergence_of_score - 0.5 * of_mean).mean()
    cross = 0
    for sample, score in zip(z, scores, strict=True):
        leaf = x.detach().clone().requires_grad_()
        mean, log_std, _ = posterior(encoder, phi, leaf, 0)
        # z is fixed as a value, so the gradient through z's own dependence on the parameters stays in `sample`
        log_q = -(0.5 * ((sample - mean) / log_std.exp()) ** 2 + log_std).sum()
        (posterior_score,) = torch.autograd.grad(log_q, leaf, create_graph=True)
        cross = cross + (posterior_score * score).sum(1)
    return (cross / len(z) + divergence_of_score + 0.5 * of_mean).mean()


@pytest.mark.parametrize("objective", ["m1", "m2", "m3"])
@pytest.mark.parametrize(("divergence", "reparametrize"), [("kl", True), ("fisher", True), ("fisher", False)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_value_and_gradients(objective, divergence, reparametrize, unbiased):
    encoder, decoder, x = build()
    noise = torch.randn(3, 2, N, LATENT, dtype=torch.float64)  # K = 2, L = 2
    log_variance = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    options = {"step_size": 0.1, "objective": objective, "unbiased": unbiased, "divergence": divergence,
               "reparametrize": reparametrize}  # fmt: skip
    got = bilevel_loss(encoder, decoder, x, noise, variance=log_variance.exp(), **options)
    expected = oracle(encoder, decoder, x, noise, variance=log_variance.exp(), **options)
    torch.testing.assert_close(got.loss, expected)
    torch.testing.assert_close(sum(got.terms.values()).mean(), expected)
    parameters = [*decoder.parameters(), log_variance]
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, parameters), torch.autograd.grad(expected, parameters), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("objective", ["m1", "m2", "m3"])
def test_without_steps_it_is_the_ordinary_loss(objective):
    encoder, decoder, x = build()
    noise = torch.randn(1, 3, N, LATENT, dtype=torch.float64)
    variance = torch.tensor(0.7, dtype=torch.float64)
    got = bilevel_loss(encoder, decoder, x, noise, step_size=1.0, objective=objective, unbiased=True,
                       divergence="kl", reparametrize=True, variance=variance)  # fmt: skip
    expected = losses.score_matching_loss(encoder, decoder, x, objective=objective, unbiased=True, variance=variance,
                                          num_samples=3, noise=noise[0])  # fmt: skip
    torch.testing.assert_close(got.terms, expected.terms)


def test_the_encoder_is_left_alone():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, D))
    before = {name: value.clone() for name, value in [*encoder.state_dict().items(), *decoder.state_dict().items()]}
    loss = bilevel_loss(encoder, decoder, torch.randn(N, D), torch.randn(2, 3, N, LATENT), step_size=0.1,
                        objective="m3", unbiased=False, divergence="fisher", reparametrize=False,
                        variance=torch.tensor(1.0)).loss  # fmt: skip
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    after = dict([*encoder.state_dict().items(), *decoder.state_dict().items()])
    assert all(torch.equal(before[name], after[name]) for name in before)
