"""Gradients of what FisherMetric gives, against backprop through the dense matrix and its inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import DECODERS, EXACT, NOISE, Case, assert_same_gradients, gradients, make_decoder
from torch import nn

from fisherkernels import FisherMetric, reference

cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(DECODERS)),
        "noise": st.sampled_from(NOISE),
        "count": st.sampled_from([1, 3]),
        "d": st.sampled_from([1, 2, 5, 9]),
        "memory_budget": st.sampled_from([2**30, 1]),
        "seed": st.integers(0, 10**6),
    }
)
methods = st.sampled_from(["auto", "cg", "cholesky"])


def make(case):
    options = dict(case)
    torch.manual_seed(options.pop("seed"))
    return Case(**options)


def dense_solve(M, b):
    return torch.linalg.solve(M, b.movedim(0, -1)).movedim(-1, 0)


@settings(max_examples=50)
@given(case=cases, method=methods, stack=st.sampled_from([1, 2]))
def test_solve(case, method, stack):
    case = make(case)
    b = case.vectors(stack).requires_grad_()
    leaves = {**case.leaves, "b": b}
    ours = case.metric.solve(b, method=method, tol=EXACT)
    assert_same_gradients(ours, dense_solve(case.dense(), b), leaves)


@settings(max_examples=50)
@given(case=cases, method=methods, mirrored=st.booleans())
def test_sample(case, method, mirrored):
    case = make(case)
    noise = case.noise(2)
    ours = case.metric.sample(
        4 if mirrored else 2, noise=noise, mirrored=mirrored, method=method, tol=EXACT
    )
    theirs = reference.fisher_metric_sample(case.decoder, case.mean, case.noise_variance, noise, mirrored)
    assert_same_gradients(ours, theirs, case.leaves)


@settings(max_examples=40)
@given(case=cases, what=st.sampled_from(["matvec", "dense", "logdet", "lanczos", "eigenvalues"]))
def test_products_and_determinants(case, what):
    case = make(case)
    M, v = case.dense(), case.vectors(2)
    if what == "matvec":
        ours, theirs = case.metric.matvec(v), torch.einsum("nij,knj->kni", M, v)
    elif what == "dense":
        ours, theirs = case.metric.dense(), M
    elif what == "eigenvalues":
        ours, theirs = case.metric.eigh()[0], torch.linalg.eigvalsh(M)
    else:
        d = case.mean.shape[1]  # unit vectors as probes make the quadrature exact
        unit = d**0.5 * torch.eye(d).double()[:, None].expand(-1, case.mean.shape[0], -1)
        options = {"noise": unit, "num_steps": d} if what == "lanczos" else {}
        ours = case.metric.logdet("lanczos" if what == "lanczos" else "exact", **options)
        theirs = torch.linalg.slogdet(M).logabsdet
    assert_same_gradients(ours, theirs, case.leaves)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
@pytest.mark.parametrize("kind", ["wide mlp", "residual"])
def test_gradcheck(kind, method):
    """Of solve and sample in float64, with respect to everything they depend on."""
    decoder = make_decoder(kind, 3)
    parameters = list(decoder.parameters())
    columns = decoder(torch.zeros(1, 3).double()).shape[1:].numel()
    mean, b = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 3).double().requires_grad_()
    variance = (0.3 + torch.rand(columns).double()).requires_grad_()
    noise = torch.randn(2, 2, columns).double(), torch.randn(2, 2, 3).double()
    options = {"method": method, "tol": EXACT}

    def outputs(mean, variance, b, *_):
        metric = FisherMetric(decoder, mean, variance)
        return metric.solve(b, **options), metric.sample(2, noise=noise, **options)

    assert torch.autograd.gradcheck(outputs, (mean, variance, b, *parameters), fast_mode=True)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_gradient_mean_leaves_one_path(method):
    """Of a sample only the mean carries gradient, unchanged; of a solve only b, through M^-1."""
    case = Case("mlp", "[D]")
    noise, b = case.noise(2), case.vectors().requires_grad_()
    leaves = list(case.leaves.values())
    full, z = (
        case.metric.sample(2, noise=noise, method=method, tol=EXACT, gradient=gradient)
        for gradient in ("full", "mean")
    )
    torch.testing.assert_close(full, z)
    weight = torch.randn_like(z)
    found = torch.autograd.grad((z * weight).sum(), leaves, allow_unused=True)
    torch.testing.assert_close(found[0], weight.sum(0))
    assert all(g is None for g in found[1:])

    x = case.metric.solve(b, method=method, tol=EXACT, gradient="mean")
    assert all(g is None for g in torch.autograd.grad(x.sum(), leaves, allow_unused=True, retain_graph=True))
    (found,) = torch.autograd.grad((x * weight[0]).sum(), b)
    torch.testing.assert_close(found, torch.linalg.solve(case.dense(), weight[0]).detach())


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_gradient_of_the_noise_given(method):
    """The draws themselves may be a function of something."""
    case = Case("residual", "0-d", count=2, d=3)
    noise = [n.requires_grad_() for n in case.noise(2)]
    leaves = {"data": noise[0], "latent": noise[1], **case.leaves}
    ours = case.metric.sample(2, noise=noise, method=method, tol=EXACT)
    theirs = reference.fisher_metric_sample(case.decoder, case.mean, case.noise_variance, noise)
    assert_same_gradients(ours, theirs, leaves)


def test_several_results_of_one_metric_in_one_backward():
    """The factor that they share carries no stale graph."""
    case = Case("conv", "[N, D]", count=2, d=3)
    noise, b = case.noise(2), case.vectors()
    M = case.dense()
    sample = reference.fisher_metric_sample(case.decoder, case.mean, case.noise_variance, noise)
    theirs = [sample.sum(), torch.linalg.slogdet(M).logabsdet.sum(), torch.linalg.solve(M, b).square().sum()]
    for method in ("cg", "cholesky"):
        metric = FisherMetric(case.decoder, case.mean, case.noise_variance)
        ours = [
            metric.sample(2, noise=noise, method=method, tol=EXACT).sum(),
            metric.logdet().sum(),
            metric.solve(b, method=method, tol=EXACT).square().sum(),
        ]
        assert_same_gradients(torch.stack(ours), torch.stack(theirs), case.leaves)
        with torch.no_grad():
            again = metric.sample(2, noise=noise, method=method, tol=EXACT)
        torch.testing.assert_close(again, sample.detach())


def test_tolerance_of_the_backward_solve():
    """A loose tolerance gives a gradient that is off by about as much, not by more."""
    case = Case("mlp", "[D]", count=4, d=12)
    noise, weight = case.noise(2), torch.randn(2, 4, 12).double()
    found = []
    for tol in (1e-3, EXACT):
        z = case.metric.sample(2, noise=noise, method="cg", tol=tol)
        of_weights = gradients(z, dict(case.decoder.named_parameters()), weight)
        found.append(torch.cat([g.flatten() for g in of_weights.values()]))
    error = (found[0] - found[1]).norm() / found[1].norm()
    assert 0 < error < 2e-2


def test_no_graph_where_none_is_wanted():
    case = Case("mlp", "[D]")
    with torch.no_grad():
        metric = FisherMetric(case.decoder, case.mean, case.noise_variance)
        results = (
            metric.sample(2), metric.solve(case.vectors()), metric.logdet(), metric.logdet("lanczos"),
            metric.dense(), metric.matvec(case.vectors()), *metric.eigh(),
        )  # fmt: skip
    assert not any(result.requires_grad for result in results)
    decoder = nn.Linear(4, 6).double().requires_grad_(False)
    metric = FisherMetric(decoder, case.mean.detach(), 0.3)
    assert not metric.sample(2).requires_grad and not metric.logdet().requires_grad


@pytest.mark.parametrize(
    "make",
    [lambda metric: metric.solve(torch.ones(3, 2, dtype=torch.float64), method="cg"), lambda metric: metric.logdet()],
)
def test_differentiable_once(make):
    """Also through torch.autograd.grad, which runs only what is on a path to an input: nothing is silently left out."""
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    z = torch.randn(3, 2, dtype=torch.float64).requires_grad_()
    result = make(FisherMetric(decoder, z, torch.ones(4, dtype=torch.float64)))
    (grad,) = torch.autograd.grad(result.square().sum() + z.pow(3).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="is differentiable once"):
        torch.autograd.grad(grad.sum(), z)
