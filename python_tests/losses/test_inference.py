"""inference_loss against the double-backward reference, and against closed forms of two Gaussians."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fisherkernels import reference
from fisherkernels.losses import elbo_loss, fisher_ae_loss, inference_loss
from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal

METHODS = [("kl", True), ("fisher", True), ("fisher", False)]
every = pytest.mark.parametrize(("divergence", "reparametrize"), METHODS)


class Learned(nn.Module):
    """A prior of the user's own, with a parameter."""

    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def score(self, z):
        return -z / self.width - 0.3 * torch.sin(z)

    def log_density(self, z):
        return (-0.5 * z.square() / self.width + 0.3 * torch.cos(z)).sum(-1)


def make_prior(kit, kind, d, dtype):
    return Learned().to(dtype) if kind == "learned" else kit.prior(kind, d, dtype)


cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 4),
        "method": st.sampled_from(METHODS),
        "prior": st.sampled_from([None, "none", "normalizable", "shell", "learned"]),
        "variance": st.sampled_from(["float", "0-d", "flat", "trailing"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "grad_x": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=60)
@given(case=cases)
def test_equals_double_backward(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    divergence, reparametrize = case["method"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    without_density = divergence == "kl" and case["prior"] == "shell"
    prior = None if without_density else make_prior(kit, case["prior"], d, dtype)
    variance = kit.variance(case["variance"], shape, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=case["grad_x"])
    options = {
        "divergence": divergence,
        "reparametrize": reparametrize,
        "prior": prior,
        "variance": variance,
        "noise": torch.randn(case["num_samples"], count, d, dtype=dtype),
        **{key: case[key] for key in ("num_samples", "reduction")},
    }
    ours = inference_loss(encoder, decoder, x, **options)
    exact = kit.doubled(encoder, decoder, prior, variance, x)
    options |= {"prior": exact[2], "variance": exact[3], "noise": options["noise"].double()}
    theirs = reference.inference_loss(exact[0], exact[1], exact[4], **options)
    constants = kit.leaves_of(decoder, prior, variance)
    untouched = torch.autograd.grad(ours.loss.sum(), constants, retain_graph=True, allow_unused=True)
    assert untouched == (None,) * len(untouched)
    kit.assert_same(ours, theirs, kit.leaves_of(encoder, x), dtype, kit.leaves_of(exact[0], exact[4]))


def small_case(L=3, N=3, D=4, d=2, dtype=torch.float64):
    encoder = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 2 * d)).to(dtype)
    decoder = nn.Sequential(nn.Linear(d, 3), nn.SiLU(), nn.Linear(3, D)).to(dtype)
    return encoder, decoder, torch.rand(N, D, dtype=dtype), torch.randn(L, N, d, dtype=dtype)


@pytest.mark.parametrize("prior", [None, "none", "learned"])
@pytest.mark.parametrize("divergence", ["kl", "fisher"])
def test_gradcheck(kit, divergence, prior):
    encoder, decoder, x, noise = small_case(N=2, D=3)
    prior = make_prior(kit, prior, 2, torch.float64)

    def loss(*_):
        options = {"divergence": divergence, "reparametrize": True, "prior": prior, "num_samples": 3}
        return inference_loss(encoder, decoder, x, variance=0.6, noise=noise, **options).loss

    assert torch.autograd.gradcheck(loss, list(encoder.parameters()), fast_mode=True)


def test_kl_is_the_negative_evidence_lower_bound():
    encoder, decoder, x, noise = small_case()
    options = {"noise": noise, "num_samples": 3, "variance": 0.4}
    ours, theirs = inference_loss(encoder, decoder, x, **options), elbo_loss(encoder, decoder, x, **options)
    for name in ("reconstruction", "kl"):
        torch.testing.assert_close(ours.terms[name], theirs.terms[name])
    torch.testing.assert_close(
        torch.autograd.grad(ours.loss, list(encoder.parameters())),
        torch.autograd.grad(theirs.loss, list(encoder.parameters())),
    )


@pytest.mark.parametrize("reparametrize", [True, False])
def test_fisher_is_the_posterior_term_of_the_fisher_auto_encoder(kit, reparametrize):
    encoder, decoder, x, noise = small_case()
    options = {"noise": noise, "num_samples": 3, "variance": 0.4, "prior": kit.prior("none", 2, torch.float64)}
    ours = inference_loss(encoder, decoder, x, divergence="fisher", reparametrize=reparametrize, **options)
    theirs = fisher_ae_loss(encoder, decoder, x, stability="none", **options)
    torch.testing.assert_close(ours.terms["posterior"], theirs.terms["posterior"])


def two_gaussians():
    """q = N(m1, s1^2) as a constant encoder, and a linear decoder whose posterior is N(m2, s2^2), in one dimension."""
    slope, variance, x = 1.5, 0.4, 0.9
    decoder = nn.Linear(1, 1, bias=False).double()
    decoder.weight.data.fill_(slope)
    s2 = (1 + slope**2 / variance) ** -0.5
    m2 = s2**2 * slope * x / variance
    encoder = nn.Linear(1, 2).double()
    nn.init.zeros_(encoder.weight)
    encoder.bias.data.copy_(torch.tensor([0.3, -0.2], dtype=torch.float64))
    return encoder, decoder, torch.tensor([[x]], dtype=torch.float64), variance, (0.3, math.exp(-0.2), m2, s2)


@every
def test_gradients_between_two_gaussians(divergence, reparametrize):
    """Equations 29, 31 and 32, halved as the divergence is; noise of +1 and -1 gives the expectations exactly."""
    encoder, decoder, x, variance, (m1, s1, m2, s2) = two_gaussians()
    noise = torch.tensor([1.0, -1.0]).double()[:, None, None]
    options = {"divergence": divergence, "reparametrize": reparametrize, "noise": noise, "num_samples": 2}
    loss = inference_loss(encoder, decoder, x, variance=variance, **options).loss
    (gradient,) = torch.autograd.grad(loss, encoder.bias)
    by_mean, by_std = {
        ("kl", True): ((m1 - m2) / s2**2, (s1**2 - s2**2) / (s1 * s2**2)),
        ("fisher", True): ((m1 - m2) / s2**4, (s1**4 - s2**4) / (s1**3 * s2**4)),
        ("fisher", False): ((m1 - m2) / (s1**2 * s2**2), 2 * (s1**2 - s2**2) / (s1**3 * s2**2)),
    }[divergence, reparametrize]
    assert gradient.tolist() == pytest.approx([by_mean, s1 * by_std], rel=1e-12)


def test_without_reparametrisation_the_noise_keeps_its_digits():
    """float32, a mean 1e5 standard deviations from zero: (z - mean)/std would be off by thousandths."""
    mean, log_std = torch.full((4, 2), 30.0), torch.full((4, 2), 3e-4).log()
    encoder = nn.Linear(3, 4)
    nn.init.zeros_(encoder.weight)
    encoder.bias.data.copy_(torch.cat([mean[0], log_std[0]]))
    decoder, x, noise = nn.Linear(2, 3), torch.rand(4, 3), torch.randn(2, 4, 2)
    options = {"divergence": "fisher", "num_samples": 2, "noise": noise}
    (ours,) = torch.autograd.grad(inference_loss(encoder, decoder, x, **options).loss, encoder.bias)
    options["noise"] = noise.double()
    exact = encoder.double()
    (theirs,) = torch.autograd.grad(inference_loss(exact, decoder.double(), x.double(), **options).loss, exact.bias)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)


