"""Sampling: the inverse distribution function against known ones, truncation, SVGD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal


def prior_of(*rows, constraint="none"):
    prior = PolynomialExponentialFamily(len(rows), len(rows[0]), constraint).double()
    with torch.no_grad():
        prior.raw_coefficients.copy_(torch.tensor(rows, dtype=torch.float64))
    return prior


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def uniforms(n, d, seed=0):
    """What the sampler inverts."""
    return torch.rand(n, d, dtype=torch.float64, generator=seeded(seed))


@given(mean=st.floats(-50, 50), log_std=st.floats(-4, 4))
def test_gaussian_draws_are_exact(mean, log_std):
    """K = 2: each draw is mean + std * probit(u)."""
    std = math.exp(log_std)
    prior = prior_of([mean / std**2, -0.5 / std**2])
    draws = prior.sample(500, generator=seeded())
    expected = mean + std * torch.special.ndtri(uniforms(500, 1))
    assert (draws - expected).abs().max() < 1e-6 * std


@pytest.mark.parametrize(
    "coefficients",
    [
        [0.0, 0.0, 0.0, -1.0],
        [0.3, 2.0, -0.1, -0.5],
        [1.0, 8.0, 0.0, -1.0],
        [0.0, -0.5, 0.2, -0.1, 0.01, -0.02],
    ],
)
def test_distribution_function_of_each_draw_is_its_uniform(coefficients):
    """Against an integral on a much finer grid."""
    prior = prior_of(coefficients)
    draws = prior.sample(300, generator=seeded())[:, 0]
    (low, high) = prior.truncation()[0].tolist()
    grid = torch.linspace(low, high, 400_001, dtype=torch.float64)
    log_density = prior.log_density(grid[:, None]).detach()
    density = (log_density - log_density.max()).exp()
    integral = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(density, grid)])
    below = (torch.bucketize(draws, grid) - 1).clamp(0, len(grid) - 2)
    share = (draws - grid[below]) / (grid[below + 1] - grid[below])
    found = torch.lerp(integral[below], integral[below + 1], share) / integral[-1]
    assert (found - uniforms(300, 1)[:, 0]).abs().max() < 1e-7


def test_quartic_moments():
    """exp(-z^4): E z^2 = Gamma(3/4) / Gamma(1/4), E z^4 = 1/4."""
    draws = prior_of([0.0, 0.0, 0.0, -1.0]).sample(200_000, generator=seeded())[:, 0]
    second = math.gamma(0.75) / math.gamma(0.25)
    for power, expected in ((1, 0.0), (2, second), (3, 0.0), (4, 0.25)):
        values = draws**power
        error = values.std().item() / math.sqrt(len(draws))
        assert abs(values.mean().item() - expected) < 5 * error


def test_both_modes_are_visited():
    """exp(50 z^2 - z^4): modes at +-5 with equal mass, 625 nats above the point between them."""
    draws = prior_of([0.0, 50.0, 0.0, -1.0]).sample(10_000, generator=seeded())[:, 0]
    assert torch.isfinite(draws).all()
    assert (draws > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(draws.abs().mean(), torch.tensor(5.0).double(), rtol=0.01, atol=0)


def test_improper_side_ends_where_the_density_turns_up():
    prior = prior_of([0.1, -0.5, 0.02, -0.01, 0.01])
    low, high = prior.truncation()[0].tolist()
    assert prior.score(torch.tensor([high]).double()).item() == pytest.approx(0, abs=1e-6)
    assert prior.score(torch.tensor([high + 0.5]).double()).item() > 0
    top = prior.log_density(torch.linspace(low, high, 10_001).double()[:, None]).max()
    assert prior.log_density(torch.tensor([low]).double()).item() == pytest.approx(top.item() - 40, abs=1e-3)
    draws = prior.sample(1000, generator=seeded())
    assert low <= draws.min() and draws.max() <= high


@pytest.mark.parametrize("row", [[0.0], [0.7], [0.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0]])
def test_density_without_a_maximum_is_cut_at_five(row):
    prior = prior_of(row)
    low, high = prior.truncation()[0].tolist()
    assert -5 <= low < high == 5
    draws = prior.sample(2000, generator=seeded())
    assert low <= draws.min() and draws.max() <= high


def test_linear_density_on_an_interval():
    """exp(0.7 z) on [-1, 2] has the closed form log((1 - u) e^-0.7 + u e^1.4) / 0.7."""
    draws = prior_of([0.7]).sample(100, interval=(-1, 2), generator=seeded())
    u = uniforms(100, 1)
    expected = ((1 - u) * math.exp(-0.7) + u * math.exp(1.4)).log() / 0.7
    torch.testing.assert_close(draws, expected, rtol=0, atol=1e-9)


def test_interval_per_dimension():
    interval = torch.tensor([[-1.0, 0.5], [2.0, 3.0]], dtype=torch.float64)
    draws = StandardNormal(2).double().sample(500, interval=interval, generator=seeded())
    assert ((draws >= interval[:, 0]) & (draws <= interval[:, 1])).all()
    assert (draws.amax(0) - draws.amin(0) > 0.9 * (interval[:, 1] - interval[:, 0])).all()


def test_interval_truncates_a_normal():
    draws = StandardNormal(2).double().sample(2000, interval=(1.0, 2.0), generator=seeded())
    low, high = (torch.special.ndtr(torch.tensor(e).double()) for e in (1.0, 2.0))
    expected = torch.special.ndtri(low + uniforms(2000, 2) * (high - low))
    torch.testing.assert_close(draws, expected, rtol=0, atol=1e-8)


def test_coordinates_are_independent_and_keep_their_places():
    prior = prior_of([30.0, -0.5], [-30.0, -0.5], [0.0, -50.0])
    draws = prior.sample(20_000, generator=seeded())
    torch.testing.assert_close(draws.mean(0), torch.tensor([30.0, -30.0, 0.0]).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(draws.std(0), torch.tensor([1.0, 1.0, 0.1]).double(), rtol=0.03, atol=0)
    correlation = torch.corrcoef(draws.T) - torch.eye(3)
    assert correlation.abs().max() < 0.04


@pytest.mark.parametrize("make", [lambda: StandardNormal(3), lambda: PolynomialExponentialFamily(3, 5)])
def test_shape_dtype_graph_and_generator(make):
    prior = make()
    draws = prior.sample(7, generator=seeded(1))
    assert draws.shape == (7, 3) and draws.dtype == torch.float32 and not draws.requires_grad
    assert prior.sample(0).shape == (0, 3)
    assert torch.equal(draws, prior.sample(7, generator=seeded(1)))
    assert not torch.equal(draws, prior.sample(7, generator=seeded(2)))
    torch.manual_seed(5)
    first = prior.sample(4)
    torch.manual_seed(5)
    assert torch.equal(first, prior.sample(4))


def test_svgd_moves_a_start_at_the_normal_to_the_prior():
    prior = prior_of([1.0, -0.5], [0.0, -2.0])
    draws = prior.sample(100, method="svgd", steps=300, step_size=2e-2, generator=seeded())
    torch.testing.assert_close(draws.mean(0), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=0.1)
    torch.testing.assert_close(draws.std(0), torch.tensor([1.0, 0.5]).double(), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n: expected an int >= 0, received -1"),
        ({"method": "mcmc"}, "method: expected 'inverse_cdf' or 'svgd', received 'mcmc'"),
        ({"interval": (1.0, 1.0)}, "interval: expected finite"),
        ({"interval": (0.0, math.inf)}, "interval: expected finite"),
        ({"interval": torch.zeros(3, 2)}, r"interval: expected .* a tensor \[2, 2\], received shape \[3, 2\]"),
        ({"method": "svgd", "interval": (0.0, 1.0)}, "interval: expected None with method='svgd'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        PolynomialExponentialFamily(2, 2).sample(**({"n": 3} | options))


def test_broken_coefficients_are_named():
    with pytest.raises(ValueError, match="coefficients: expected finite values"):
        prior_of([0.0, math.nan]).sample(3)
