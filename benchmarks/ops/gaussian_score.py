"""gaussian_score: with the residual constant in the loss, and with a gradient through it."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

N, D = 4096, 784
FLOAT = 4


def _inputs(generator):
    x = torch.rand(N, D, generator=generator)
    mean = torch.rand(N, D, generator=generator)
    variance = torch.rand((), generator=generator) + 0.5
    grad_value = torch.rand(N, generator=generator) / N
    grad_residual = torch.randn(N, D, generator=generator) / N
    return x, mean, variance, grad_value, grad_residual


def _users(x, mean, variance):
    residual = (x - mean) / variance
    return 0.5 * residual.square().sum(1) - x.shape[1] / variance, residual


def _stopped(score):
    def forward(x, mean, variance):
        value, residual = score(x, mean, variance)
        return value, residual.detach()

    return forward


def _backward_of_value(forward):
    def run(x, mean, variance, grad_value, grad_residual):
        mean, variance = mean.detach().requires_grad_(), variance.detach().requires_grad_()
        value, residual = forward(x, mean, variance)
        return value, residual, *torch.autograd.grad(value, (mean, variance), grad_value)

    return run


def _backward_of_both(forward):
    def run(x, mean, variance, grad_value, grad_residual):
        mean, variance = mean.detach().requires_grad_(), variance.detach().requires_grad_()
        value, residual = forward(x, mean, variance)
        gradients = torch.autograd.grad((value, residual), (mean, variance), (grad_value, grad_residual))
        return value, residual, *gradients

    return run


def _case(name, title, backward, wrap, arrays, traffic):
    ours, users = wrap(ops.gaussian_score), wrap(_users)
    return Case(
        name=name,
        title=title,
        inputs=_inputs,
        reference=reference(backward, users),
        contenders=four_ways(backward, ours, users),
        outputs=("value", "residual", "grad_mean", "grad_variance"),
        bytes_moved=FLOAT * (arrays * N * D + 2 * N),
        traffic=traffic,
    )


CASES = (
    _case(
        "gaussian_score",
        f"[{N}, {D}], residual constant",
        _backward_of_value,
        _stopped,
        5,
        "5 arrays of N·D: forward reads x and mean, writes the residual; backward reads it, writes mean's gradient.",
    ),
    _case(
        "gaussian_score_full",
        f"[{N}, {D}], gradient through the residual",
        _backward_of_both,
        lambda score: score,
        6,
        "6 arrays of N·D: as gaussian_score, and backward also reads the residual's gradient.",
    ),
)
