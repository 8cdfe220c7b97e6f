"""posterior_residual with the paper's prior: polynomial exponents up to K = 5, the coefficients learned."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

N, D, K = 4096, 784, 5
FLOAT = 4


def _inputs(generator):
    eps = torch.randn(N, D, generator=generator)
    log_std = 0.3 * torch.randn(N, D, generator=generator)
    z = torch.randn(N, D, generator=generator)
    coefficients = 0.1 * torch.randn(D, K, generator=generator)
    decoder_vjp = torch.randn(N, D, generator=generator)
    grad_value = torch.rand(N, generator=generator) / N
    return eps, log_std, z, coefficients, decoder_vjp, grad_value


def _users(eps, log_std, z, coefficients, decoder_vjp):
    score = torch.zeros_like(z)
    for k in range(coefficients.shape[1], 0, -1):
        score = score * z + k * coefficients[:, k - 1]
    residual = -eps * torch.exp(-log_std) - score - decoder_vjp
    return 0.5 * residual.square().sum(1)


def _with_backward(forward):
    def run(eps, log_std, z, coefficients, decoder_vjp, grad_value):
        leaves = [t.detach().requires_grad_() for t in (log_std, z, coefficients, decoder_vjp)]
        value = forward(eps, *leaves)
        return value, *torch.autograd.grad(value, leaves, grad_value)

    return run


CASES = (
    Case(
        name="posterior_residual",
        title=f"[{N}, {D}], prior of order {K}",
        inputs=_inputs,
        reference=reference(_with_backward, _users),
        contenders=four_ways(_with_backward, ops.posterior_residual, _users),
        outputs=("value", "grad_log_std", "grad_z", "grad_coefficients", "grad_decoder_vjp"),
        bytes_moved=FLOAT * (11 * N * D + 2 * N + 3 * D * K),
        traffic="11 arrays of N·d: forward reads eps, log_std, z and decoder_vjp; backward reads the four "
        "again and writes the gradients of the last three.",
    ),
)
