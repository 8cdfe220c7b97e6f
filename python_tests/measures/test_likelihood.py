"""Bounds and estimates of the likelihood, where it is known: a linear Gaussian model."""

import pytest
import torch

from fisherkernels.measures import importance_sampled_nll, likelihood, negative_elbo
from fisherkernels.measures.gaussian import draw
from fisherkernels.training import VAE, WAEGAN, FisherAE


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["vae", "fisher_net"])
def test_with_the_exact_posterior_one_sample_is_exact(kind, linear):
    x, model = linear.data(7), getattr(linear, kind)()
    expected = linear.nll(x)
    torch.testing.assert_close(importance_sampled_nll(model, x, num_samples=1), expected)
    many = negative_elbo(model, x, num_samples=20_000, generator=generator())
    torch.testing.assert_close(many, expected, rtol=0.02, atol=0.02)
    if kind == "fisher_net":  # N(0, I) with its metric as precision is the model's posterior here
        torch.testing.assert_close(model.posterior(x).stddev, linear.std.expand(7, 2))


def test_bounds_with_another_posterior(linear):
    x, model = linear.data(5), linear.vae(shift=0.2, stretch=1.4)
    expected = linear.nll(x)
    bound = negative_elbo(model, x, num_samples=20_000, generator=generator())
    torch.testing.assert_close(bound, expected + linear.kl(0.2, 1.4), rtol=0.02, atol=0.02)
    estimates = [importance_sampled_nll(model, x, num_samples=k, generator=generator()).mean() for k in (1, 10, 20_000)]
    assert estimates[2].item() == pytest.approx(expected.mean().item(), abs=0.02)
    many = importance_sampled_nll(model, x.repeat(2000, 1), num_samples=10, generator=generator())
    repeated = many.view(2000, 5).mean(0)
    assert (repeated > expected).all() and (repeated < bound).all()


@pytest.mark.parametrize("rows", [1, 3, 8, 40, 1000])
def test_chunks_add_up_and_are_no_larger_than_asked(rows, linear, monkeypatch):
    x, model = linear.data(8), linear.vae(shift=0.1, stretch=1.2)
    eps = torch.randn(37, 8, 2, dtype=torch.float64)
    used = torch.zeros(8, dtype=torch.int64)

    def from_table(posterior, num_samples, generator):
        rows_of = [int(torch.isclose(mean, means).all(1).nonzero()) for mean in posterior.mean]
        start = used[rows_of[0]].item()
        used[rows_of] += num_samples
        return posterior.mean + posterior.stddev * eps[start : start + num_samples][:, rows_of]

    means = model.posterior(x).mean
    monkeypatch.setattr(likelihood, "draw", from_table)
    sizes = []
    model.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    got = importance_sampled_nll(model, x, num_samples=37, rows=rows)
    assert max(sizes) <= rows and sum(sizes) == 37 * 8 and used.tolist() == [37] * 8

    posterior = model.posterior(x)
    z = posterior.mean + posterior.stddev * eps
    log_weight = model.log_likelihood(x, z) + model.log_prior(z) - posterior.log_prob(z)
    torch.testing.assert_close(got, -(log_weight.exp().mean(0)).log())


def test_large_weights_do_not_overflow(linear):
    model = linear.vae(shift=3.0, stretch=0.1).float()
    x = 1e3 * linear.data(4).float()
    assert importance_sampled_nll(model, x, num_samples=9).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"prior": "standard_normal"}])
def test_other_priors(options):
    """The Fisher AE's prior starts at the standard normal: both ways to the divergence agree."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(4, 6), torch.nn.Linear(3, 4)
    model = FisherAE(encoder, decoder, 3, **options).eval()
    twin = VAE(encoder, decoder, 3, likelihood="gaussian").eval()
    x = torch.randn(6, 4)
    assert model.has_standard_normal_prior is bool(options)
    got = negative_elbo(model, x, num_samples=20_000, generator=generator())
    expected = negative_elbo(twin, x, num_samples=20_000, generator=generator())
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.02)
    got = importance_sampled_nll(model, x, num_samples=10, generator=generator())
    expected = importance_sampled_nll(twin, x, num_samples=10, generator=generator())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_logits"])
def test_bernoulli_likelihood(name):
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Sigmoid() if name == "bernoulli" else
                                  torch.nn.Identity(), torch.nn.Unflatten(1, (1, 2, 3)))  # fmt: skip
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    model = VAE(encoder, decoder, 2, likelihood=name).eval()
    x = torch.rand(5, 1, 2, 3).round()
    z = torch.randn(3, 5, 2)
    got = model.log_likelihood(x, z)
    distribution = torch.distributions.Bernoulli(model.decode(z.flatten(0, 1)).view(3, 5, 6))
    torch.testing.assert_close(got, distribution.log_prob(x.flatten(1)).sum(2))
    nll = importance_sampled_nll(model, x, num_samples=2000)
    assert (nll < negative_elbo(model, x, num_samples=2000)).all() and (nll > 0).all()


def test_full_covariances_are_drawn_and_measured():
    torch.manual_seed(0)
    factor = (0.5 * torch.randn(4, 3, 3, dtype=torch.float64)).tril(-1) + torch.diag(torch.tensor([0.5, 1.0, 2.0]))
    mean = torch.randn(4, 3, dtype=torch.float64)
    posterior = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    z = draw(posterior, 50_000, generator())
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.05)
    centred = z - mean
    covariance = torch.einsum("lni,lnj->nij", centred, centred) / len(z)
    torch.testing.assert_close(covariance, factor @ factor.mT, rtol=0.05, atol=0.1)
    standard = torch.distributions.MultivariateNormal(torch.zeros_like(mean), torch.eye(3, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(posterior, standard)
    torch.testing.assert_close(likelihood.standard_normal_kl(posterior), expected)


def test_bad_input_is_named(linear):
    x, model = linear.data(3), linear.vae()
    for measure in (negative_elbo, importance_sampled_nll):
        with pytest.raises(ValueError, match="num_samples: expected an int >= 1, received 0"):
            measure(model, x, num_samples=0)
        points = WAEGAN(torch.nn.Linear(5, 2), torch.nn.Linear(2, 5), 2)
        with pytest.raises(TypeError, match="model: expected one with a posterior density, received WAEGAN"):
            measure(points, x.float(), num_samples=1)
    with pytest.raises(ValueError, match="rows: expected an int >= 1, received 0"):
        importance_sampled_nll(model, x, rows=0)
    with pytest.raises(ValueError, match="rows: expected at least 3, the batch, with a posterior given, received 2"):
        importance_sampled_nll(model, x, rows=2, posterior=model.posterior(x))
    for measure in (negative_elbo, importance_sampled_nll):
        assert measure(model, x[:0], num_samples=2).shape == (0,)
