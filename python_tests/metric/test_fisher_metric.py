"""FisherMetric against dense linear algebra in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import DECODERS, EXACT, NOISE, Case, assert_close, make_decoder, make_noise
from torch import nn

from fisherkernels import FisherMetric, reference

cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(DECODERS)),
        "noise": st.sampled_from(NOISE),
        "count": st.sampled_from([1, 2, 5]),
        "d": st.sampled_from([1, 2, 3, 5, 8, 9, 17]),  # above some of the decoders' D and hidden widths
        "memory_budget": st.sampled_from([2**30, 1]),
        "method": st.sampled_from(["auto", "cg", "cholesky"]),
        "seed": st.integers(0, 10**6),
    }
)


def make(case, **changes):
    options = {**case, **changes}
    torch.manual_seed(options.pop("seed"))
    method = options.pop("method")
    return Case(**options), method


def inverse_times(M, b):
    """M^-1 b of a stack b [K, N, d]."""
    return torch.linalg.solve(M, b.movedim(0, -1)).movedim(-1, 0)


@settings(max_examples=40)
@given(case=cases)
def test_matrix_and_products(case):
    case, _ = make(case)
    M = case.dense()
    assert_close("dense", case.metric.dense(), M)
    assert_close("value", case.metric.value, case.decoder(case.mean))
    single, stack = case.vectors(), case.vectors(4)
    assert_close("matvec", case.metric.matvec(single), torch.einsum("nij,nj->ni", M, single))
    assert_close("matvec of a stack", case.metric.matvec(stack), torch.einsum("nij,knj->kni", M, stack))


@settings(max_examples=60)
@given(case=cases, stack=st.sampled_from([None, 1, 3]))
def test_solve(case, stack):
    case, method = make(case)
    b = case.vectors() if stack is None else case.vectors(stack)
    x, info = case.metric.solve(b, method=method, tol=EXACT, return_info=True)
    expected = inverse_times(case.dense(), b if stack else b[None])
    assert_close("solve", x, expected if stack else expected[0])
    assert info.method in ("cg", "cholesky") and (method == "auto" or info.method == method)
    assert info.iterations.shape == info.residual.shape == info.converged.shape == b.shape[:-1]
    assert info.converged.all() and info.residual.max() < 1e-12
    assert info.iterations.max() <= case.mean.shape[1] + 2


@settings(max_examples=60)
@given(case=cases, draws=st.sampled_from([1, 3]), mirrored=st.booleans())
def test_sample(case, draws, mirrored):
    case, method = make(case)
    noise, count = case.noise(draws), 2 * draws if mirrored else draws
    z, info = case.metric.sample(
        count, noise=noise, mirrored=mirrored, method=method, tol=EXACT, return_info=True
    )
    expected = reference.fisher_metric_sample(case.decoder, case.mean, case.noise_variance, noise, mirrored)
    assert_close("sample", z, expected)
    assert info.residual.shape == (draws, case.mean.shape[0])
    assert info.converged.all() and info.residual.max() < 1e-12


@settings(max_examples=30)
@given(case=cases)
def test_determinant_and_eigenvectors(case):
    case, _ = make(case)
    M = case.dense()
    for method in ("exact", "auto"):
        assert_close("logdet", case.metric.logdet(method), torch.linalg.slogdet(M).logabsdet)
    values, vectors = case.metric.eigh()
    assert_close("eigenvalues", values, torch.linalg.eigvalsh(M))
    assert (values.diff(dim=1) >= 0).all() and values.min() > 1 - 1e-12
    assert_close("M V = V diag", M @ vectors, vectors * values[:, None])
    assert_close("V^T V = 1", vectors.mT @ vectors, torch.eye(M.shape[1]).double().expand_as(M))


@settings(max_examples=20)
@given(case=cases, num_steps=st.sampled_from([17, 40]))
def test_lanczos_of_as_many_steps_as_dimensions_is_exact_for_its_probes(case, num_steps):
    """Quadrature of v^T ln(M) v, a mean over probes; unit vectors sqrt(d) e_k together give ln|M|."""
    case, _ = make(case)
    d = case.mean.shape[1]
    logarithm = matrix_logarithm(case.dense())
    probes = case.vectors(5)
    expected = torch.einsum("kni,nij,knj->n", probes, logarithm, probes) / 5
    floor = 1e-3  # of ReLUs that are all off ln|M| is 0
    assert_close("probes", case.metric.logdet("lanczos", noise=probes, num_steps=num_steps), expected, floor=floor)
    unit = d**0.5 * torch.eye(d).double()[:, None].expand(-1, case.mean.shape[0], -1)
    exact = torch.linalg.slogdet(case.dense()).logabsdet
    assert_close("unit vectors", case.metric.logdet("lanczos", noise=unit, num_steps=num_steps), exact, floor=floor)


def matrix_logarithm(M):
    values, vectors = torch.linalg.eigh(M)
    return (vectors * values.log()[:, None]) @ vectors.mT


def test_lanczos_of_few_steps_estimates_the_determinant():
    """d = 40, 12 steps: the drawn probes' mean lies within 5 standard errors, and twice the probes are drawn anew."""
    case = Case(d=40, count=2)
    exact = torch.linalg.slogdet(case.dense()).logabsdet
    ln_m = matrix_logarithm(case.dense())
    off_diagonal = ln_m - torch.diag_embed(ln_m.diagonal(dim1=1, dim2=2))
    error = (2 * off_diagonal.square().sum((1, 2)) / 200).sqrt()  # of sign vectors
    first, second = (case.metric.logdet("lanczos", num_probes=200, num_steps=12) for _ in range(2))
    assert ((first - exact).abs() < 5 * error).all() and ((second - exact).abs() < 5 * error).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
