"""A posterior sample per item, forward only."""

import torch

from ..case import Case, Contender
from . import exact, floors, nifty, routes, trained
from .conjugate_gradients import RELATIVE_RESIDUAL

SHAPES = ((64, 20), (256, 20), (64, 100), (16, 256))  # (N, d)
GPU_SHAPES = ((1024, 20),)
EXACT_BATCH = 8
# At a kink (ReLU) float32 and float64 now and then take different sides: float64 and the median residual decide.
# NIFTy stops where its energy no longer falls, near the square root of float64's precision.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}


def solver_tolerance(dtype):
    """The relative residual asked of iterative solvers; in float64 small enough to compare formulas."""
    return 1e-12 if dtype == torch.float64 else RELATIVE_RESIDUAL


def decoder_of(latent_dim, device, dtype):
    return trained.auto_encoder(latent_dim).decoder.to(device=device, dtype=dtype).eval()


def make_inputs(latent_dim, batch):
    """mean, data_noise, latent_noise; means are codes of training images."""

    def inputs(generator, batch=batch):
        codes = trained.auto_encoder(latent_dim).codes
        mean = codes[torch.randint(len(codes), (batch,), generator=generator)]
        data_noise = torch.randn(batch, trained.PIXELS, generator=generator)
        return mean, data_noise, torch.randn(batch, latent_dim, generator=generator)

    return inputs


def _build(prepare, latent_dim):
    def build(device, dtype):
        sample = prepare(decoder_of(latent_dim, device, dtype), solver_tolerance(dtype))
        variance = torch.tensor(trained.NOISE_VARIANCE, device=device, dtype=dtype)

        @torch.no_grad()
        def run(mean, data_noise, latent_noise):
            return (sample(mean, variance, data_noise, latent_noise),)

        return run

    return build


def sample_case(batch, latent_dim, devices=("cpu", "cuda")):
    def contender(label, prepare, **keywords):
        return Contender(label, _build(prepare, latent_dim), **keywords)

    def residual(mean, data_noise, latent_noise, z):
        decoder = decoder_of(latent_dim, "cpu", torch.float64)
        variance = torch.tensor(trained.NOISE_VARIANCE, dtype=torch.float64)
        return exact.relative_residual(decoder, mean, variance, data_noise, latent_noise, z)

    inputs = make_inputs(latent_dim, batch)
    return Case(
        name=f"fisher_net_sample_{batch}_{latent_dim}",
        title=f"N = {batch}, d = {latent_dim}, decoder {latent_dim}-448-448-448-784",
        inputs=inputs,
        exact_inputs=lambda generator: inputs(generator, EXACT_BATCH),
        reference=_build(exact.prepare, latent_dim),
        contenders=(
            contender("ours", routes.ours("auto")),
            contender("ours, cg", routes.ours("cg"), route="CG"),
            contender("ours, cholesky", routes.ours("cholesky"), route="direct"),
            contender("ours, compiled", routes.compiled(routes.ours("auto"))),
            contender("CG over torch.func", routes.cg(routes.torch_func_maps), route="CG"),
            contender("CG, linearised by hand", routes.cg(routes.by_hand_maps), route="CG"),
            contender("vmap(jacfwd), Cholesky", routes.torch_func_cholesky(), route="direct"),
            contender("direct, linearised by hand, compiled", routes.compiled(routes.by_hand_direct), route="direct"),
            contender(
                "linear_operator's CG, our product",
                routes.linear_operator_cg,
                route="CG",
                requires=("linear_operator",),
            ),
            contender("NIFTy.re, lax.map", nifty.sampler("lax.map"), route="CG", **nifty.NIFTY),
            contender("NIFTy.re, vmap", nifty.sampler("vmap"), route="CG", **nifty.NIFTY),
        ),
        outputs=("sample",),
        tolerances=TOLERANCES,
        residual=residual,
        residual_limit=2 * RELATIVE_RESIDUAL,
        flops=lambda: floors.sample(latent_dim, inputs(torch.Generator().manual_seed(0))),
        facts=lambda: floors.facts(latent_dim, inputs(torch.Generator().manual_seed(0))[0]),
        devices=devices,
    )


CASES = tuple(sample_case(*shape) for shape in SHAPES) + tuple(
    sample_case(*shape, devices=("cuda",)) for shape in GPU_SHAPES
)
