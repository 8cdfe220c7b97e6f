"""activation_tangents: the samples' own tangents, as in a deep layer, and those that all share, as after the first."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

K, N, M = 50, 64, 768
FLOAT = 4


def _inputs(samples):
    def inputs(generator):
        tangents = torch.randn(K, samples, M, generator=generator)
        laplacian, slope, curvature = (torch.randn(N, M, generator=generator) for _ in range(3))
        grad_tangents = torch.randn(K, N, M, generator=generator) / N
        grad_laplacian = torch.randn(N, M, generator=generator) / N
        return tangents, laplacian, slope, curvature, grad_tangents, grad_laplacian

    return inputs


def _users(tangents, laplacian, slope, curvature):
    return slope * tangents, slope * laplacian + curvature * tangents.square().sum(0)


def _with_backward(forward):
    def run(tangents, laplacian, slope, curvature, *grads):
        leaves = [t.detach().requires_grad_() for t in (tangents, laplacian, slope, curvature)]
        outputs = forward(*leaves)
        return *outputs, *torch.autograd.grad(outputs, leaves, grads)

    return run


def _case(name, title, samples, traffic):
    return Case(
        name=name,
        title=title,
        inputs=_inputs(samples),
        reference=reference(_with_backward, _users),
        contenders=four_ways(_with_backward, ops.activation_tangents, _users),
        outputs=("tangents", "laplacian", "grad_tangents", "grad_laplacian", "grad_slope", "grad_curvature"),
        bytes_moved=FLOAT * (2 * K * N * M + 3 * K * samples * M + 11 * N * M),
        traffic=traffic,
    )


CASES = (
    _case(
        "activation_tangents",
        f"[{K}, {N}, {M}]",
        N,
        "5 arrays of K·N·M: forward reads the tangents and writes them; backward reads them and the gradient of those "
        "written, and writes theirs. 11 of N·M.",
    ),
    _case(
        "activation_tangents_shared",
        f"[{K}, 1, {M}], N = {N}",
        1,
        "2 arrays of K·N·M, which forward writes and of which backward reads the gradient; 3 of K·M, the tangents, "
        "read twice, and their gradient; 11 of N·M.",
    ),
)
