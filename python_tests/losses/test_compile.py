"""Whole graphs for every option: value and gradients of the compiled loss equal the eager ones.

Traced cold and differentiated ahead of time; running the graphs through Inductor is for each loss's own file.
"""

import pytest
import torch
from torch import nn

from fisherkernels.losses import decoder_score, elbo_loss, fisher_ae_loss, stability

FISHER_AE = [
    {"prior": "none", "variance": "float", "network": "mlp"},
    {"prior": "normalizable", "variance": "flat", "network": "pair", "stability": "log_std"},
    {
        "prior": "shell",
        "variance": "0-d",
        "network": "conv",
        "decoder_gradient": "stopped",
        "reduction": "none",
    },
    {"prior": None, "variance": "trailing", "network": "pair", "stability": "none", "reduction": "sum"},
    {"prior": None, "variance": "float", "network": "conv"},
]
ELBO = [
    {"variance": "trailing", "network": "pair"},
    {"likelihood": "bernoulli", "network": "conv", "reduction": "none"},
    {"likelihood": "bernoulli_logits", "network": "mlp", "beta": 0.5, "reduction": "sum"},
]


def compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize(
    ("loss", "case"), [(fisher_ae_loss, case) for case in FISHER_AE] + [(elbo_loss, case) for case in ELBO]
)
def test_losses(kit, loss, case):
    dtype, shape = torch.float64, torch.Size([1, 4, 3])
    options = dict(case)
    encoder, decoder = kit.networks(options.pop("network"), shape, 2, dtype)
    if "prior" in options:
        options["prior"] = kit.prior(options["prior"], 2, dtype)
    if "variance" in options:
        options["variance"] = kit.variance(options["variance"], shape, dtype)
    x, noise = torch.rand(3, *shape, dtype=dtype), torch.randn(2, 3, 2, dtype=dtype)

    def call(x, noise):
        return loss(encoder, decoder, x, noise=noise, num_samples=2, **options)

    leaves = kit.leaves_of(encoder, decoder, options.get("prior"), options.get("variance"))
    kit.assert_same(compiled(call)(x, noise), call(x, noise), leaves, dtype)


@pytest.mark.parametrize("kind", ["posterior", "log_std"])
def test_scores(kit, kind):
    encoder, decoder = kit.networks("conv", torch.Size([1, 4, 3]), 2, torch.float64)
    x, z = torch.rand(3, 1, 4, 3).double(), torch.randn(2, 3, 2).double()

    def call(x, z):
        return stability(encoder, x, z, kind), decoder_score(decoder, x, z, 0.5)

    for ours, theirs in zip(compiled(call)(x, z), call(x, z), strict=True):
        kit.assert_close(kind, ours, theirs, torch.float64)


def test_drawn_noise_differs_from_call_to_call():
    encoder, decoder, x = nn.Linear(3, 4), nn.Linear(2, 3), torch.rand(5, 3)
    call = compiled(lambda x: fisher_ae_loss(encoder, decoder, x).loss)
    assert call(x) != call(x)


def test_another_variance_or_batch_size_still_compiles_whole():
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def call(x, noise, variance):
        return fisher_ae_loss(encoder, decoder, x, noise=noise, variance=variance).loss

    run = compiled(call)
    for count, variance in ((5, 0.5), (4, 0.7), (7, 2)):
        x, noise = torch.rand(count, 3), torch.randn(count, 2)
        torch.testing.assert_close(run(x, noise, variance), call(x, noise, variance))
