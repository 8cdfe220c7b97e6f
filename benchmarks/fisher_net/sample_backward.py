"""A posterior sample per item and the gradient of a random linear functional of the samples."""

import math

import torch

from ..case import Case, Contender
from . import exact, floors, routes, sample, trained


def make_inputs(latent_dim, batch):
    """mean, data_noise, latent_noise and the gradient of the functional, [N, d]."""
    draw = sample.make_inputs(latent_dim, batch)

    def inputs(generator, batch=batch):
        return *draw(generator, batch), torch.randn(batch, latent_dim, generator=generator)

    return inputs


def _build(prepare, latent_dim):
    def build(device, dtype):
        decoder = sample.decoder_of(latent_dim, device, dtype)
        draw = prepare(decoder, sample.solver_tolerance(dtype))
        log_variance = torch.tensor(math.log(trained.NOISE_VARIANCE), device=device, dtype=dtype, requires_grad=True)
        parameters = list(decoder.parameters())

        def run(mean, data_noise, latent_noise, grad):
            mean = mean.detach().requires_grad_()
            z = draw(mean, log_variance.exp(), data_noise, latent_noise)
            of_mean, of_log_variance, *of_parameters = torch.autograd.grad(
                z, [mean, log_variance, *parameters], grad, materialize_grads=True
            )
            return z.detach(), of_mean, of_log_variance, tuple(of_parameters)

        return run

    return build


def backward_case(batch, latent_dim, devices=("cpu", "cuda")):
    def contender(label, prepare, **keywords):
        return Contender(label, _build(prepare, latent_dim), **keywords)

    inputs = make_inputs(latent_dim, batch)
    return Case(
        name=f"fisher_net_backward_{batch}_{latent_dim}",
        title=f"N = {batch}, d = {latent_dim}, decoder {latent_dim}-448-448-448-784",
        inputs=inputs,
        exact_inputs=lambda generator: inputs(generator, sample.EXACT_BATCH),
        reference=_build(exact.prepare, latent_dim),
        contenders=(
            contender("ours", routes.ours("auto")),
            contender("ours, cg", routes.ours("cg"), route="CG"),
            contender("ours, cholesky", routes.ours("cholesky"), route="direct"),
            contender("ours, compiled", routes.compiled(routes.ours("auto"))),
            contender("autograd through Cholesky, vmap(jacfwd)", routes.torch_func_cholesky(), route="direct"),
            contender(
                "autograd through Cholesky, vmap(jacfwd), compiled",
                routes.compiled(routes.torch_func_cholesky()),
                route="direct",
            ),
            contender("autograd through Cholesky, by hand", routes.by_hand_direct, route="direct"),
            contender(
                "autograd through Cholesky, by hand, compiled", routes.compiled(routes.by_hand_direct), route="direct"
            ),
            contender("implicit, direct, by hand, compiled", routes.by_hand_implicit_direct, route="direct"),
            contender("implicit, CG, by hand", routes.implicit_cg(routes.by_hand_maps), route="CG"),
            contender("implicit, CG over torch.func", routes.implicit_cg(routes.torch_func_maps), route="CG"),
        ),
        outputs=("sample", "grad_mean", "grad_log_variance", "grad_parameters"),
        tolerances=sample.TOLERANCES,
        flops=lambda: floors.sample_backward(latent_dim, inputs(torch.Generator().manual_seed(0))),
        devices=devices,
    )


CASES = tuple(backward_case(*shape) for shape in sample.SHAPES) + tuple(
    backward_case(*shape, devices=("cuda",)) for shape in sample.GPU_SHAPES
)