@pytest.mark.parametrize("kind", DECODERS)
def test_float32_within_its_rounding(kind, method):
    case = Case(kind, "[D]", count=5, d=6, dtype=torch.float32)
    exact_decoder, noise = case.decoder, case.noise(2)
    z = case.metric.sample(2, noise=noise, method=method, tol=1e-7)
    logdet = case.metric.logdet()
    exact_decoder.double()
    expected = reference.fisher_metric_sample(
        exact_decoder, case.mean.double(), case.noise_variance.double(), [n.double() for n in noise]
    )
    assert z.dtype == torch.float32
    assert_close("sample", z, expected)
    M = reference.fisher_metric(exact_decoder, case.mean.double(), case.noise_variance.double())
    assert_close("logdet", logdet, torch.linalg.slogdet(M).logabsdet)


@pytest.mark.parametrize("kind", ["wide mlp", "residual", "conv"])
def test_cholesky_is_backward_stable(kind):
    """With d = 20, above the rank of J, and little noise: the residual is small beside |M| |x| all the same."""
    case = Case(kind, count=5, d=20, dtype=torch.float32)
    for variance in (1e-4, 1e-6):
        metric = FisherMetric(case.decoder, case.mean, variance)
        M = reference.fisher_metric(case.decoder, case.mean, variance).double()
        assert torch.linalg.cond(M).max() > 1e3
        b = case.vectors()
        x = metric.solve(b, method="cholesky").double()
        residual = torch.einsum("nij,nj->ni", M, x) - b
        scale = torch.linalg.matrix_norm(M, 2) * x.norm(dim=1) + b.norm(dim=1)
        assert (residual.norm(dim=1) <= 50 * torch.finfo(torch.float32).eps * scale).all()


@pytest.mark.parametrize("method", ["cg", "cholesky"])
@pytest.mark.parametrize("noise", ["float", "[D]", "[N, D]"])
def test_linear_decoder_gives_the_exact_posterior(method, noise):
    """Mean and covariance of z given x = W z + c + n, by algebra.

    The sample is linear in its noise, z = mean + A e, so the images of unit vectors are A's columns and their
    outer products sum to A A^T, the covariance: nothing here is statistical.
    """
    N, d, D = 3, 4, 6
    case = Case("linear", noise, count=N, d=d)
    W, c, x = case.decoder.weight, case.decoder.bias, torch.randn(N, D).double()
    variance = torch.as_tensor(case.noise_variance, dtype=torch.float64).expand(N, D)
    joint = W @ W.T + torch.diag_embed(variance)  # Cov x [N, D, D]; Cov(z, x) = W^T
    gain = torch.linalg.solve(joint, W.expand(N, -1, -1)).mT  # [N, d, D]
    posterior_mean = torch.einsum("nij,nj->ni", gain, x - c)
    posterior_covariance = torch.eye(d).double() - gain @ W

    information = (x - c) / variance @ W
    assert_close("mean", case.metric.solve(information, method=method, tol=EXACT), posterior_mean)
    unit = torch.eye(D + d).double()[:, None].expand(-1, N, -1)  # [D + d, N, D + d]
    z = case.metric.sample(D + d, noise=(unit[..., :D], unit[..., D:]), method=method, tol=EXACT)
    A = (z - case.mean).permute(1, 2, 0)  # [N, d, D + d]
    assert_close("covariance", A @ A.mT, posterior_covariance)


def test_drawn_samples_have_the_metric_as_precision():
    """20,000 draws, which only their right scaling could whiten to the identity."""
    case = Case("conv", "trailing", count=2, d=3)
    offset = case.metric.sample(20_000, method="cholesky") - case.mean  # [S, N, d]
    covariance = torch.einsum("sni,snj->nij", offset, offset) / 20_000
    assert (case.dense() @ covariance - torch.eye(3).double()).abs().max() < 0.1
    assert offset.mean(0).abs().max() < 0.05


