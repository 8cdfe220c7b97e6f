"""bfloat16 networks and autocast: close to float32, with sums kept in float32; float64 from end to end."""

import pytest
import torch
from torch import nn

from fisherkernels.losses import (
    decoder_score,
    elbo_loss,
    fisher_ae_loss,
    fisher_net_loss,
    fisher_shannon_loss,
    hyvarinen_score,
    inference_loss,
    mutual_ae_loss,
    score_matching_loss,
    stability,
)
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
    for value, expected in zip(rough, (stability(encoder, x, noise), decoder_score(decoder, x, noise)), strict=True):
        assert value.dtype == torch.float32
        assert (value - expected).norm() < 0.03 * expected.norm()


SHAPE, WIDTH, BATCH, SAMPLES = (2, 16, 16), 4, 16, 2  # 512 numbers, whose sums bfloat16 would get wrong by percents
CLOSE = 2e-2  # relative root mean square error of every parameter's gradient


def dense(outputs):
    """No kinks: ReLU's slope flips for inputs that rounding carries across zero, 5% of a gradient here."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(512, 48), nn.SiLU(), nn.Linear(48, outputs))
    decoder = nn.Sequential(
        nn.Linear(WIDTH, 48), nn.LayerNorm(48), nn.Tanh(), nn.Linear(48, 512), nn.Unflatten(1, SHAPE)
    )
    return encoder, decoder


def convolutional(outputs):
    encoder = nn.Sequential(
        nn.Conv2d(2, 8, 4, 2, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(512, outputs)
    )
    decoder = nn.Sequential(
        nn.Linear(WIDTH, 512),
        nn.Unflatten(1, (8, 8, 8)),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 2, 4, 2, 1),
    )
    return encoder, decoder


def common(dtype):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, BATCH, WIDTH, generator=generator).to(dtype)  # the same draws in every dtype
    return {"num_samples": SAMPLES, "noise": noise, "variance": torch.tensor(0.5, dtype=dtype)}


def diagonal(loss, **options):
    return lambda encoder, decoder, x: loss(encoder, decoder, x, **(common(x.dtype) | options))


def bernoulli(encoder, decoder, x):
    decoder = nn.Sequential(decoder, nn.Sigmoid())
    return elbo_loss(encoder, decoder, x, **(common(x.dtype) | {"variance": 1.0, "likelihood": "bernoulli"}))


def mutual_ae(encoder, decoder, x):
    latent = common(x.dtype)["noise"]
    torch.manual_seed(0)
    approximation, data = dense(2 * WIDTH)[0].to(x.dtype), torch.randn(SAMPLES, BATCH, 512).to(x.dtype)
    noise = (latent, latent.flip(0), data)
    options = {"approximation": approximation, "information": 1.0, "noise": noise}
    return mutual_ae_loss(encoder, decoder, x, **(common(x.dtype) | options))


def fisher_net(method):
    def loss(encoder, decoder, x):
        data = torch.randn(1, BATCH, 512, generator=torch.Generator().manual_seed(1)).to(x.dtype)
        xi, noise = torch.tensor(-0.5, dtype=x.dtype), (data, common(x.dtype)["noise"][:1])
        options = {"log_noise_variance": xi, "dataset_size": 100, "batch_statistics": "frozen", "logdet": True}
        return fisher_net_loss(encoder, decoder, x, method=method, noise=noise, **options)

    return loss


EVERY = {
    "elbo": diagonal(elbo_loss),
    "elbo bernoulli": bernoulli,
    "fisher_ae": diagonal(fisher_ae_loss),
    "fisher_ae stopped": diagonal(fisher_ae_loss, decoder_gradient="stopped", stability="log_std"),
    "fisher_net cg": fisher_net("cg"),
    "fisher_net cholesky": fisher_net("cholesky"),
    "fisher_shannon": diagonal(fisher_shannon_loss, lambda_x=0.1, f_z=2.0),
    "mutual_ae": mutual_ae,
    "m1": diagonal(score_matching_loss, objective="m1"),
    "m2": diagonal(score_matching_loss, objective="m2"),
    "m3": diagonal(score_matching_loss, objective="m3"),
    "kl": diagonal(inference_loss),
    "fisher": diagonal(inference_loss, divergence="fisher"),
    "fisher reparametrized": diagonal(inference_loss, divergence="fisher", reparametrize=True),
}


def networks(kind, name, dtype=torch.float32):
    torch.manual_seed(0)
    encoder, decoder = kind(WIDTH if name.startswith("fisher_net") else 2 * WIDTH)
    return encoder.to(dtype), decoder.to(dtype), torch.rand(BATCH, *SHAPE).to(dtype)


def gradients(loss, *sources):
    parameters = [p for source in sources for p in source.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("kind", [dense, convolutional])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_under_autocast(kind, name):
    encoder, decoder, x = networks(kind, name)
    exact = EVERY[name](encoder, decoder, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = EVERY[name](encoder, decoder, x)
    assert {rough.loss.dtype, *(term.dtype for term in rough.terms.values())} == {torch.float32}
    for key, expected in exact.terms.items():
        assert (rough.terms[key] - expected).norm() < CLOSE * expected.norm(), key
    results = [gradients(output.loss, encoder, decoder) for output in (rough, exact)]
    floor = 1e-2 * torch.stack([g.norm() for g in results[1]]).norm()  # a bias before BatchNorm has none
    assert floor > 0
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() < CLOSE * max(expected.norm(), floor), list(ours.shape)


@pytest.mark.parametrize("name", EVERY)
def test_float64_from_end_to_end(name):
    encoder, decoder, x = networks(convolutional, name, torch.float64)
    output = EVERY[name](encoder, decoder, x)
    parts = [output.loss, *output.terms.values(), *gradients(output.loss, encoder, decoder)]
    assert {part.dtype for part in parts} == {torch.float64}
    single = EVERY[name](*networks(convolutional, name))
    assert 0 < (single.loss.double() - output.loss).abs() < 1e-4 * output.loss.abs()  # it did gain digits


def test_hyvarinen_scores_leave_autocast_out():
    density = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = hyvarinen_score(density, x)
    torch.testing.assert_close(inside, hyvarinen_score(density, x), rtol=0, atol=0)
