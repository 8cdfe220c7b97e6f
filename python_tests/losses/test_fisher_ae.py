"""fisher_ae_loss against the double-backward reference, option by option."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.utils import fresh_cache

from fisherkernels import linearize, reference
from fisherkernels.losses import fisher_ae_loss
from fisherkernels.losses.scores import stability_first
from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 3),
        "prior": st.sampled_from([None, "none", "normalizable", "shell"]),
        "variance": st.sampled_from(["float", "0-d", "flat", "trailing"]),
        "decoder_gradient": st.sampled_from(["full", "stopped"]),
        "stability": st.sampled_from(["posterior", "log_std", "none"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "grad_x": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=60)
@given(case=cases)
def test_equals_double_backward(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    prior = kit.prior(case["prior"], d, dtype)
    variance = kit.variance(case["variance"], shape, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=case["grad_x"])
    options = {
        "prior": prior,
        "variance": variance,
        "noise": torch.randn(case["num_samples"], count, d, dtype=dtype),
        **{key: case[key] for key in ("num_samples", "decoder_gradient", "stability", "reduction")},
    }
    ours = fisher_ae_loss(encoder, decoder, x, **options)
    exact = kit.doubled(encoder, decoder, prior, variance, x)
    options |= {"prior": exact[2], "variance": exact[3], "noise": options["noise"].double()}
    theirs = reference.fisher_ae_loss(exact[0], exact[1], exact[4], **options)
    leaves = kit.leaves_of(encoder, decoder, prior, variance, x)
    kit.assert_same(ours, theirs, leaves, dtype, kit.leaves_of(*exact))


def small_case(dtype=torch.float64, L=2, N=3, D=4, d=2):
    encoder = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 2 * d)).to(dtype)
    decoder = nn.Sequential(nn.Linear(d, 3), nn.SiLU(), nn.Linear(3, D)).to(dtype)
    return encoder, decoder, torch.rand(N, D, dtype=dtype), torch.randn(L, N, d, dtype=dtype)


@pytest.mark.parametrize("stability", ["posterior", "log_std"])
def test_gradcheck(kit, stability):
    encoder, decoder, x, noise = small_case(L=2, N=2, D=3)
    prior = kit.prior("normalizable", 2, torch.float64)
    networks = [encoder, decoder, prior]
    variance = torch.rand(3, dtype=torch.float64) + 0.5
    inputs = [p for network in networks for p in network.parameters()] + [x, variance, noise]

    def loss(*_):
        options = {"prior": prior, "variance": variance, "noise": noise, "num_samples": 2}
        return fisher_ae_loss(encoder, decoder, x, stability=stability, **options).loss

    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_released_variant_trains_the_variance_by_reconstruction_alone():
    encoder, decoder, x, noise = small_case()
    variance = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    options = {"variance": variance, "noise": noise, "num_samples": 2}
    _, terms = fisher_ae_loss(encoder, decoder, x, decoder_gradient="stopped", stability="log_std", **options)
    (whole,) = torch.autograd.grad(sum(t.sum() for t in terms.values()), variance, retain_graph=True)
    (alone,) = torch.autograd.grad(terms["reconstruction"].sum(), variance)
    assert whole == alone


def test_terms_sum_to_the_unreduced_loss():
    encoder, decoder, x, noise = small_case()
    results = {
        reduction: fisher_ae_loss(
            encoder, decoder, x, noise=noise, num_samples=2, variance=0.5, reduction=reduction
        )
        for reduction in ("none", "sum", "mean")
    }
    none = results["none"]
    assert none.loss.shape == (3,)
    torch.testing.assert_close(sum(none.terms.values()), none.loss)
    torch.testing.assert_close(results["sum"].loss, none.loss.sum())
    torch.testing.assert_close(results["mean"].loss, none.loss.mean())


def test_samples_are_averaged():
    encoder, decoder, x, noise = small_case(L=3)
    together = fisher_ae_loss(encoder, decoder, x, noise=noise, num_samples=3, reduction="none")
    apart = [fisher_ae_loss(encoder, decoder, x, noise=one, reduction="none") for one in noise]
    torch.testing.assert_close(together.loss, torch.stack([one.loss for one in apart]).mean(0))


def test_standard_normal_is_the_default_prior():
    encoder, decoder, x, noise = small_case()
    default = fisher_ae_loss(encoder, decoder, x, noise=noise, num_samples=2)
    named = fisher_ae_loss(encoder, decoder, x, noise=noise, num_samples=2, prior=StandardNormal(2).double())
    assert default.loss == named.loss


def test_without_stability_the_term_is_absent():
    encoder, decoder, x, noise = small_case()
    _, terms = fisher_ae_loss(encoder, decoder, x, noise=noise, num_samples=2, stability="none")
    assert list(terms) == ["posterior", "reconstruction"]


def test_noise_comes_from_the_global_generator():
    encoder, decoder, x, _ = small_case()
    torch.manual_seed(3)
    drawn = fisher_ae_loss(encoder, decoder, x, num_samples=2)
    torch.manual_seed(3)
    given_noise = torch.randn(2, 3, 2, dtype=torch.float64)
    assert drawn.loss == fisher_ae_loss(encoder, decoder, x, num_samples=2, noise=given_noise).loss


def test_running_statistics_are_updated_once(kit):
    shape = torch.Size([1, 3, 3])
    encoder, decoder = kit.networks("conv", shape, 2, torch.float64)
    fisher_ae_loss(encoder, decoder, torch.rand(4, *shape, dtype=torch.float64), num_samples=2)
    counts = [
        m.num_batches_tracked.item() for n in (encoder, decoder) for m in n if isinstance(m, nn.BatchNorm2d)
    ]
    assert counts == [1, 1]


def test_strided_and_permuted_data(kit):
    encoder, decoder = kit.networks("conv", torch.Size([2, 3, 5]), 2, torch.float64)
    x = torch.rand(8, 5, 2, 3, dtype=torch.float64)[::2].permute(0, 2, 3, 1)  # [4, 2, 3, 5], no dense stride
    noise = torch.randn(2, 2, 4, dtype=torch.float64).transpose(1, 2)  # [2, 4, 2]
    results = [
        fisher_ae_loss(encoder, decoder, data, noise=draws, num_samples=2)
        for data, draws in ((x, noise), (x.contiguous(), noise.contiguous()))
    ]
    torch.testing.assert_close(results[0].loss, results[1].loss)


def test_descends_under_algorithm_1():
    """Minibatches, the gradient of the batch mean, Adam: the loss of the whole set falls."""
    encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))
    prior = PolynomialExponentialFamily(2, 5)
    x = torch.randn(128, 1) * torch.tensor([1.0, -1.0, 0.5, 2.0])
    noise = torch.randn(4, 128, 2)

    def whole():
        with torch.no_grad():
            return fisher_ae_loss(encoder, decoder, x, prior=prior, noise=noise, num_samples=4).loss.item()

    before, start = whole(), prior.coefficients.detach().clone()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *prior.parameters()], 1e-2)
    for _ in range(20):
        for batch in x[torch.randperm(128)].split(32):
            optimizer.zero_grad()
            fisher_ae_loss(encoder, decoder, batch, prior=prior).loss.backward()
            optimizer.step()
    assert whole() < before - 1
    assert (prior.coefficients != start).all()


def test_compiles_whole_by_inductor(kit):
    encoder, decoder, x, noise = small_case(torch.float64)
    prior = kit.prior("normalizable", 2, torch.float64)
    variance = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(x, noise):
        return fisher_ae_loss(encoder, decoder, x, prior=prior, variance=variance, num_samples=2, noise=noise)

    leaves = kit.leaves_of(encoder, decoder, prior, variance)
    with fresh_cache():
        kit.assert_same(torch.compile(loss, fullgraph=True)(x, noise), loss(x, noise), leaves, torch.float64)


@pytest.mark.parametrize("samples, first", [(2, True), (300, False)])
def test_backward_holds_the_smaller_of_weights_and_activations(samples, first):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).double()
    decoder = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 6)).double()
    x, noise = torch.rand(samples, 6, dtype=torch.float64), torch.randn(samples, 2, dtype=torch.float64)
    assert stability_first(linearize(encoder, x), 1) == first
    assert not stability_first(linearize(encoder, x), 50)  # samples of each
    leaves, found = [*encoder.parameters(), *decoder.parameters()], []
    for loss in (fisher_ae_loss, reference.fisher_ae_loss):
        output = loss(encoder, decoder, x, noise=noise)
        assert list(output.terms) == ["posterior", "reconstruction", "stability"]
        found.append((output.loss, *torch.autograd.grad(output.loss, leaves)))
    torch.testing.assert_close(*found)
