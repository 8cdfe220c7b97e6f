"""Whole graphs: value and gradients of compiled samples, solves and determinants equal the eager ones."""

import pytest
import torch
from metric_cases import EXACT, Case, assert_close, assert_same_gradients

from fisherkernels import FisherMetric, reference

CASES = {
    "cholesky": ("residual", {"method": "cholesky"}),
    "auto": ("wide mlp", {"method": "auto"}),
    "cg": ("group norm", {"method": "cg", "tol": EXACT, "max_iter": 4}),
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
    case = Case(kind, "[D]", count=2, d=3)
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
    case = Case("wide mlp", "0-d", count=3, d=4, dtype=dtype)
    with torch.no_grad():
        weight = case.decoder[2].weight
        weight.copy_(weight[:, :1] @ torch.ones(1, 4, dtype=dtype))
    b = case.vectors()

    def call(mean):
        return FisherMetric(case.decoder, mean, 0.3).solve(b, method="cholesky")

    with torch.no_grad():
        ours = torch.compile(call, backend="aot_eager", fullgraph=True)(case.mean)
        assert_close("eager", call(case.mean), ours)
    exact = reference.fisher_metric(case.decoder.double(), case.mean.double(), 0.3)
    assert_close("solve", ours, torch.linalg.solve(exact, b.double()))


def test_drawn_noise_differs_from_call_to_call():
    case = Case("mlp", "0-d", dtype=torch.float32)
    call = torch.compile(
        lambda mean: FisherMetric(case.decoder, mean, 0.3).sample(2, method="cholesky"),
        backend="aot_eager",
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
        backend="aot_eager",
        fullgraph=True,
    )
    spoilt = call(mean, *noise)
    assert spoilt[:, 1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(spoilt[:, others], clean[:, others])