def test_mirrored_halves():
    case = Case()
    z = case.metric.sample(6, mirrored=True)
    torch.testing.assert_close(z[:3] + z[3:], 2 * case.mean.expand(3, -1, -1))
    assert (z[0] != z[1]).all()


def test_data_noise_in_the_value_s_shape():
    case = Case("conv", d=3)
    data, latent = case.noise(2)
    shaped = data.view(2, *case.metric.value.shape)
    torch.testing.assert_close(
        case.metric.sample(2, noise=(shaped, latent), method="cholesky"),
        case.metric.sample(2, noise=(data, latent), method="cholesky"),
    )


def test_each_sample_stops_by_itself():
    """A sample whose metric is the identity takes one step beside others that take several, and stays exact."""
    decoder = nn.Sequential(make_decoder("linear", 8), nn.ReLU())
    with torch.no_grad():
        decoder[0].bias.zero_()
    mean = torch.randn(4, 8).double()
    mean[2] = -torch.linalg.pinv(decoder[0].weight) @ torch.ones(6).double()  # every unit is off: J = 0
    metric = FisherMetric(decoder, mean, 0.1)
    b = torch.randn(4, 8).double()
    x, info = metric.solve(b, method="cg", tol=1e-12, return_info=True)
    torch.testing.assert_close(x[2], b[2])
    assert info.iterations[2] <= 1 < info.iterations[[0, 1, 3]].min()
    assert_close("solve", x, torch.linalg.solve(reference.fisher_metric(decoder, mean, 0.1), b))


def test_tolerance_is_of_the_relative_residual():
    case = Case("mlp", count=6, d=12)
    b = case.vectors(3) * torch.logspace(-6, 6, 6).double()[:, None]
    iterations = []
    for tol in (1e-1, 1e-3, 1e-6):
        _, info = case.metric.solve(b, method="cg", tol=tol, return_info=True)
        assert info.residual.max() <= 1.001 * tol and info.converged.all()
        iterations.append(info.iterations.sum().item())
    assert iterations[0] < iterations[1] < iterations[2]


def test_right_hand_side_zero():
    case = Case()
    for method in ("cg", "cholesky"):
        x, info = case.metric.solve(torch.zeros(3, 4).double(), method=method, return_info=True)
        assert (x == 0).all() and info.converged.all() and (info.residual == 0).all()


def test_strided_right_hand_sides():
    case = Case(d=4)
    b = torch.randn(4, 3, 2).double().permute(2, 1, 0)  # [2, 3, 4]
    for method in ("cg", "cholesky"):
        ours = case.metric.solve(b, method=method, tol=EXACT)
        assert_close(method, ours, inverse_times(case.dense(), b))
    assert_close("matvec", case.metric.matvec(b), torch.einsum("nij,knj->kni", case.dense(), b))


def test_repr_shows_sizes_and_what_auto_takes():
    text = repr(Case(count=3, d=4).metric)
    assert all(part in text for part in ("N=3", "d=4", "D=6", "auto"))
    assert "cg" in text and "cholesky" in text


def test_frozen_batch_statistics():
    """The layer's statistics, of the batch at the mean, are constants of J; the metric is that of the eval network."""
    norm = nn.BatchNorm1d(8).double()
    decoder = nn.Sequential(nn.Linear(3, 8).double(), norm, nn.Tanh(), nn.Linear(8, 5).double())
    mean = torch.randn(6, 3).double()
    metric = FisherMetric(decoder, mean, 0.3, batch_statistics="frozen")
    hidden = decoder[0](mean)
    with torch.no_grad():
        norm.running_mean.copy_(hidden.mean(0))
        norm.running_var.copy_(hidden.var(0, unbiased=False))
    decoder.eval()
    assert_close("dense", metric.dense(), reference.fisher_metric(decoder, mean, 0.3))
    assert_close("eval", FisherMetric(decoder, mean, 0.3).dense(), metric.dense())


def test_noise_helpers_agree_on_a_value_of_one_number():
    """D = 1 with the value [N], no trailing dimension."""
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    mean = torch.randn(5, 3).double()
    metric = FisherMetric(decoder, mean, 0.2)
    noise = make_noise(decoder, mean, 2)
    assert metric.value.shape == (5,) and noise[0].shape == (2, 5, 1)
    M = reference.fisher_metric(decoder, mean, 0.2)
    assert_close("dense", metric.dense(), M)
    for method in ("cg", "cholesky"):
        z = metric.sample(2, noise=noise, method=method, tol=EXACT)
        assert_close(method, z, reference.fisher_metric_sample(decoder, mean, 0.2, noise))
