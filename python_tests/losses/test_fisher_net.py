"""fisher_net_loss against the dense metric and backprop through its inverse."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.utils import fresh_cache

from fisherkernels import FisherMetric, reference
from fisherkernels.losses import fisher_net_loss

EXACT = 1e-13  # relative residual of CG where the comparison is to the last digits
both = pytest.mark.parametrize(
    "implementation", [partial(fisher_net_loss, method="cholesky"), reference.fisher_net_loss], ids=["ours", "dense"]
)

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "linear last", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.sampled_from([2, 4]), st.sampled_from([2, 6])).map(torch.Size),
        "d": st.sampled_from([1, 2, 4, 9]),
        "draws": st.integers(1, 2),
        "mirrored": st.booleans(),
        "xi": st.sampled_from(["float", "0-d", "flat", "trailing"]),
        "logdet": st.sampled_from([False, True, "exact"]),
        "method": st.sampled_from(["auto", "cg", "cholesky"]),
        "gradient": st.sampled_from(["full", "mean"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "seed": st.integers(0, 10**6),
    }
)


def make_networks(kind, shape, d):
    """A mean encoder and a decoder; smooth, so that float32's rounding flips no kink."""
    features = shape.numel()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, d))
    if kind == "mlp":
        last = [nn.Sigmoid(), nn.Unflatten(1, shape)]
        decoder = nn.Sequential(nn.Linear(d, 7), nn.SiLU(), nn.Linear(7, features), *last)
    elif kind == "linear last":
        decoder = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, features), nn.Unflatten(1, shape))
    else:
        small = (4, shape[1] // 2, shape[2] // 2)
        decoder = nn.Sequential(
            nn.Linear(d, math.prod(small)),
            nn.Unflatten(1, small),
            nn.ConvTranspose2d(4, 4, 3, 2, 1, 1),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Conv2d(4, shape[0], 3, 1, 1),
        )
    return encoder, decoder


def make_xi(kind, shape, dtype):
    if kind == "float":
        return -0.7
    size = {"0-d": (), "flat": (shape.numel(),), "trailing": tuple(shape)}[kind]
    return (torch.rand(size, dtype=dtype) - 0.8).requires_grad_()


def make_noise(draws, count, features, d, dtype):
    return torch.randn(draws, count, features, dtype=dtype), torch.randn(draws, count, d, dtype=dtype)


@settings(max_examples=80)
@given(case=cases)
def test_equals_reference(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = (network.to(dtype) for network in make_networks(case["network"], shape, d))
    x, xi = torch.rand(count, *shape, dtype=dtype, requires_grad=True), make_xi(case["xi"], shape, dtype)
    noise = make_noise(case["draws"], count, shape.numel(), d, dtype)
    options = {key: case[key] for key in ("mirrored", "logdet", "gradient", "reduction")}
    options |= {"dataset_size": 50, "num_samples": case["draws"] * (2 if case["mirrored"] else 1)}
    options["logdet"] = options["logdet"] and dtype == torch.float64  # ln(1 + little) keeps absolute digits only
    tol = EXACT if dtype == torch.float64 else 1e-7
    ours = fisher_net_loss(
        encoder, decoder, x, log_noise_variance=xi, noise=noise, method=case["method"], tol=tol, **options
    )
    exact = kit.doubled(encoder, decoder, xi, x)
    theirs = reference.fisher_net_loss(
        exact[0], exact[1], exact[3], log_noise_variance=exact[2], noise=[n.double() for n in noise], **options
    )
    assert ours.loss.dtype == dtype
    kit.assert_same(ours, theirs, kit.leaves_of(encoder, decoder, xi, x), dtype, kit.leaves_of(*exact))


def small_case(network="mlp", d=2, count=3, dtype=torch.float64):
    shape = torch.Size([1, 2, 4])
    encoder, decoder = (part.to(dtype) for part in make_networks(network, shape, d))
    xi = torch.tensor(-0.5, dtype=dtype, requires_grad=True)
    x = torch.rand(count, *shape, dtype=dtype)
    return encoder, decoder, x, {"log_noise_variance": xi, "dataset_size": 20}


@both
def test_equals_the_formula_written_out(implementation):
    """An affine decoder and one latent dimension, in plain Python floats."""
    encoder, decoder = nn.Linear(3, 1).double(), nn.Linear(1, 3).double()
    x, noise = torch.rand(4, 3).double(), make_noise(2, 4, 3, 1, torch.float64)
    xi, p = [-0.3, 0.2, 0.9], 7
    loss, terms = implementation(
        encoder, decoder, x, log_noise_variance=torch.tensor(xi, dtype=torch.float64), dataset_size=p,
        num_samples=2, noise=noise, logdet=True, reduction="none",
    )  # fmt: skip
    w, c = decoder.weight[:, 0].tolist(), decoder.bias.tolist()
    m = 1 + sum(w[j] ** 2 * math.exp(-xi[j]) for j in range(3))
    for i in range(4):
        mu = sum(encoder.weight[0, j].item() * x[i, j].item() for j in range(3)) + encoder.bias[0].item()
        prior = reconstruction = 0.0
        for s in range(2):
            n = [math.exp(-xi[j] / 2) * noise[0][s, i, j].item() for j in range(3)]
            z = mu + (sum(w[j] * n[j] for j in range(3)) + noise[1][s, i, 0].item()) / m
            prior += z**2 / 4
            errors = [x[i, j].item() - w[j] * z - c[j] for j in range(3)]
            reconstruction += sum(errors[j] ** 2 * math.exp(-xi[j]) for j in range(3)) / 4
        expected = {
            "prior": prior,
            "reconstruction": reconstruction,
            "noise": sum(xi) / 2,
            "noise_prior": sum(v**2 for v in xi) / 2 / p,
            "logdet": math.log(m) / 2,
        }
        assert {name: term[i].item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-10)
        assert loss[i].item() == pytest.approx(sum(expected.values()), rel=1e-10)


def test_noise_of_the_whole_data_set():
    """A scalar xi counts for each of the D pixels and its prior once for all p points."""
    encoder, decoder, x, options = small_case(count=4)
    xi = options["log_noise_variance"].item()
    terms = fisher_net_loss(encoder, decoder, x, **options).terms
    torch.testing.assert_close(terms["noise"], torch.full((4,), 0.5 * 8 * xi).double())
    terms = fisher_net_loss(encoder, decoder, x, log_noise_variance=xi, dataset_size=4).terms
    assert terms["noise_prior"].sum().item() == pytest.approx(0.5 * xi**2)


@both
def test_linear_decoder_gives_the_evidence(implementation):
    """Where the Gaussian is the exact posterior, the loss with logdet is -log p(x) up to its stated constants.

    Mirrored draws of sqrt(S/2) times the unit vectors integrate the quadratic terms exactly.
    """
    N, D, d = 4, 5, 3
    decoder = nn.Linear(d, D).double()
    W, c, xi = decoder.weight.detach(), decoder.bias.detach(), torch.linspace(-1, 1, D).double()
    evidence = torch.distributions.MultivariateNormal(c, W @ W.T + torch.diag(xi.exp()))
    x = evidence.sample((N,))
    encoder = nn.Linear(D, d).double()  # the posterior's mean, W^T (W W^T + N)^-1 (x - c)
    with torch.no_grad():
        encoder.weight.copy_(W.T @ torch.linalg.inv(evidence.covariance_matrix))
        encoder.bias.copy_(-encoder.weight @ c)
    unit = (D + d) ** 0.5 * torch.eye(D + d).double()[:, None].expand(-1, N, -1)
    loss, terms = implementation(
        encoder, decoder, x, log_noise_variance=xi, dataset_size=100, logdet=True, num_samples=2 * (D + d),
        mirrored=True, noise=(unit[..., :D], unit[..., D:]), reduction="none",
    )  # fmt: skip
    constants = 0.5 * D * math.log(2 * math.pi) - 0.5 * d - terms["noise_prior"]
    torch.testing.assert_close(loss + constants, -evidence.log_prob(x))
    gradients = torch.autograd.grad(loss.sum(), list(encoder.parameters()))
    assert all(g.abs().max() < 1e-11 for g in gradients)  # the posterior's mean is where the loss is smallest


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_gradcheck(method):
    encoder, decoder, x, options = small_case(count=2)
    inputs = [*encoder.parameters(), *decoder.parameters(), options["log_noise_variance"], x.requires_grad_()]
    noise = make_noise(1, 2, 8, 2, torch.float64)

    def loss(*_):
        return fisher_net_loss(
            encoder, decoder, x, noise=noise, logdet=True, method=method, tol=EXACT, num_samples=2, mirrored=True,
            **options,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_gradient_mean_holds_the_metric():
    """Then the gradients are those of samples at a fixed distance from the mean."""
    encoder, decoder, x, options = small_case()
    noise, leaves = make_noise(2, 3, 8, 2, torch.float64), [*encoder.parameters(), *decoder.parameters()]
    xi = options["log_noise_variance"]
    ours = fisher_net_loss(encoder, decoder, x, noise=noise, num_samples=2, gradient="mean", tol=EXACT, **options)
    with torch.no_grad():
        offset = FisherMetric(decoder, encoder(x), xi.exp()).sample(2, noise=noise, tol=EXACT) - encoder(x)
    z = encoder(x) + offset
    error = (x.flatten(1) - decoder(z.flatten(0, 1)).view(2, 3, 8)).square().sum(-1)
    value = 0.5 * (z.square().sum(-1) + error * torch.exp(-xi) + 8 * xi + xi**2 / 20).mean()
    torch.testing.assert_close(ours.loss, value)
    theirs = torch.autograd.grad(value, [*leaves, xi])
    for one, other in zip(torch.autograd.grad(ours.loss, [*leaves, xi]), theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_logdet_by_lanczos():
    """The metric's own estimate, and where d is 1 the exact one, as a sign vector's square is 1."""
    encoder, decoder, x, options = small_case("conv", d=3)
    options |= {"noise": make_noise(1, 3, 8, 3, torch.float64)}
    torch.manual_seed(1)
    term = fisher_net_loss(encoder, decoder, x, logdet="lanczos", **options).terms["logdet"]
    torch.manual_seed(1)
    variance = options["log_noise_variance"].exp()
    torch.testing.assert_close(term, 0.5 * FisherMetric(decoder, encoder(x), variance).logdet("lanczos"))

    encoder, decoder, x, options = small_case(d=1)
    both = (fisher_net_loss(encoder, decoder, x, logdet=kind, **options).terms for kind in ("lanczos", "exact"))
    terms, leaves = [part["logdet"] for part in both], [*decoder.parameters(), options["log_noise_variance"]]
    torch.testing.assert_close(*terms)
    found = [torch.autograd.grad(term.sum(), leaves, allow_unused=True) for term in terms]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other)


def test_drawn_noise_is_standard_normal_and_new():
    """With an affine decoder whose exact loss is known, 4,000 samples come within a few standard errors of it."""
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(2, 4).double()
    x, xi = torch.rand(2, 4).double(), -0.5
    unit = 6**0.5 * torch.eye(6).double()[:, None].expand(-1, 2, -1)
    options = {"log_noise_variance": xi, "dataset_size": 10, "mirrored": True, "reduction": "none", "tol": EXACT}
    exact = fisher_net_loss(encoder, decoder, x, noise=(unit[..., :4], unit[..., 4:]), num_samples=12, **options).loss
    first, second = (fisher_net_loss(encoder, decoder, x, num_samples=4000, **options).loss for _ in range(2))
    assert not torch.equal(first, second)
    assert ((first - exact).abs() < 0.1 * exact.abs()).all() and ((second - exact).abs() < 0.1 * exact.abs()).all()


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")  # a module with hooks is run as a whole
def test_mirrored_halves_share_the_mean():
    """The decoder sees S samples whose halves mirror each other at the encoder's mean."""
    encoder, decoder, x, options = small_case()
    seen = []
    hook = decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    fisher_net_loss(encoder, decoder, x, num_samples=6, mirrored=True, **options)
    hook.remove()
    z = seen[-1].view(6, 3, 2)  # one batch of all samples
    torch.testing.assert_close(z[:3] + z[3:], 2 * encoder(x).expand(3, -1, -1))


def test_one_draw_needs_no_dimension_of_samples():
    encoder, decoder, x, options = small_case()
    data, latent = make_noise(1, 3, 8, 2, torch.float64)
    for mirrored in (False, True):
        options |= {"mirrored": mirrored, "num_samples": 2 if mirrored else 1}
        torch.testing.assert_close(
            fisher_net_loss(encoder, decoder, x, noise=(data[0], latent[0]), **options).loss,
            fisher_net_loss(encoder, decoder, x, noise=(data, latent), **options).loss,
        )


def test_default_tolerance_is_good_to_a_percent():
    """Of the reconstruction that only the samples' offsets make, with d large enough for CG to stop early."""
    encoder, decoder, x, options = small_case("conv", d=40)
    options |= {"noise": make_noise(1, 3, 8, 40, torch.float64), "method": "cg"}
    options["log_noise_variance"] = -4.0
    loose, tight = (fisher_net_loss(encoder, decoder, x, **options, **tol).loss for tol in ({}, {"tol": EXACT}))
    assert 0 < (loose - tight).abs() < 0.01 * tight.abs()


def test_max_iter_reached_warns():
    encoder, decoder, x, options = small_case("conv", d=40)
    with pytest.warns(RuntimeWarning, match="3 of 3 .*max_iter=1 "):
        fisher_net_loss(encoder, decoder, x, method="cg", tol=1e-10, max_iter=1, **options)


@pytest.mark.parametrize("method", ["auto", "cg", "cholesky"])
@pytest.mark.parametrize("logdet", [False, "exact", "lanczos"])
def test_works_without_a_graph(method, logdet):
    encoder, decoder, x, options = small_case()
    noise = make_noise(2, 3, 8, 2, torch.float64)
    options |= {"noise": noise, "num_samples": 2, "method": method, "logdet": logdet, "tol": EXACT}
    torch.manual_seed(0)
    with torch.no_grad():
        without = fisher_net_loss(encoder, decoder, x, **options).loss
    assert not without.requires_grad
    torch.manual_seed(0)
    torch.testing.assert_close(without, fisher_net_loss(encoder, decoder, x, **options).loss.detach())


def test_frozen_batch_norm():
    """The statistics at the mean are constants of the metric; the decoder itself then uses those of the samples."""
    encoder, decoder, x, options = small_case(count=5)
    decoder.insert(1, nn.BatchNorm1d(7).double())
    noise = make_noise(2, 5, 8, 2, torch.float64)
    ours = fisher_net_loss(
        encoder, decoder, x, noise=noise, num_samples=2, tol=EXACT, batch_statistics="frozen", **options
    )
    frozen, mean = copy.deepcopy(decoder), encoder(x)
    hidden = frozen[0](mean).detach()
    frozen[1].running_mean, frozen[1].running_var = hidden.mean(0), hidden.var(0, unbiased=False)
    frozen.eval()
    xi = options["log_noise_variance"]
    z = reference.fisher_metric_sample(frozen, mean, xi.exp(), noise)
    error = (x.flatten(1) - decoder(z.flatten(0, 1)).view(2, 5, 8)).square().sum(-1)
    value = 0.5 * (z.square().sum(-1) + error * torch.exp(-xi) + 8 * xi + xi**2 / 20).mean()
    torch.testing.assert_close(ours.loss, value)
    ours.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in (*encoder.parameters(), *decoder.parameters()))


def test_autocast_leaves_the_metric_in_float32():
    encoder, decoder, x, options = small_case(dtype=torch.float32)
    options |= {"noise": make_noise(1, 3, 8, 2, torch.float32), "logdet": True}
    plain = fisher_net_loss(encoder, decoder, x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fisher_net_loss(encoder, decoder, x, **options)
        assert mixed.loss.dtype == torch.float32
    for name, term in plain.terms.items():
        torch.testing.assert_close(mixed.terms[name], term, rtol=0.05, atol=0.02)
    mixed.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in (*encoder.parameters(), *decoder.parameters()))


COMPILED = [
    {"network": "mlp", "method": "cholesky", "logdet": True},
    {"network": "conv", "method": "auto", "gradient": "mean", "reduction": "sum"},
    {"network": "linear last", "method": "cg", "tol": EXACT, "max_iter": 2, "mirrored": True, "reduction": "none"},
]


@pytest.mark.parametrize("case", COMPILED)
def test_compiles_whole(kit, case):
    options = {"num_samples": 2, "mirrored": False} | case
    encoder, decoder, x, more = small_case(options.pop("network"))
    draws = 1 if options["mirrored"] else 2
    noise = make_noise(draws, 3, 8, 2, torch.float64)

    def call(x, xi, data, latent):
        return fisher_net_loss(
            encoder, decoder, x, log_noise_variance=xi, dataset_size=20, noise=(data, latent), **options
        )

    xi = more["log_noise_variance"]
    inputs = (x, xi, *noise)
    leaves = [*encoder.parameters(), *decoder.parameters(), xi]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    kit.assert_same(compiled(*inputs), call(*inputs), leaves, torch.float64)


def test_compiles_whole_by_inductor(kit):
    encoder, decoder = nn.Linear(4, 2).double(), nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    xi = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)

    def loss(x, data, latent):
        return fisher_net_loss(
            encoder, decoder, x, log_noise_variance=xi, dataset_size=20, noise=(data, latent), method="cholesky"
        )

    inputs = torch.rand(3, 4).double(), *make_noise(1, 3, 4, 2, torch.float64)
    leaves = [*encoder.parameters(), *decoder.parameters(), xi]
    with fresh_cache():
        kit.assert_same(torch.compile(loss, fullgraph=True)(*inputs), loss(*inputs), leaves, torch.float64)


def test_compiled_with_a_float_for_xi():
    encoder, decoder, x, _ = small_case()
    noise = make_noise(1, 3, 8, 2, torch.float64)

    def call(x, xi, data, latent):
        return fisher_net_loss(
            encoder, decoder, x, log_noise_variance=xi, dataset_size=20, noise=(data, latent), method="cholesky"
        ).loss

    run = torch.compile(call, backend="eager", fullgraph=True)
    for xi in (0.5, -1):
        torch.testing.assert_close(run(x, xi, *noise), call(x, xi, *noise))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("logdet", [False, "lanczos"])
def test_empty_batch(compiled, logdet):
    encoder, decoder, x, options = small_case()
    encoder.append(nn.BatchNorm1d(2).double())

    def call(reduction):
        return fisher_net_loss(
            encoder, decoder, x[:0], reduction=reduction, num_samples=2, mirrored=True, logdet=logdet, **options
        )

    run = torch.compile(call, backend="eager", fullgraph=True) if compiled else call
    for reduction in ("mean", "sum"):
        value, terms = run(reduction)
        assert value.shape == () and value == 0
        assert all(term.shape == (0,) for term in terms.values())
        value.backward()
    assert run("none").loss.shape == (0,)
    leaves = (*encoder.parameters(), *decoder.parameters(), options["log_noise_variance"])
    assert all((leaf.grad == 0).all() for leaf in leaves)
    encoder.pop(-1)
    assert terms.keys() == fisher_net_loss(encoder, decoder, x, logdet=logdet, **options).terms.keys()


def test_one_sample_one_pixel():
    xi = torch.tensor(0.0, requires_grad=True)
    decoder = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    value, terms = fisher_net_loss(
        nn.Linear(1, 2), decoder, torch.rand(1, 1), log_noise_variance=xi, dataset_size=1, logdet=True
    )
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(xi.grad) and all(term.shape == (1,) for term in terms.values())


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_nan_names_its_sample(method):
    encoder, decoder, x, options = small_case()
    x[1, 0, 1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="sample 1"):
        fisher_net_loss(encoder, decoder, x, method=method, **options)


def test_trains():
    """Adam on a line in ten dimensions: the error falls to the noise, and the noise's variance is learned."""
    d, D, sigma = 1, 10, 0.1
    direction = torch.nn.functional.normalize(torch.randn(D), dim=0) * 3
    data = torch.randn(512, 1) * direction + sigma * torch.randn(512, D)
    encoder, decoder, xi = nn.Linear(D, d), nn.Linear(d, D), nn.Parameter(torch.tensor(0.0))
    networks = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam([{"params": networks}, {"params": [xi], "lr": 5e-2}], lr=2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        fisher_net_loss(encoder, decoder, data, log_noise_variance=xi, dataset_size=512, logdet=True).loss.backward()
        optimizer.step()
    assert xi.exp().sqrt().item() == pytest.approx(sigma, rel=0.1)
    alignment = torch.cosine_similarity(decoder.weight[:, 0], direction, dim=0).abs()
    assert alignment > 0.999 and decoder.weight.norm().item() == pytest.approx(3, rel=0.15)
