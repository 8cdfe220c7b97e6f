"""Sizes of zero and one, more latent dimensions than values, NaN, and what does not converge."""

import warnings

import pytest
import torch
from metric_cases import EXACT, Case, assert_close, make_decoder, make_noise
from torch import nn

from fisherkernels import FisherMetric, reference

methods = pytest.mark.parametrize("method", ["auto", "cg", "cholesky"])


@methods
@pytest.mark.parametrize(("kind", "count", "d"), [("mlp", 3, 0), ("mlp", 0, 4), ("conv", 0, 4), ("linear", 0, 0)])
def test_nothing_to_solve(kind, count, d, method):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # of torch's nn.Linear(0, 8)
        case = Case(kind, count=count, d=d)
    b = case.vectors(2)
    x, info = case.metric.solve(b, method=method, return_info=True)
    assert x.shape == b.shape and info.iterations.shape == b.shape[:2] and info.converged.all()
    z = case.metric.sample(4, mirrored=True, method=method)
    assert z.shape == (4, count, d)
    assert case.metric.matvec(b).shape == b.shape
    assert case.metric.dense().shape == (count, d, d)
    values, vectors = case.metric.eigh()
    assert values.shape == (count, d) and vectors.shape == (count, d, d)
    for name in ("exact", "lanczos", "auto"):
        logdet = case.metric.logdet(name)
        assert logdet.shape == (count,) and (logdet == 0).all()
    loss = z.sum() + case.metric.logdet().sum() + x.sum()
    gradients = torch.autograd.grad(loss, list(case.leaves.values()), allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    repr(case.metric)


@methods
def test_no_right_hand_side(method):
    case = Case()
    assert case.metric.solve(case.vectors(0), method=method).shape == (0, 3, 4)
    assert case.metric.matvec(case.vectors(0)).shape == (0, 3, 4)


@methods
@pytest.mark.parametrize("kind", ["linear", "sigmoid", "conv"])
def test_more_latent_dimensions_than_values(kind, method):
    """d = 40: M is the identity on at least d - D directions."""
    case = Case(kind, "[D]", count=2, d=40)
    noise = case.noise(1)
    z = case.metric.sample(1, noise=noise, method=method, tol=EXACT)
    assert_close("sample", z, reference.fisher_metric_sample(case.decoder, case.mean, case.noise_variance, noise))
    columns = case.metric.value[0].numel()
    assert_close("unit", case.metric.eigh()[0][:, : 40 - columns], torch.ones(2, 40 - columns).double())


@methods
def test_one_sample_one_dimension_one_value(method):
    decoder, mean = nn.Sequential(nn.Linear(1, 1), nn.Softplus()).double(), torch.randn(1, 1).double()
    metric = FisherMetric(decoder, mean, 0.1)
    slope = torch.sigmoid(decoder[0](mean)) * decoder[0].weight
    torch.testing.assert_close(metric.solve(torch.ones(1, 1).double(), method=method), 1 / (1 + slope**2 / 0.1))
    torch.testing.assert_close(metric.logdet(), torch.log(1 + slope**2 / 0.1)[0])


def ill_conditioned(count=5, d=30):
    """30 eigenvalues from 1 to 1e6, evenly in their logarithm."""
    decoder = nn.Linear(d, d, bias=False).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.diag(torch.logspace(-3, 3, d).double()))
    return FisherMetric(decoder, torch.randn(count, d).double(), 1.0)


def test_max_iter_reached_is_told_with_counts():
    metric = ill_conditioned()
    b = torch.randn(2, 5, 30).double()
    b[:, 3] = 0  # these two are solved at the start
    with pytest.warns(RuntimeWarning, match=r"8 of 10 .*relative residual of 1e-10 in max_iter=4 iterations"):
        x, info = metric.solve(b, method="cg", tol=1e-10, max_iter=4, return_info=True)
    unsolved = torch.tensor([True, True, True, False, True])
    assert torch.equal(~info.converged, unsolved.expand(2, -1))
    assert (info.iterations[:, unsolved] == 4).all() and (info.iterations[:, 3] == 0).all()
    relative = (b - metric.matvec(x))[:, unsolved].norm(dim=2) / b[:, unsolved].norm(dim=2)
    assert_close("residual", info.residual[:, unsolved], relative)
    assert relative.min() > 1e-10
    with pytest.warns(RuntimeWarning, match="max_iter=2"):
        metric.sample(method="cg", max_iter=2)


def test_warning_points_to_the_caller():
    metric = ill_conditioned()
    for call in (
        lambda: metric.solve(torch.randn(5, 30).double(), method="cg", max_iter=2),
        lambda: metric.sample(method="cg", max_iter=2),
    ):
        with pytest.warns(RuntimeWarning) as caught:
            call()
        assert caught[0].filename == __file__


def test_cg_needs_no_more_steps_than_dimensions():
    """Thirty distinct eigenvalues over six decades: orthogonal residuals end it within d steps and a few."""
    metric = ill_conditioned()
    b = torch.randn(5, 30).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, info = metric.solve(b, method="cg", tol=1e-9, return_info=True)
    assert info.iterations.max() <= 32 and info.residual.max() < 1e-8
    assert_close("solve", x, b / (1 + torch.logspace(-6, 6, 30).double()), 1e-6)


@methods
def test_nan_names_its_sample(method):
    mean = torch.randn(5, 4).double()
    mean[3, 1] = float("nan")
    metric = FisherMetric(make_decoder("mlp", 4), mean, 1.0)
    with pytest.raises(FloatingPointError, match="sample 3"):
        metric.solve(torch.randn(5, 4).double(), method=method)
    with pytest.raises(FloatingPointError, match="sample 3"):
        metric.sample(2, method=method)
    with pytest.raises(FloatingPointError, match="sample 3"):
        metric.logdet("exact")


def test_nan_in_a_right_hand_side_names_its_sample():
    case = Case(count=5)
    b = case.vectors(2)
    b[1, 2, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="sample 2"):
        case.metric.solve(b, method="cg")


@methods
def test_nan_in_weights_is_an_error(method):
    case = Case()
    with torch.no_grad():
        next(case.decoder.parameters())[0, 0] = float("nan")
    metric = FisherMetric(case.decoder, case.mean, 0.3)
    with pytest.raises(FloatingPointError, match="sample 0"):
        metric.sample(method=method)


def test_flat_decoder_has_the_prior_s_metric():
    """J = 0: M is the identity, and a sample is the latent noise."""
    decoder = nn.Sequential(nn.Linear(3, 5), nn.Flatten()).double()
    nn.init.zeros_(decoder[0].weight)
    metric = FisherMetric(decoder, torch.randn(4, 3).double(), 0.1)
    noise = make_noise(decoder, metric.mean, 2)
    for method in ("cg", "cholesky"):
        torch.testing.assert_close(metric.sample(2, noise=noise, method=method), metric.mean + noise[1])
    assert (metric.logdet() == 0).all()
    assert (metric.logdet("lanczos").abs() < 1e-12).all()
