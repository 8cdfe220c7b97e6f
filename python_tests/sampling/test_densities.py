"""Every kind of density: right where the truth is known, normalised, and its samples follow it."""

import sys

import pytest
import torch
from torch.distributions import MultivariateNormal

from fisherkernels.sampling import DENSITIES, fit_density, standard_normal

KINDS = sorted(DENSITIES)


def grid(low, high, count, d):
    """Cell centres [count^d, d] of a box, and the volume of a cell."""
    step = (high - low) / count
    axis = low + step * (torch.arange(count) + 0.5)
    return torch.cartesian_prod(*[axis] * d).reshape(-1, d), step**d


def test_gaussian_recovers_a_gaussian():
    truth = MultivariateNormal(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])
    )
    density = fit_density(truth.sample((20_000,)), "gaussian")
    z = truth.sample((500,))
    torch.testing.assert_close(density.log_density(z), truth.log_prob(z).double(), rtol=0, atol=0.15)
    drawn = density.sample(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), truth.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T), truth.covariance_matrix, rtol=0, atol=0.08)


def test_standard_normal():
    z = torch.randn(7, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(1)
    torch.testing.assert_close(standard_normal(3).log_density(z), expected)
    assert standard_normal(3).sample(5).shape == (5, 3)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_integral_is_one(kind, d, fitted):
    points, volume = grid(-16.0, 24.0, 4000 if d == 1 else 250, d)
    assert fitted(kind, d).log_density(points).exp().sum().item() * volume == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_density(kind, fitted):
    """Kolmogorov-Smirnov in one dimension; 1.63 / sqrt(n) is the test's 1% level."""
    density, n = fitted(kind, 1), 4000
    drawn = density.sample(n, torch.Generator().manual_seed(5)).flatten().double().sort().values
    points, volume = grid(-16.0, 24.0, 8000, 1)
    cumulative = density.log_density(points).exp().cumsum(0) * volume
    index = torch.searchsorted(points.flatten().double(), drawn)
    empirical = (torch.arange(n) + 0.5) / n
    assert (cumulative[index] - empirical).abs().max() < 1.63 / n**0.5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gaussian"])
def test_two_clusters_are_seen(kind, fitted, clusters):
    """The Gaussian's density lies between the clusters, where no point is."""
    held_out = clusters(500, 2, 1)
    ours, gaussian = (fitted(name, 2).log_density(held_out).mean() for name in (kind, "gaussian"))
    assert ours > gaussian + 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_moves_with_the_points(kind, fit_briefly, clusters):
    """Fitted to A z + b with A lower triangular, it is the same density moved: log p falls by log det A."""
    means, held_out = clusters(200, 2, 0).double(), clusters(50, 2, 1).double()
    a, b = torch.tensor([[3.0, 0.0], [-2.0, 0.1]]).double(), torch.tensor([100.0, -7.0]).double()
    first = fit_briefly(means, kind)
    moved = fit_briefly(means @ a.T + b, kind)
    expected = first.log_density(held_out) - a.logdet()
    torch.testing.assert_close(moved.log_density(held_out @ a.T + b), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_seeds(kind, fit_briefly, clusters):
    means, z = clusters(100, 2, 0), clusters(20, 2, 1)
    first, again = (fit_briefly(means, kind, seed=3) for _ in range(2))
    assert torch.equal(first.log_density(z), again.log_density(z))
    draws = [f.sample(9, torch.Generator().manual_seed(s)) for f, s in ((first, 1), (again, 1), (first, 2))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].dtype == torch.float32 and draws[0].shape == (9, 2)


def test_the_rules_choose(clusters):
    means = clusters(600, 2, 0)
    assert fit_density(means, "gmm").settings == {"num_components": 2}
    assert fit_density(means, "gmm", num_components=5).settings == {"num_components": 5}
    kernel = fit_density(means, "kde")
    factor = kernel.settings["scott_factor"]
    assert kernel.settings["bandwidth"] == pytest.approx(factor * 600 ** (-1 / 6))
    held_out = clusters(500, 2, 1)
    chosen = kernel.log_density(held_out).mean()
    for bandwidth in (1 / 8, 8):
        other = fit_density(means, "kde", bandwidth=bandwidth * kernel.settings["bandwidth"])
        assert chosen > other.log_density(held_out).mean()


def test_matern_is_positive_far_away(fitted):
    assert fitted("mkde", 2).log_density(torch.tensor([[40.0, 30.0]])).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_points(kind):
    with pytest.raises(ValueError, match=r"means: expected shape \[N, d\].*\[50\]"):
        fit_density(torch.randn(50), kind)
    with pytest.raises(ValueError, match="means: expected at least 20 points in 2 dimensions, received 19"):
        fit_density(torch.randn(19, 2), kind)
    with pytest.raises(ValueError, match="means: expected at least 31 points in 30 dimensions, received 30"):
        fit_density(torch.randn(30, 30), kind)
    means = torch.randn(50, 2)
    means[7, 1] = float("nan")
    with pytest.raises(ValueError, match="means: .*NaN or infinity in row 7"):
        fit_density(means, kind)
    means = torch.randn(50, 3)
    means[:, 1] = 0.1
    with pytest.raises(ValueError, match="means: .*coordinate 1 is constant"):
        fit_density(means, kind)
    means[:, 1] = means[:, 0] / 3
    with pytest.raises(ValueError, match="means: .*coordinate 1 is .*linear"):
        fit_density(means, kind)


def test_bad_options(clusters):
    means = clusters(50, 2, 0)
    with pytest.raises(ValueError, match="density: expected one of gaussian, gmm, kde, flow, mkde, received 'kd'"):
        fit_density(means, "kd")
    with pytest.raises(TypeError, match="bandwidth"):
        fit_density(means, "gmm", bandwidth=1.0)
    for kind, option, value in (("gmm", "num_components", 0), ("gmm", "num_components", 51), ("kde", "bandwidth", 0.0)):
        with pytest.raises(ValueError, match=f"{option}: .*received {value}"):
            fit_density(means, kind, **{option: value})
    with pytest.raises(ValueError, match="d: mkde .* d = 1 or 2, received d = 3"):
        fit_density(clusters(50, 3, 0), "mkde")
    with pytest.raises(ValueError, match="num_cells: .*received 3"):
        fit_density(means, "mkde", num_cells=3)
    density = fit_density(means, "gaussian")
    with pytest.raises(ValueError, match="n: expected an int >= 1, received 0"):
        density.sample(0)
    with pytest.raises(ValueError, match=r"z: expected shape \[N, 2\], received \[5, 3\]"):
        density.log_density(torch.randn(5, 3))


def test_bad_flow_options(needs, clusters):
    needs("flow")
    for option in ("steps", "batch_size", "learning_rate"):
        with pytest.raises(ValueError, match=f"{option}: expected a number > 0, received 0"):
            fit_density(clusters(50, 2, 0), "flow", **{option: 0})


@pytest.mark.parametrize("kind, module", [("gmm", "sklearn"), ("kde", "sklearn"), ("flow", "zuko"), ("mkde", "nifty")])
def test_a_missing_library_names_its_extra(kind, module, monkeypatch, clusters):
    for name in list(sys.modules):
        if name.partition(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    extra = "train" if module == "sklearn" else kind
    with pytest.raises(ModuleNotFoundError, match=rf"'{kind}' needs {module}.*pip install 'fisherkernels\[{extra}\]'"):
        fit_density(clusters(50, 2, 0), kind)
