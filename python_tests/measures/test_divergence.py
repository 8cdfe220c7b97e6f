import pytest
import torch
from torch import nn

from fisherkernels.measures import posterior_fisher_divergence
from fisherkernels.measures.gaussian import draw
from fisherkernels.training import VAE, WAEGAN, FisherAE


@pytest.mark.parametrize("kind", ["vae", "fisher_net"])
def test_the_exact_posterior_has_none(kind, linear):
    divergence = posterior_fisher_divergence(getattr(linear, kind)(), linear.data(6), num_samples=3)
    torch.testing.assert_close(divergence, torch.zeros(6, dtype=torch.float64))


def test_another_gaussian_has_the_known_divergence(linear):
    shift, stretch = 0.2, 1.4
    model = linear.vae(shift, stretch)
    got = posterior_fisher_divergence(model, linear.data(3), num_samples=100_000)
    # scores of N(m + shift, (stretch s)^2) and N(m, s^2) along each coordinate
    inner = (stretch * linear.std) ** 2
    expected = 0.5 * (inner * (1 / inner - 1 / linear.std**2) ** 2 + shift**2 / linear.std**4).sum()
    torch.testing.assert_close(got, expected.expand(3), rtol=0.02, atol=0)


def build(likelihood):
    torch.manual_seed(0)
    output = {"gaussian": nn.Tanh(), "bernoulli": nn.Sigmoid(), "bernoulli_logits": nn.Identity()}[likelihood]
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.Linear(6, 4), output)
    return nn.Linear(4, 4).double(), decoder.double()


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "bernoulli_logits", "polynomial"])
def test_scores_are_those_of_autograd(kind):
    likelihood = "gaussian" if kind == "polynomial" else kind
    encoder, decoder = build(likelihood)
    if kind == "polynomial":
        model = FisherAE(encoder, decoder, 2, prior_order=4, prior_constraint="normalizable", variance=0.3).double()
        model.prior.raw_coefficients.data += 0.1
    else:
        options = {"variance": 0.3} if likelihood == "gaussian" else {}
        model = VAE(encoder, decoder, 2, likelihood=likelihood, **options).double()
    model.eval()
    x = torch.rand(5, 4, dtype=torch.float64)
    posterior = model.posterior(x)
    with torch.no_grad():
        z = draw(posterior, 3, torch.Generator().manual_seed(2))
    z.requires_grad_()
    log_ratio = posterior.log_prob(z) - model.log_prior(z) - model.log_likelihood(x, z)
    (difference,) = torch.autograd.grad(log_ratio.sum(), z)
    expected = 0.5 * difference.square().sum(2).mean(0)
    got = posterior_fisher_divergence(model, x, num_samples=3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(got, expected)


def test_saturated_probabilities_stay_finite():
    encoder, decoder = (net.float() for net in build("bernoulli"))
    decoder[2].bias.data = torch.tensor([200.0, -200.0, 200.0, -200.0])
    model = VAE(encoder, decoder, 2, likelihood="bernoulli").eval()
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.5]])
    assert posterior_fisher_divergence(model, x, num_samples=4).isfinite().all()


def test_bad_input_is_named(linear):
    with pytest.raises(ValueError, match="num_samples: expected an int >= 1, received 0"):
        posterior_fisher_divergence(linear.vae(), linear.data(2), num_samples=0)
    with pytest.raises(TypeError, match="model: expected one with a posterior density, received WAEGAN"):
        posterior_fisher_divergence(WAEGAN(nn.Linear(4, 2), nn.Linear(2, 4), 2), torch.rand(3, 4))
