"""Laplacians of three networks, and their parameters' gradients."""

from functools import partial

import torch

from ..case import Case, Contender
from . import floors, folx, nets, routes

SHAPES = (  # activation, widths, N
    ("tanh", (50, 768, 768, 512, 512, 1), 64),
    ("SiLU", (784, 256, 256, 1), 16),
    ("tanh", (10, 100, 100, 100, 100, 1), 1000),
)
GPU_SHAPES = (("tanh", (50, 768, 768, 512, 512, 1), 2048),)
EXACT_BATCH = 4
# A contender's gradients add up terms of either sign, larger than their sum.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def _net(activation, widths, device, dtype):
    return nets.mlp(activation, widths).to(device=device, dtype=dtype)


def build(prepare, backward, activation, widths):
    """build(device, dtype) of one of the `routes`."""

    def prepared(device, dtype):
        net = _net(activation, widths, device, dtype)
        laplacian = prepare(net, torch.zeros(widths[0], device=device, dtype=dtype))
        parameters = list(net.parameters())

        @torch.no_grad()
        def forward(x):
            return (laplacian(x),)

        def with_gradients(x):
            values = laplacian(x)
            return values.detach(), *torch.autograd.grad(values.sum(), parameters, materialize_grads=True)

        return with_gradients if backward else forward

    return prepared


def build_folx(backward, activation, widths):
    run = folx.backward if backward else folx.forward
    return lambda device, dtype: run(_net(activation, widths, device, dtype))


def laplacian_case(backward, activation, widths, batch, devices=("cpu", "cuda")):
    def contender(label, prepare, **keywords):
        return Contender(label, build(prepare, backward, activation, widths), **keywords)

    def inputs(generator, batch=batch):
        return (torch.randn(batch, widths[0], generator=generator),)

    names = [name for name, _ in nets.mlp(activation, widths).named_parameters()]
    floor = floors.backward if backward else floors.forward
    reduced = ()
    if widths[0] > widths[1]:
        reduced = (contender("by hand, reduced tangents, compiled", routes.compiled(routes.reduced_by_hand)),)
    return Case(
        name=f"laplacian_{'backward_' * backward}{batch}_{widths[0]}",
        title=f"{activation} {'-'.join(map(str, widths))}, N = {batch}{', forward and backward' * backward}",
        inputs=inputs,
        exact_inputs=partial(inputs, batch=EXACT_BATCH),
        reference=build(routes.hessian_trace, backward, activation, widths),
        contenders=(
            contender("ours", routes.ours),
            contender("ours, compiled", routes.compiled(routes.ours)),
            contender("vmap(hessian), trace", routes.hessian_trace),
            contender("loop of Hessian-vector products", routes.hessian_vector_products),
            contender("forward Laplacian by hand", routes.forward_by_hand),
            contender("forward Laplacian by hand, compiled", routes.compiled(routes.forward_by_hand)),
            *reduced,
            contender("torch-jet, simplified", routes.torch_jet, **routes.TORCH_JET),
            contender("torch-jet, simplified, compiled", routes.compiled(routes.torch_jet), **routes.TORCH_JET),
            Contender("folx", build_folx(backward, activation, widths), **folx.FOLX),
        ),
        outputs=("laplacian", *(f"gradient of {name}" for name in names)) if backward else ("laplacian",),
        tolerances=TOLERANCES,
        flops=lambda: {f"min(n, h) + 1 tangents{', three times' * backward}": floor(widths, batch)},
        devices=devices,
    )


CASES = tuple(laplacian_case(backward, *shape) for shape in SHAPES for backward in (False, True)) + tuple(
    laplacian_case(backward, *shape, devices=("cuda",)) for shape in GPU_SHAPES for backward in (False, True)
)
