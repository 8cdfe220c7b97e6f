"""Likelihood by importance sampling: all images and samples through the decoder at once, against loops per image.

All contenders draw the same noise, so that their estimates are equal but for rounding.
"""

import math
from functools import partial

import torch
from torch.nn import functional as F

from fisherkernels.measures import importance_sampled_nll
from fisherkernels.nets import MLPDecoder, MLPEncoder
from fisherkernels.training import VAE

from ..case import Case, Contender

BATCH, SAMPLES, LATENT, PIXELS = 64, 128, 40, 784
CHUNK = 16  # samples at a time of the loop that has chunks
NETS = {"hidden": [300], "repeat": 5}


def make_model(logits):
    encoder = MLPEncoder(PIXELS, latent_dim=LATENT, **NETS)
    decoder = MLPDecoder(LATENT, out_shape=[1, 28, 28], output="identity" if logits else "sigmoid", **NETS)
    return VAE(encoder, decoder, LATENT, likelihood="bernoulli_logits" if logits else "bernoulli")


def _inputs(generator):
    return ((torch.rand(BATCH, 1, 28, 28, generator=generator) < 0.2).float(),)


def _noise():
    return torch.Generator().manual_seed(0)


def ours(model, x):
    return importance_sampled_nll(model, x, num_samples=SAMPLES, generator=_noise())


def loop(chunk, model, x):
    """As one writes it for a single image: `chunk` samples at a time, binary_cross_entropy, one log-sum-exp."""
    noise = torch.randn(SAMPLES, len(x), LATENT, generator=_noise()).to(x)
    cost = F.binary_cross_entropy_with_logits if model.likelihood == "bernoulli_logits" else F.binary_cross_entropy
    values = []
    for i, image in enumerate(x):
        mean, log_std = model.encode(image[None])  # [1, d]
        log_weights = []
        for eps in noise[:, i].split(chunk):
            z = mean + log_std.exp() * eps  # [chunk, d]
            output = model.decoder(z)
            log_likelihood = -cost(output, image.expand_as(output), reduction="none").flatten(1).sum(1)
            log_ratio = (0.5 * eps.square() + log_std - 0.5 * z.square()).sum(1)  # log p(z) - log q(z|x)
            log_weights.append(log_likelihood + log_ratio)
        values.append(math.log(SAMPLES) - torch.cat(log_weights).logsumexp(0))
    return torch.stack(values)


def build(method, logits=False):
    def prepare(device, dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model(logits)
        model = model.to(device=device, dtype=dtype).eval()

        @torch.no_grad()
        def run(x):
            return (method(model, x),)

        return run

    return prepare


def flops():
    weights = sum(layer.weight.numel() for layer in make_model(False).decoder.layers if hasattr(layer, "weight"))
    return {"decoder": 2.0 * BATCH * SAMPLES * weights}


CASES = (
    Case(
        name="importance_sampled_nll",
        title=f"N = {BATCH}, K = {SAMPLES}, decoder 40-5x300-784",
        inputs=_inputs,
        reference=build(partial(loop, SAMPLES)),
        contenders=(
            Contender("ours", build(ours)),
            Contender("ours, logits", build(ours, logits=True)),
            Contender("loop over images, all samples at once", build(partial(loop, SAMPLES))),
            Contender("the same, logits", build(partial(loop, SAMPLES), logits=True)),
            Contender(f"loop over images and chunks of {CHUNK} samples", build(partial(loop, CHUNK))),
            Contender("loop over images and single samples", build(partial(loop, 1))),
        ),
        outputs=("nll",),
        tolerances={torch.float64: 1e-9, torch.float32: 1e-5},
        flops=flops,
    ),
)
