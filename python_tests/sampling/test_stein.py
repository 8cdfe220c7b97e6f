"""Stein variational gradient descent against the exact marginals of a learned prior."""

import math

import pytest
import torch
from scipy.stats import norm

from fisherkernels.priors import PolynomialExponentialFamily
from fisherkernels.sampling.stein import Marginals, run_stein


def gaussian_prior(means, stds):
    """N(mean, std^2) in every coordinate, as a polynomial of order 2."""
    prior = PolynomialExponentialFamily(len(means), 2)
    mean, precision = torch.tensor(means), torch.tensor(stds) ** -2
    with torch.no_grad():
        prior.raw_coefficients.copy_(torch.stack([mean * precision, -0.5 * precision], dim=1))
    return prior


def test_marginals_are_the_normals_quantiles():
    marginals = Marginals(gaussian_prior([1.0, -2.0], [0.5, 3.0]), None, 7)
    expected = torch.from_numpy(norm.ppf((torch.arange(7) + 0.5) / 7))[:, None]
    scale = torch.tensor([0.5, 3.0]).double()
    exact = torch.tensor([1.0, -2.0]) + scale * expected
    torch.testing.assert_close(marginals.values, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(marginals.std, scale, rtol=1e-3, atol=0)
    assert marginals.distance(exact[torch.randperm(7)]) < 1e-5
    assert marginals.distance(exact + 0.6 * scale) == pytest.approx(0.6, rel=1e-3)


def test_particles_come_closer(capsys):
    prior = gaussian_prior([0.5, 0.0], [1.0, 1.0])
    run = run_stein(prior, 100, torch.Generator().manual_seed(0), steps=800, step_size=2e-3, progress=True)
    assert run.particles.shape == (100, 2) and run.steps == 800 and run.seconds > 0
    steps = list(run.distances)
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 800
    assert run.distances[800] < 0.5 * run.distances[0]
    moved = prior.sample(100, method="svgd", steps=800, step_size=2e-3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run.particles, moved)
    assert run.distances[800] == Marginals(prior, None, 100).distance(moved)
    mean, std = run.exact  # of a normal: expected W1 distance of n draws is about 1.1 / sqrt(n) standard deviations
    assert 0.5 / math.sqrt(100) < mean < 2 / math.sqrt(100) and 0 < std < mean
    assert "800/800" in capsys.readouterr().err
    run_stein(prior, 3, torch.Generator().manual_seed(0), steps=1)
    assert capsys.readouterr().err == ""


def test_an_improper_prior_is_compared_on_its_interval():
    prior = PolynomialExponentialFamily(1, 3)
    with torch.no_grad():
        prior.raw_coefficients[0, 2] = 0.05  # grows without end on the right
    interval = torch.tensor([[-1.0, 1.5]])
    run = run_stein(prior, 20, torch.Generator().manual_seed(1), interval=interval, steps=50)
    values = Marginals(prior, interval, 20).values
    assert values.min() > -1 and values.max() < 1.5
    assert all(math.isfinite(value) for value in run.distances.values())
