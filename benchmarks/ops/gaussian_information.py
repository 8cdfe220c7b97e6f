"""gaussian_information with a gradient to all three quantities, as when a loss holds each."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

N, D = 65536, 64
FLOAT = 4


def _inputs(generator):
    mean = torch.randn(N, D, generator=generator)
    log_std = 0.3 * torch.randn(N, D, generator=generator) - 0.5
    grads = (torch.rand(N, generator=generator) / N for _ in range(3))
    return mean, log_std, *grads


def _users(mean, log_std):
    kl = 0.5 * (mean.square() + torch.exp(2 * log_std) - 1 - 2 * log_std).sum(1)
    return kl, torch.exp(-2 * log_std).sum(1), torch.exp(2 * log_std.mean(1))


def _with_backward(forward):
    def run(mean, log_std, *grads):
        leaves = [t.detach().requires_grad_() for t in (mean, log_std)]
        outputs = forward(*leaves)
        return *outputs, *torch.autograd.grad(outputs, leaves, grads)

    return run


CASES = (
    Case(
        name="gaussian_information",
        title=f"[{N}, {D}]",
        inputs=_inputs,
        reference=reference(_with_backward, _users),
        contenders=four_ways(_with_backward, ops.gaussian_information, _users),
        outputs=("kl", "trace", "entropy_power", "grad_mean", "grad_log_std"),
        bytes_moved=FLOAT * (6 * N * D + 7 * N),
        traffic="6 arrays of N·d: forward reads mean and log_std; backward reads them again and writes their "
        "gradients. 7 of N: three quantities, three gradients, the entropy power again.",
    ),
)
