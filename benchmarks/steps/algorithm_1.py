"""A cycle of Algorithm 1 (Wenliang, 2022): J updates of the encoder, then one of the decoder and its variance."""

import math
from functools import partial

import torch
from torch import nn

import fisherkernels as fk
from fisherkernels import reference
from fisherkernels.nets import DCGANDecoder, DCGANEncoder

from ..case import Case, Contender

ENCODER_UPDATES, SAMPLES = 5, 5  # J and S
BATCH, EXACT_BATCH = 100, 4
SHAPE, LATENT, WIDTH = (1, 32, 32), 100, 64


class Model(nn.Module):
    def __init__(self, shape=SHAPE, latent_dim=LATENT, width=WIDTH):
        super().__init__()
        self.encoder = DCGANEncoder(shape, latent_dim, width)
        self.decoder = DCGANDecoder(latent_dim, shape, width)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def optimizers(self):
        variance = {"params": [self.log_variance], "lr": 1e-2}
        encoder = torch.optim.Adam(self.encoder.parameters(), lr=1e-4)
        return encoder, torch.optim.Adam([{"params": list(self.decoder.parameters())}, variance], lr=1e-4)


def library(module):
    """(inference, learning) from fisherkernels, or from fisherkernels.reference, which has the same signatures."""

    def inference(model, x, noise, divergence):
        variance = model.log_variance.exp()
        options = {"divergence": divergence, "variance": variance, "num_samples": len(noise), "noise": noise}
        return module.inference_loss(model.encoder, model.decoder, x, **options).loss

    def learning(model, x, noise, objective):
        variance = model.log_variance.exp()
        options = {"objective": objective, "variance": variance, "num_samples": len(noise), "noise": noise}
        return module.score_matching_loss(model.encoder, model.decoder, x, **options).loss

    return inference, learning


def by_hand():
    """(inference, learning) as written for this one case in plain PyTorch, with no derivative taken in vain."""

    def sample(model, x, noise):
        mean, log_std = model.encoder(x).chunk(2, dim=1)
        return mean, log_std, mean + log_std.exp() * noise  # [N, d], [N, d], [L, N, d]

    def squared_error(model, x, z):
        output = model.decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
        return (x - output).square().flatten(2).sum(2)  # [L, N]

    def inference(model, x, noise, divergence):
        variance = model.log_variance.detach().exp()
        mean, log_std, z = sample(model, x, noise)
        if divergence == "kl":
            constant = 0.5 * x[0].numel() * torch.log(2 * math.pi * variance)
            reconstruction = 0.5 / variance * squared_error(model, x, z).mean(0) + constant
            return (reconstruction + 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)).mean()
        z = z.detach().requires_grad_()
        likelihood = -0.5 / variance * squared_error(model, x, z).sum()
        (likelihood_score,) = torch.autograd.grad(likelihood, z)
        mismatch = -(z.detach() - mean) * (-2 * log_std).exp() + z.detach() - likelihood_score
        return 0.5 * mismatch.square().sum(2).mean()

    def learning(model, x, noise, objective):
        variance = model.log_variance.exp()
        divergence = -x[0].numel() / variance
        if objective == "m1":
            with torch.no_grad():
                z = sample(model, x, noise)[2]
            return 0.5 * squared_error(model, x, z).mean() / variance**2 + divergence
        point = x.detach().requires_grad_()
        mean, log_std, z = sample(model, point, noise)
        z = z.detach()
        log_density = -(0.5 * ((z - mean) * (-log_std).exp()).square() + log_std).sum((1, 2))  # [L]
        posterior_score = torch.stack(
            [torch.autograd.grad(sample, point, retain_graph=True)[0] for sample in log_density]
        ).flatten(2)  # [L, N, D]
        output = model.decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:])
        score = ((output - x) / variance).flatten(2)  # [L, N, D]
        cross = (posterior_score * score).sum(2).mean(0)
        return (cross + divergence + 0.5 * score.mean(0).square().sum(1)).mean()

    return inference, learning


def cycle(make_model, losses, divergence, objective, compiled=False):
    """build(device, dtype) of one cycle. The optimisers go on from call to call: only the first has a reference."""
    inference, learning = losses

    def build(device, dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same parameters for every contender
            model = make_model()
        model = model.to(device=device, dtype=dtype).train()
        encoder_optimizer, decoder_optimizer = model.optimizers()
        encoder = list(model.encoder.parameters())
        decoder = [*model.decoder.parameters(), model.log_variance]
        wrap = torch.compile if compiled else lambda loss: loss
        encoder_loss, decoder_loss = wrap(partial(inference, model)), wrap(partial(learning, model))

        def update(optimizer, parameters, loss):
            optimizer.zero_grad()
            loss.backward(inputs=parameters)
            optimizer.step()
            return loss.detach()

        def run(x, noise):
            values = [update(encoder_optimizer, encoder, encoder_loss(x, eps, divergence)) for eps in noise[:-1]]
            values.append(update(decoder_optimizer, decoder, decoder_loss(x, noise[-1], objective)))
            return torch.stack(values), tuple(p.grad for p in encoder), tuple(p.grad for p in decoder)

        return run

    return build


def cycle_case(name, title, divergence, objective, make_model=Model, shape=SHAPE, latent_dim=LATENT, batch=BATCH):
    def inputs(generator, batch=batch):
        x = torch.rand(batch, *shape, generator=generator)
        return x, torch.randn(ENCODER_UPDATES + 1, SAMPLES, batch, latent_dim, generator=generator)

    def contender(label, losses, **how):
        return Contender(label, cycle(make_model, losses, divergence, objective, **how))

    return Case(
        name=name,
        title=f"{title}, batch {batch}, d = {latent_dim}, J = {ENCODER_UPDATES}, S = {SAMPLES}",
        inputs=inputs,
        exact_inputs=partial(inputs, batch=min(batch, EXACT_BATCH)),
        reference=cycle(make_model, library(reference), divergence, objective),
        contenders=(
            contender("ours", library(fk)),
            contender("ours, compiled", library(fk), compiled=True),
            contender("eager autograd", by_hand()),
            contender("eager double backward", library(reference)),
        ),
        outputs=("losses", "encoder gradients", "decoder gradients"),
        # Float32 crosses kinks of LeakyReLU and ReLU now and then, and Adam moves a parameter as far for a gradient
        # that is all rounding: float64 decides.
        tolerances={torch.float64: 1e-8, torch.float32: 1e-2},
    )


CASES = (
    cycle_case("algorithm_1_m1", "DCGAN nets, KL and M1", "kl", "m1"),
    cycle_case("algorithm_1_m3", "DCGAN nets, KL and M3", "kl", "m3"),
    cycle_case("algorithm_1_fisher", "DCGAN nets, Fisher divergence and M1", "fisher", "m1"),
)
