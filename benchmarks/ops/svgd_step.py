"""One step of Stein variational gradient descent: the direction alone, and with the median of the distances."""

import torch

from fisherkernels import ops
from fisherkernels.svgd import MEDIAN_PARTICLES, median_bandwidth

from ..case import Case, Contender

M, D = 10_000, 8
BANDWIDTH = 1.6
PAIR_OPERATIONS = 3 * D + 17  # a difference and an FMA per coordinate, an exponential, an FMA per coordinate


def _inputs(generator):
    return torch.randn(M, D, generator=generator), torch.randn(M, D, generator=generator)


def _few(generator):
    return tuple(t[:500].contiguous() for t in _inputs(generator))


def ours(particles, score):
    return (ops.svgd_step(particles, score, particles.new_tensor(BANDWIDTH)),)


def ours_with_median(particles, score):
    return (ops.svgd_step(particles, score, median_bandwidth(particles)),)


def direction(squared_distances, particles, score, bandwidth):
    """As it is written: the kernel matrix, its product with the scores, and its gradient."""
    kernel = (-squared_distances / bandwidth).exp()  # [M, M]
    repulsion = particles * kernel.sum(1, keepdim=True) - kernel @ particles
    return (kernel @ score + 2 / bandwidth * repulsion) / len(particles)


def _of_differences(particles):
    return torch.cdist(particles, particles, compute_mode="donot_use_mm_for_euclid_dist").square()


def _of_product(particles):
    square = particles.square().sum(1)
    return square[:, None] + square[None] - 2 * particles @ particles.t()



def dense(distances, bandwidth=lambda particles: BANDWIDTH):
    return lambda particles, score: (direction(distances(particles), particles, score, bandwidth(particles)),)


def _keops(device, dtype):
    from pykeops.torch import LazyTensor

    def run(particles, score):
        a, b, s = LazyTensor(particles[:, None]), LazyTensor(particles[None]), LazyTensor(score[None])
        kernel = (-((a - b) ** 2).sum(2) / BANDWIDTH).exp()
        return ((kernel * (s + 2 / BANDWIDTH * (a - b))).sum(1) / len(particles),)

    return run


def _plain(function):
    return lambda device, dtype: function


CASES = (
    Case(
        name="svgd_step",
        title=f"M = {M:,}, d = {D}, bandwidth given",
        inputs=_inputs,
        exact_inputs=_few,
        reference=_plain(dense(_of_differences)),
        contenders=(
            Contender("ours", _plain(ours)),
            Contender("dense, distances of differences", _plain(dense(_of_differences))),
            Contender("pykeops", _keops, requires=("pykeops",), install="pykeops"),
        ),
        outputs=("direction",),
        tolerances={torch.float64: 1e-11, torch.float32: 1e-4},
        flops=lambda: {"operations on pairs": float(PAIR_OPERATIONS) * M * M},
    ),
    Case(
        name="svgd_step_median",
        title=f"M = {M:,}, d = {D}, with the median of {MEDIAN_PARTICLES:,} particles' distances",
        inputs=_inputs,
        exact_inputs=_few,
        reference=_plain(dense(_of_differences, median_bandwidth)),
        contenders=(
            Contender("ours", _plain(ours_with_median)),
            Contender("dense, distances of a matrix product", _plain(dense(_of_product, median_bandwidth))),
        ),
        outputs=("direction",),
        tolerances={torch.float64: 1e-11, torch.float32: 1e-3},
        flops=lambda: {"operations on pairs": float(PAIR_OPERATIONS) * M * M},
    ),
)
