"""bfloat16 networks and autocast: close to float32, with sums kept in float32."""

import pytest
import torch
from torch import nn

from fisherkernels.losses import decoder_score, elbo_loss, fisher_ae_loss, fisher_shannon_loss, stability
from fisherkernels.priors import PolynomialExponentialFamily


@pytest.fixture
def case():
    encoder = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    decoder = nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.Linear(9, 6))
    return encoder, decoder, torch.rand(5, 6), torch.randn(2, 5, 2)


LOSSES = {
    "elbo gaussian": (elbo_loss, {"variance": 0.5}),
    "elbo bernoulli_logits": (elbo_loss, {"likelihood": "bernoulli_logits"}),
    "fisher_ae": (fisher_ae_loss, {"variance": 0.5}),
    "fisher_shannon": (fisher_shannon_loss, {"variance": 0.5, "lambda_x": 1.0, "estimator": "sampled"}),
    "fisher_ae prior": (fisher_ae_loss, {"prior": PolynomialExponentialFamily(2, 3), "stability": "log_std"}),
}


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(case, name, mode):
    encoder, decoder, x, noise = case
    loss, options = LOSSES[name]
    options = {"noise": noise, "num_samples": 2, "reduction": "none", **options}
    exact = loss(encoder, decoder, x, **options)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = loss(encoder, decoder, x, **options)
    else:
        options["noise"] = noise.bfloat16()
        rough = loss(encoder.bfloat16(), decoder.bfloat16(), x.bfloat16(), **options)
    for term, expected in zip(rough.terms.values(), exact.terms.values(), strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected, rtol=0.03, atol=0.03 * expected.abs().max().item())
    rough.loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (*encoder.parameters(), *decoder.parameters()))


def test_scores_under_autocast(case):
    encoder, decoder, x, noise = case
    with torch.autocast("cpu", torch.bfloat16):
        rough = stability(encoder, x, noise), decoder_score(decoder, x, noise)
    for value, expected in zip(
        rough, (stability(encoder, x, noise), decoder_score(decoder, x, noise)), strict=True
    ):
        assert value.dtype == torch.float32
        assert (value - expected).norm() < 0.03 * expected.norm()
