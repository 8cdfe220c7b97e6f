"""One training step: loss, all gradients and Adam, FisherNet beside a VAE with the same nets."""

import math
from functools import cache, partial

import torch
from torch import nn

import fisherkernels as fk
from fisherkernels import reference
from fisherkernels.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

from ..case import Case, Contender
from . import exact, images, routes, sample, trained

BATCH, EXACT_BATCH = 64, 2
DATASET_SIZE = 60_000
RELATIVE_RESIDUAL = 1e-3  # the loss's default: enough for training, and an error of a percent in a gradient
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-2}
IMAGES = 4096


class Nets(nn.Module):
    """A mean encoder, an encoder with log_std, a decoder and a log-variance."""

    def __init__(self, mean_encoder, encoder, decoder):
        super().__init__()
        self.mean_encoder, self.encoder, self.decoder = mean_encoder, encoder, decoder
        self.log_variance = nn.Parameter(torch.tensor(math.log(trained.NOISE_VARIANCE)))

    def fisher_net(self, method, x, data_noise, latent_noise, tolerance):
        return fk.fisher_net_loss(
            self.mean_encoder,
            self.decoder,
            x,
            log_noise_variance=self.log_variance,
            dataset_size=DATASET_SIZE,
            noise=(data_noise[None], latent_noise[None]),
            method=method,
            tol=tolerance,
        ).loss

    def fisher_net_by(self, prepare, x, data_noise, latent_noise, tolerance):
        """The loss (Zacherl et al., eq. 25) written out around a sample drawn in another way."""
        mean, xi = self.mean_encoder(x), self.log_variance
        z = prepare(self.decoder, tolerance)(mean, xi.exp(), data_noise, latent_noise)
        squared_error = (x - self.decoder(z)).square().flatten(1).sum(1) / xi.exp()
        terms = z.square().sum(1) + squared_error + x[0].numel() * xi + xi.square() / DATASET_SIZE
        return 0.5 * terms.mean()

    def vae(self, x, data_noise, latent_noise, tolerance):
        return self._elbo(fk.elbo_loss, x, latent_noise)

    def reference_vae(self, x, data_noise, latent_noise, tolerance):
        return self._elbo(reference.elbo_loss, x, latent_noise)

    def _elbo(self, loss, x, noise):
        return loss(self.encoder, self.decoder, x, variance=self.log_variance.exp(), noise=noise[None]).loss


def mlp_nets(latent_dim):
    """The nets of configs/fisher_net_fashion.yaml on flat images, with trained weights."""
    widths = trained.HIDDEN
    nets = Nets(
        MLPEncoder(trained.PIXELS, widths, latent_dim, mean_only=True),
        MLPEncoder(trained.PIXELS, widths, latent_dim),
        MLPDecoder(latent_dim, widths[::-1], (trained.PIXELS,), output="identity"),
    )
    model = trained.auto_encoder(latent_dim)
    pairs = ((nets.mean_encoder, model.encoder), (nets.encoder, model.encoder), (nets.decoder, model.decoder))
    for net, source in pairs:
        for target, weight in zip(net.parameters(), source.parameters(), strict=True):
            target.data.copy_(weight[: len(target)])  # the mean comes before log_std
    return nets


def colour_nets(latent_dim):
    shape, channels, strides = (3, 64, 64), (32, 64, 128), (2, 2, 2)
    sizes = {"norm_groups": 8, "latent_dim": latent_dim}
    return Nets(
        ConvEncoder(shape, channels, strides, mean_only=True, **sizes),
        ConvEncoder(shape, channels, strides, **sizes),
        ConvDecoder(out_shape=shape, channels=channels[::-1], strides=strides, output="identity", **sizes),
    )


def step(make_nets, loss_of, compile_loss=False):
    """build(device, dtype) of one step; loss_of(nets) gives the function of x, noise and tolerance."""

    def build(device, dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same parameters for every contender
            nets = make_nets()
        nets = nets.to(device=device, dtype=dtype).train()
        loss = loss_of(nets)
        unused = nets.mean_encoder if loss in (nets.vae, nets.reference_vae) else nets.encoder
        parameters = [p for p in nets.parameters() if all(p is not other for other in unused.parameters())]
        optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
        run_loss = torch.compile(loss, fullgraph=True) if compile_loss else loss
        tolerance = RELATIVE_RESIDUAL if dtype == torch.float32 else sample.solver_tolerance(dtype)

        def run(x, data_noise, latent_noise):
            optimizer.zero_grad()
            value = run_loss(x, data_noise, latent_noise, tolerance)
            value.backward()
            optimizer.step()
            return value.detach(), tuple(p.grad for p in parameters)

        return run

    return build


def step_case(name, title, make_nets, draw, latent_dim, sampler, others, **keywords):
    """`sampler` draws the reference's samples; `others`: label -> (sampler, route)."""

    def inputs(generator, batch=BATCH):
        x = draw(generator, batch)
        data_noise = torch.randn(batch, x[0].numel(), generator=generator)
        return x, data_noise, torch.randn(batch, latent_dim, generator=generator)

    def by(prepare):
        return lambda nets: partial(nets.fisher_net_by, prepare)

    def ours(method):
        return lambda nets: partial(nets.fisher_net, method)

    return Case(
        name=name,
        title=f"{title}, batch {BATCH}, d = {latent_dim}",
        inputs=inputs,
        exact_inputs=lambda generator: inputs(generator, EXACT_BATCH),
        reference=step(make_nets, by(sampler)),
        contenders=(
            Contender("ours", step(make_nets, ours("auto"))),
            Contender("ours, cg", step(make_nets, ours("cg"))),
            Contender("ours, cholesky", step(make_nets, ours("cholesky"))),
            Contender("ours, compiled", step(make_nets, ours("auto"), compile_loss=True)),
            *(Contender(label, step(make_nets, by(prepare))) for label, prepare in others.items()),
            Contender(
                "VAE, for scale",
                step(make_nets, lambda nets: nets.vae),
                reference=step(make_nets, lambda nets: nets.reference_vae),
            ),
        ),
        outputs=("loss", "gradients"),
        tolerances=TOLERANCES,
        **keywords,
    )


@cache
def _images():
    return images.load()[:IMAGES].clone()


def _digits(generator, batch):
    return _images()[torch.randint(len(_images()), (batch,), generator=generator)]


def _colour(generator, batch):
    return torch.rand(batch, 3, 64, 64, generator=generator)


IMPLICIT = routes.implicit_cg(routes.torch_func_maps)
CASES = (
    step_case(
        "fisher_net_step",
        "the paper's nets, loss, gradients and Adam",
        partial(mlp_nets, 10),
        _digits,
        10,
        exact.prepare,
        {
            "autograd through vmap(jacfwd), Cholesky": routes.torch_func_cholesky(),
            "implicit, CG over torch.func": IMPLICIT,
        },
    ),
    step_case(
        "fisher_net_step_colour",
        "convolutional nets for 64x64 colour images, loss, gradients and Adam",
        partial(colour_nets, 512),
        _colour,
        512,
        IMPLICIT,
        {"implicit, CG over torch.func": IMPLICIT},
        devices=("cuda",),
    ),
)
