"""Empty batches and NaN."""

import pytest
import torch
from torch import nn

from fisherkernels.losses import elbo_loss, fisher_ae_loss, fisher_shannon_loss
from fisherkernels.priors import PolynomialExponentialFamily

LOSSES = {
    "fisher_ae": (fisher_ae_loss, {}),
    "fisher_ae released": (fisher_ae_loss, {"decoder_gradient": "stopped", "stability": "log_std"}),
    "fisher_ae without stability": (fisher_ae_loss, {"stability": "none"}),
    "fisher_ae prior": (fisher_ae_loss, {"prior": PolynomialExponentialFamily(2, 5)}),
    "elbo gaussian": (elbo_loss, {}),
    "fisher_shannon": (fisher_shannon_loss, {"lambda_x": 1.0}),
    "fisher_shannon sampled": (fisher_shannon_loss, {"estimator": "sampled"}),
    "elbo bernoulli": (elbo_loss, {"likelihood": "bernoulli"}),
    "elbo bernoulli_logits": (elbo_loss, {"likelihood": "bernoulli_logits"}),
}
every = pytest.mark.parametrize("name", LOSSES)


def networks():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4))
    decoder = nn.Sequential(
        nn.Linear(2, 5), nn.ELU(), nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (1, 3, 4))
    )
    return encoder, decoder


@every
@pytest.mark.parametrize("compiled", [False, True])
def test_empty_batch(name, compiled):
    loss, options = LOSSES[name]
    encoder, decoder = networks()
    encoder.append(nn.BatchNorm1d(4))
    x = torch.rand(0, 1, 3, 4)

    def call(reduction):
        return loss(encoder, decoder, x, reduction=reduction, num_samples=2, **options)

    run = torch.compile(call, backend="eager", fullgraph=True) if compiled else call
    for reduction in ("mean", "sum"):
        value, terms = run(reduction)
        assert value.shape == () and value == 0
        assert all(term.shape == (0,) for term in terms.values())
        value.backward()
    assert run("none").loss.shape == (0,)
    assert all((p.grad == 0).all() for p in (*encoder.parameters(), *decoder.parameters()))
    assert torch.isfinite(encoder[-1].running_mean).all()


@every
def test_empty_batch_has_the_terms_of_a_full_one(name):
    loss, options = LOSSES[name]
    encoder, decoder = networks()
    full, empty = (loss(encoder, decoder, torch.rand(n, 1, 3, 4), **options).terms for n in (2, 0))
    assert full.keys() == empty.keys()


@every
def test_nan_stays_in_its_sample(name):
    loss, options = LOSSES[name]
    encoder, decoder = networks()
    x, noise = torch.rand(4, 1, 3, 4), torch.randn(3, 4, 2)
    options = {"noise": noise, "num_samples": 3, "reduction": "none", **options}
    clean = loss(encoder, decoder, x, **options)
    x[2, 0, 1, 1] = float("nan")
    spoilt = loss(encoder, decoder, x, **options)
    expected = torch.tensor([False, False, True, False])
    assert torch.equal(spoilt.loss.isnan(), expected)
    for term, before in zip(spoilt.terms.values(), clean.terms.values(), strict=True):
        torch.testing.assert_close(term[~expected], before[~expected])
    assert loss(encoder, decoder, x, **{**options, "reduction": "mean"}).loss.isnan()


@every
def test_one_sample_one_pixel(name):
    loss, options = LOSSES[name]
    value, terms = loss(
        nn.Linear(1, 4), nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), torch.rand(1, 1), **options
    )
    value.backward()
    assert torch.isfinite(value) and all(term.shape == (1,) for term in terms.values())


@every
def test_works_without_a_graph(name):
    loss, options = LOSSES[name]
    encoder, decoder = networks()
    x, noise = torch.rand(4, 1, 3, 4), torch.randn(4, 2)
    with torch.no_grad():
        without = loss(encoder, decoder, x, noise=noise, **options).loss
    assert not without.requires_grad
    torch.testing.assert_close(without, loss(encoder, decoder, x, noise=noise, **options).loss.detach())