def test_a_sampled_divergence_estimates_the_closed_form():
    """A polynomial prior equal to the standard normal, whose density lacks the constant of its logarithm."""
    encoder, decoder, x, _ = small_case()
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=2))).double()  # [4, d]: moments of N(0, I)
    noise = signs[:, None].expand(4, 3, 2)
    options = {"noise": noise, "num_samples": 4}
    closed = inference_loss(encoder, decoder, x, prior=StandardNormal(2).double(), **options)
    sampled = inference_loss(encoder, decoder, x, prior=PolynomialExponentialFamily(2, 2).double(), **options)
    constant = torch.tensor(2 * torch.pi).double().log()  # d/2 log 2 pi at d = 2
    torch.testing.assert_close(sampled.terms["kl"] + constant, closed.terms["kl"])


@every
def test_terms_sum_to_the_unreduced_loss(divergence, reparametrize):
    encoder, decoder, x, noise = small_case()
    options = {"divergence": divergence, "reparametrize": reparametrize, "noise": noise, "num_samples": 3}
    none, total, mean = (
        inference_loss(encoder, decoder, x, reduction=reduction, **options) for reduction in ("none", "sum", "mean")
    )
    assert none.loss.shape == (3,)
    torch.testing.assert_close(sum(none.terms.values()), none.loss)
    torch.testing.assert_close(total.loss, none.loss.sum())
    torch.testing.assert_close(mean.loss, none.loss.mean())


