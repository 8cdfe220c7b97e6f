"""The two forms of the reference agree, and SVGD's reference is the sum of its definition."""

import math

import pytest
import torch
from torch import nn

from fisherkernels import reference


@pytest.mark.parametrize("stability", ["posterior", "log_std", "none"])
def test_one_encoder_pass_equals_two(stability):
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    decoder = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 5)).double()
    x, eps = torch.rand(4, 5).double(), torch.randn(3, 4, 2).double()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    results = []
    for passes in (1, 2):
        loss = reference.fisher_ae_loss(
            encoder, decoder, x, noise=eps, num_samples=3, stability=stability, encoder_passes=passes
        ).loss
        results.append((loss, *torch.autograd.grad(loss, parameters, allow_unused=True)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_svgd_step_by_scalar_loops():
    particles = torch.randn(4, 2).double()
    x, h = particles.tolist(), 0.8
    moved = reference.svgd(lambda p: -2 * p, particles, 1, 0.1, bandwidth=h).tolist()
    for i in range(4):
        for c in range(2):
            phi = 0.0
            for j in range(4):
                kernel = math.exp(-sum((x[i][k] - x[j][k]) ** 2 for k in range(2)) / h)
                phi += (kernel * -2 * x[j][c] + kernel * 2 / h * (x[i][c] - x[j][c])) / 4
            assert moved[i][c] == pytest.approx(x[i][c] + 0.1 * phi, rel=1e-12)
