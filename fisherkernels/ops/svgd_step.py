"""The direction of one step of Stein variational gradient descent, without an M x M matrix."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_matrix, check_same_shape, check_tensor
from fisherkernels.ops._library import define

TILE_ELEMENTS = 2**20  # kernel entries that the twin holds at a time


def svgd_step(particles: Tensor, score: Tensor, bandwidth: Tensor) -> Tensor:
    r"""φ(x_i) = 1/M Σ_j k(x_j, x_i) (s(x_j) + 2/h (x_i - x_j)), k(a, b) = exp(-‖a - b‖²/h), at every particle.

    Distances are those of coordinate differences, not of a matrix product. Particles are centred first, so that their
    distance from the origin costs no digits. Values of k below 2^-126 (float32) or 2^-1022 may count as that.

    Args:
        particles: x, shape [M, d].
        score: s = ∇ log p at the particles, shape [M, d].
        bandwidth: h > 0, 0-d; its value is not looked at.

    Returns:
        φ, shape [M, d]. Cost: M² (3 d + 17) operations; memory O(M d).

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.
        RuntimeError: where autograd would record the call.

    Source: Liu and Wang, "Stein variational gradient descent", NeurIPS 2016, eq. 8.
    """
    check_full_precision("svgd_step", "particles", particles)
    check_matrix("svgd_step", "particles", particles)
    check_tensor("svgd_step", "score", score, particles)
    check_same_shape("svgd_step", "score", score, "particles", particles)
    check_tensor("svgd_step", "bandwidth", bandwidth, particles)
    if bandwidth.dim() != 0:
        raise ValueError(f"svgd_step: bandwidth must be a 0-d tensor, got shape {list(bandwidth.shape)}")
    centred = particles - particles.mean(0) if particles.shape[0] else particles
    return call(torch.ops.fisherkernels.svgd_step.default, _autograd, centred, score, bandwidth)


def _direction(particles: Tensor, score: Tensor, bandwidth: Tensor) -> Tensor:
    count, dimension = particles.shape
    if particles.numel() == 0:
        return torch.empty_like(particles)
    sources = torch.cat([score, particles, torch.ones_like(score[:, :1])], dim=1)  # [M, 2d + 1]
    tiles = []
    for block in particles.split(max(1, TILE_ELEMENTS // count)):
        kernel = torch.cdist(block, particles, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = kernel.square_().div_(-bandwidth).exp_()  # [rows, M]
        sums = kernel @ sources
        attraction, weighted, mass = sums.split([dimension, dimension, 1], dim=1)
        tiles.append(attraction + (2 / bandwidth) * (block * mass - weighted))
    return torch.cat(tiles) / count


def _fake(particles: Tensor, score: Tensor, bandwidth: Tensor) -> Tensor:
    return particles.new_empty(particles.shape)


_autograd = not_differentiable("svgd_step", "particles carry no graph. Detach them")

define(
    "svgd_step",
    "(Tensor particles, Tensor score, Tensor bandwidth) -> Tensor",
    twin=_direction,
    fake=_fake,
    autograd=_autograd,
)
