"""Whole graphs: value and gradients of compiled samples, solves and determinants equal the eager ones."""

import pytest
import torch
from metric_cases import EXACT, Case, assert_close, assert_same_gradients
from torch import nn

from fisherkernels import FisherMetric, reference

CASES = {
    "cholesky": ("group norm", {"method": "cholesky"}),
    "active units": ("relu mlp", {"method": "auto"}),
    "cg": ("mlp", {"method": "cg", "tol": EXACT, "max_iter": 2}),
}


def sample_and_solve(case, options):
    def call(mean, variance, data, latent, b):
        metric = FisherMetric(case.decoder, mean, variance)
        z = metric.sample(2, noise=(data, latent), **options)
        return torch.cat([z, metric.solve(b, **options)[None]])

    return call, (case.mean, case.noise_variance, *case.noise(2), case.vectors())


@pytest.mark.parametrize("name", CASES)
def test_sample_and_solve(name):
    kind, options = CASES[name]
    case = Case(kind, "[D]", count=3, d=2)
    call, inputs = sample_and_solve(case, options)
    ours, theirs = torch.compile(call, backend="aot_eager", fullgraph=True)(*inputs), call(*inputs)
    assert_close("value", ours, theirs)
    assert_same_gradients(ours, theirs, case.leaves)


def test_other_results():
    case = Case("conv", "[D]", count=3, d=3)
    probes, v = case.vectors(2), case.vectors()

    def call(mean, variance):
        metric = FisherMetric(case.decoder, mean, variance)
        lanczos = metric.logdet("lanczos", noise=probes)
        return torch.cat([metric.logdet("exact"), lanczos, metric.dense().flatten(), metric.matvec(v).flatten()])

    inputs = (case.mean, case.noise_variance)
    ours, theirs = torch.compile(call, backend="aot_eager", fullgraph=True)(*inputs), call(*inputs)
    assert_close("value", ours, theirs)
    assert_same_gradients(ours, theirs, case.leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_last_layer_of_low_rank(dtype):
    """W^T N^-1 W then has no Cholesky factor, which a graph cannot look at."""
    decoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 60)).to(dtype)
    mean, b = torch.randn(8, 4, dtype=dtype), torch.randn(8, 4, dtype=dtype)
    with torch.no_grad():
        decoder[2].weight.copy_(0.1 * torch.randn(60, 2, dtype=dtype) @ torch.randn(2, 16, dtype=dtype))

    def call(mean):
        return FisherMetric(decoder, mean, 0.3).solve(b, method="cholesky")

    with torch.no_grad():
        ours = torch.compile(call, backend="eager", fullgraph=True)(mean)
    exact = reference.fisher_metric(decoder.double(), mean.double(), 0.3)
    assert_close("solve", ours, torch.linalg.solve(exact, b.double()))


def test_drawn_noise_differs_from_call_to_call():
    case = Case("mlp", "0-d", dtype=torch.float32)
    call = torch.compile(
        lambda mean: FisherMetric(case.decoder, mean, 0.3).sample(2, method="cholesky"),
        backend="eager",
        fullgraph=True,
    )
    assert not torch.equal(call(case.mean), call(case.mean))


def test_nan_stays_in_its_sample():
    """A graph raises nothing: the sample with the NaN has NaN, and no other."""
    case = Case("mlp", "0-d", count=4)
    mean = case.mean.detach().clone()
    noise = case.noise(2)
    clean = FisherMetric(case.decoder, mean, 0.3).sample(2, noise=noise, method="cholesky")
    mean[1, 2] = float("nan")
    call = torch.compile(
        lambda mean, data, latent: FisherMetric(case.decoder, mean, 0.3).sample(
            2, noise=(data, latent), method="cholesky"
        ),
        backend="eager",
        fullgraph=True,
    )
    spoilt = call(mean, *noise)
    assert spoilt[:, 1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(spoilt[:, others], clean[:, others])
