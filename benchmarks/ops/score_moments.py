"""score_moments with a gradient to both moments, as in the learning objectives M2 and M3."""

import torch

from fisherkernels import ops

from ..case import Case
from .contenders import four_ways, reference

S, N, D = 5, 512, 3072
FLOAT = 4


def _inputs(generator):
    scores = torch.randn(S, N, D, generator=generator) + torch.randn(N, D, generator=generator)
    grads = (torch.rand(N, generator=generator) / N for _ in range(2))
    return scores, *grads


def _users(scores):
    return scores.square().sum(2).mean(0), scores.mean(0).square().sum(1)


def _with_backward(forward):
    def run(scores, *grads):
        leaf = scores.detach().requires_grad_()
        outputs = forward(leaf)
        return *outputs, *torch.autograd.grad(outputs, leaf, grads)

    return run


CASES = (
    Case(
        name="score_moments",
        title=f"[{S}, {N}, {D}]",
        inputs=_inputs,
        reference=reference(_with_backward, _users),
        contenders=four_ways(_with_backward, ops.score_moments, _users),
        outputs=("mean_square", "square_mean", "grad_scores"),
        bytes_moved=FLOAT * (3 * S * N * D + 4 * N),
        traffic="3 arrays of S·N·D: forward reads the scores; backward reads them again and writes their gradient.",
    ),
)