@pytest.mark.parametrize(("divergence", "reparametrize"), [("kl", True), ("fisher", False)])
def test_reparametrize_follows_the_divergence(divergence, reparametrize):
    encoder, decoder, x, noise = small_case()
    options = {"divergence": divergence, "noise": noise, "num_samples": 3}
    gradients = [
        torch.autograd.grad(
            inference_loss(encoder, decoder, x, reparametrize=choice, **options).loss, list(encoder.parameters())
        )
        for choice in (None, reparametrize)
    ]
    for default, named in zip(*gradients, strict=True):
        assert torch.equal(default, named)


@every
def test_running_statistics_are_updated_once(kit, divergence, reparametrize):
    shape = torch.Size([1, 3, 3])
    networks = kit.networks("conv", shape, 2, torch.float64)
    options = {"divergence": divergence, "reparametrize": reparametrize, "num_samples": 2}
    inference_loss(*networks, torch.rand(4, *shape).double(), **options)
    counts = [m.num_batches_tracked.item() for n in networks for m in n if isinstance(m, nn.BatchNorm2d)]
    assert counts == [1, 1]


@every
@pytest.mark.parametrize("compiled", [False, True])
def test_empty_batch(divergence, reparametrize, compiled):
    encoder, decoder, _, _ = small_case()
    encoder.append(nn.BatchNorm1d(4).double())
    options = {"divergence": divergence, "reparametrize": reparametrize, "num_samples": 2}

    def call(reduction):
        return inference_loss(encoder, decoder, torch.rand(0, 4).double(), reduction=reduction, **options)

    run = torch.compile(call, backend="eager", fullgraph=True) if compiled else call
    full = inference_loss(encoder, decoder, torch.rand(2, 4).double(), **options)
    for reduction in ("mean", "sum"):
        value, terms = run(reduction)
        assert value.shape == () and value == 0
        assert terms.keys() == full.terms.keys() and all(term.shape == (0,) for term in terms.values())
        value.backward()
    assert run("none").loss.shape == (0,)
    assert all((p.grad == 0).all() for p in encoder.parameters())
    assert all(p.grad is None for p in decoder.parameters())


@every
def test_nan_stays_in_its_sample(divergence, reparametrize):
    encoder, decoder, x, noise = small_case(N=4)
    options = {"divergence": divergence, "reparametrize": reparametrize, "noise": noise, "num_samples": 3}
    clean = inference_loss(encoder, decoder, x, reduction="none", **options)
    x[2, 1] = float("nan")
    spoilt = inference_loss(encoder, decoder, x, reduction="none", **options)
    bad = torch.tensor([False, False, True, False])
    assert torch.equal(spoilt.loss.isnan(), bad)
    torch.testing.assert_close(spoilt.loss[~bad], clean.loss[~bad])


