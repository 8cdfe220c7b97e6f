"""Memory where the Jacobian is large: one sample per item, convolutional decoder of 64x64 colour images."""

import torch

from fisherkernels.nets import ConvDecoder

from ..case import Case, Contender
from . import exact, routes, sample, trained

BATCH, LATENT, SHAPE = 128, 64, (3, 64, 64)
DATA = 3 * 64 * 64
CHUNK = 8  # items that vmap works on at once; all at once would need many times the memory of the Jacobian
EXACT_BATCH = 2


def make_decoder():
    return ConvDecoder(LATENT, SHAPE, channels=(16, 16, 8), strides=(2, 2, 2), norm_groups=4, output="identity")


def _inputs(generator, batch=BATCH):
    mean = torch.randn(batch, LATENT, generator=generator)
    data_noise = torch.randn(batch, DATA, generator=generator)
    return mean, data_noise, torch.randn(batch, LATENT, generator=generator)


def _build(prepare):
    def build(device, dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            decoder = make_decoder()
        decoder = decoder.to(device=device, dtype=dtype).requires_grad_(False)
        draw = prepare(decoder, sample.solver_tolerance(dtype))
        variance = torch.tensor(trained.NOISE_VARIANCE, device=device, dtype=dtype)

        @torch.no_grad()
        def run(mean, data_noise, latent_noise):
            return (draw(mean, variance, data_noise, latent_noise),)

        return run

    return build


CASES = (
    Case(
        name="fisher_net_memory",
        title=f"N = {BATCH}, d = {LATENT}, D = {DATA}, convolutional decoder",
        inputs=_inputs,
        exact_inputs=lambda generator: _inputs(generator, EXACT_BATCH),
        reference=_build(lambda decoder, tolerance: exact.prepare(decoder, tolerance, CHUNK)),
        contenders=(
            Contender("ours", _build(routes.ours("auto"))),
            Contender("ours, cg", _build(routes.ours("cg"))),
            Contender("ours, cholesky", _build(routes.ours("cholesky"))),
            Contender("explicit Jacobian, vmap(jacfwd), Cholesky", _build(routes.torch_func_cholesky(CHUNK))),
        ),
        outputs=("sample",),
        tolerances=sample.TOLERANCES,
    ),
)
