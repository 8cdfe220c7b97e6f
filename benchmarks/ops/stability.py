"""stability_cotangent and half_squared_norm: the stability term without the encoder's VJP between them."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

N, D = 65536, 64
FLOAT = 4


def _inputs(generator):
    eps = torch.randn(N, D, generator=generator)
    log_std = 0.3 * torch.randn(N, D, generator=generator)
    encoder_vjp = torch.randn(N, D, generator=generator)
    grad_cotangent = torch.randn(N, 2 * D, generator=generator) / N
    grad_value = torch.rand(N, generator=generator) / N
    return eps, log_std, encoder_vjp, grad_cotangent, grad_value


def _users(eps, log_std, encoder_vjp):
    cotangent = torch.cat([eps * torch.exp(-log_std), eps.square() - 1], dim=1)
    return cotangent, 0.5 * encoder_vjp.square().sum(1)


def _ours(eps, log_std, encoder_vjp):
    return ops.stability_cotangent(eps, log_std), ops.half_squared_norm(encoder_vjp)


def _with_backward(forward):
    def run(eps, log_std, encoder_vjp, grad_cotangent, grad_value):
        leaves = [t.detach().requires_grad_() for t in (log_std, encoder_vjp)]
        outputs = forward(eps, *leaves)
        return *outputs, *torch.autograd.grad(outputs, leaves, (grad_cotangent, grad_value))

    return run


CASES = (
    Case(
        name="stability",
        title=f"[{N}, {D}]",
        inputs=_inputs,
        reference=reference(_with_backward, _users),
        contenders=four_ways(_with_backward, _ours, _users),
        outputs=("cotangent", "value", "grad_log_std", "grad_encoder_vjp"),
        bytes_moved=FLOAT * (11 * N * D + 2 * N),
        traffic="11 arrays of N·d: forward reads eps, log_std and the encoder's VJP, writes the cotangent (2d "
        "wide); backward reads the VJP, eps, log_std and the first half of the cotangent's gradient, writes "
        "two gradients.",
    ),
)