@every
@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_precision(divergence, reparametrize, mode):
    encoder, decoder, x, noise = small_case(dtype=torch.float32)
    options = {"divergence": divergence, "reparametrize": reparametrize, "num_samples": 3, "noise": noise}
    exact = inference_loss(encoder, decoder, x, reduction="none", **options)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = inference_loss(encoder, decoder, x, reduction="none", **options)
    else:
        options["noise"] = noise.bfloat16()
        half = encoder.bfloat16(), decoder.bfloat16(), x.bfloat16()
        rough = inference_loss(*half, reduction="none", **options)
    for term, expected in zip(rough.terms.values(), exact.terms.values(), strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected, rtol=0.03, atol=0.03 * expected.abs().max().item())
    rough.loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("method", "network", "prior", "options"),
    [
        (("kl", True), "conv", "normalizable", {"variance": "flat", "reduction": "none"}),
        (("fisher", True), "conv", "learned", {"variance": "float"}),
        (("fisher", True), "mlp", "none", {"variance": "trailing", "reduction": "sum"}),
        (("fisher", False), "pair", "shell", {"variance": "float"}),
        (("fisher", False), "mlp", "normalizable", {"variance": "0-d"}),
    ],
)
def test_compiles_whole(kit, method, network, prior, options):
    dtype, shape = torch.float64, torch.Size([1, 4, 3])
    networks = kit.networks(network, shape, 2, dtype)
    options = dict(zip(("divergence", "reparametrize"), method, strict=True)) | options
    options |= {"variance": kit.variance(options["variance"], shape, dtype), "prior": make_prior(kit, prior, 2, dtype)}
    x, noise = torch.rand(3, *shape, dtype=dtype), torch.randn(2, 3, 2, dtype=dtype)

    def call(x, noise):
        return inference_loss(*networks, x, noise=noise, num_samples=2, **options)

    run = torch.compile(call, backend="aot_eager", fullgraph=True)
    kit.assert_same(run(x, noise), call(x, noise), kit.leaves_of(networks[0]), dtype)


class Flat(nn.Module):
    def score(self, z):
        return z.new_zeros(z.shape[0])

    def log_density(self, z):
        return torch.zeros_like(z)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"divergence": "js"}, ValueError, "divergence: expected one of 'kl', 'fisher', received 'js'"),
        (
            {"reparametrize": False},
            ValueError,
            "reparametrize: expected None or True with divergence='kl', received False.*0 in expectation",
        ),
        ({"reparametrize": "no"}, ValueError, "reparametrize: expected one of None, True, False, received 'no'"),
        ({"decoder": torch.sin}, TypeError, "decoder: expected a torch.nn.Module.*received builtin"),
        (
            {"prior": 3, "divergence": "fisher"},
            TypeError,
            r"prior: expected None or an object with a method score\(z\), received int",
        ),
        ({"prior": 3}, TypeError, r"prior: expected None or an object with a method log_density\(z\), received int"),
        ({"prior": StandardNormal(3).double()}, ValueError, "prior: expected d = 2.*received d = 3"),
        ({"prior": Flat()}, ValueError, r"prior: expected log_density\(z\) of shape \[3\], received \[3, 2\]"),
        (
            {"prior": Flat(), "divergence": "fisher"},
            ValueError,
            r"prior: expected score\(z\).*\[3, 2\], received \[3\]",
        ),
        (
            {"prior": PolynomialExponentialFamily(2, 2), "divergence": "fisher"},
            TypeError,
            "prior: expected dtype torch.float64.*received torch.float32",
        ),
    ],
)
def test_bad_input(options, error, message):
    encoder, decoder, x, _ = small_case()
    with pytest.raises(error, match=message):
        inference_loss(encoder, options.pop("decoder", decoder), x, **options)
