"""A Fisher AE step in every way it can be computed, and an ELBO step for scale."""

from functools import partial

import torch
from torch import nn

import fisherkernels as fk
from fisherkernels import reference

from ..case import Case, Contender
from .floors import ELBO, FISHER, step_flops

BATCH, EXACT_BATCH = 128, 8
ORDER = 5  # of the prior
TRACED = {"trace_autograd_ops": True}


class Model(nn.Module):
    def __init__(self, encoder, decoder, latent_dim):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.prior = fk.priors.PolynomialExponentialFamily(latent_dim, ORDER)

    def ours(self, x, noise):
        return fk.fisher_ae_loss(self.encoder, self.decoder, x, prior=self.prior, noise=noise).loss

    def double_backward(self, x, noise):
        """One pass of the encoder, with the cotangent of log q written out: the faster form."""
        return self.double_backward_as_printed(x, noise, encoder_passes=1)

    def double_backward_as_printed(self, x, noise, encoder_passes=2):
        return reference.fisher_ae_loss(
            self.encoder, self.decoder, x, prior=self.prior, noise=noise, encoder_passes=encoder_passes
        ).loss

    def elbo(self, x, noise):
        return fk.elbo_loss(self.encoder, self.decoder, x, noise=noise).loss

    def reference_elbo(self, x, noise):
        return reference.elbo_loss(self.encoder, self.decoder, x, noise=noise).loss


def step(make_model, method, fullgraph=None, dynamo_options=None, *, draws=False):
    """build(device, dtype) of one step; compiled where `fullgraph` says how, under `dynamo_options`.

    `draws`: the networks have dropout; every contender draws the masks of the reference, compiled ones too.
    """

    def build(device, dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same parameters for every contender
            model = make_model()
        model = model.to(device=device, dtype=dtype).train()
        loss_of = getattr(model, method)
        if fullgraph is not None:
            loss_of = torch.compile(loss_of, fullgraph=fullgraph)
        if dynamo_options:
            loss_of = torch._dynamo.config.patch(dynamo_options)(loss_of)
        if draws and fullgraph is not None:
            loss_of = torch._inductor.config.patch(fallback_random=True)(loss_of)
        trained = [model.encoder, model.decoder] + ([] if "elbo" in method else [model.prior])
        parameters = [parameter for module in trained for parameter in module.parameters()]

        def run(x, noise):
            if draws:
                torch.manual_seed(0)
            if "double_backward" in method:
                x = x.detach().requires_grad_()  # a graph being compiled cannot make this leaf
            loss = loss_of(x, noise)
            return loss.detach(), torch.autograd.grad(loss, parameters)

        return run

    return build


def fisher_ae_case(name, title, make_model, x_shape, latent_dim, *, draws=False):
    """`draws`: see step; the paper's formula with two passes of the encoder would draw two masks then."""

    def inputs(generator, batch=BATCH):
        x = torch.rand(batch, *x_shape, generator=generator)
        return x, torch.randn(1, batch, latent_dim, generator=generator)

    def contender(label, *how, route=FISHER, **keywords):
        return Contender(label, of(*how), route=route, **keywords)

    of = partial(step, make_model, draws=draws)
    twice = () if draws else (contender("eager double backward, encoder twice", "double_backward_as_printed"),)
    return Case(
        name=name,
        title=f"{title}, batch {BATCH}, d = {latent_dim}",
        inputs=inputs,
        exact_inputs=partial(inputs, batch=EXACT_BATCH),
        reference=of("double_backward" if draws else "double_backward_as_printed"),
        contenders=(
            contender("ours", "ours"),
            contender("ours, compiled", "ours", True),
            contender("eager double backward", "double_backward"),
            *twice,
            contender("torch.compile of double backward", "double_backward", False),
            contender("torch.compile with trace_autograd_ops", "double_backward", True, TRACED),
            contender("ELBO, for scale", "elbo", route=ELBO, reference=of("reference_elbo")),
        ),
        outputs=("loss", "gradients"),
        flops=partial(step_flops, make_model, x_shape, latent_dim, BATCH),
        # At a kink (ReLU) float32 and float64 now and then take different sides: float64 decides.
        tolerances={torch.float64: 1e-9, torch.float32: 1e-2},
    )
