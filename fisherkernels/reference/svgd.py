"""Stein variational gradient descent with the whole M x M kernel matrix in memory."""

import math

import torch


def svgd(score_fn, particles, steps, step_size, bandwidth=None, step_rule="plain"):
    """`fisherkernels.svgd`, dense: kernel and its gradient for all pairs at once; same arguments."""
    count = particles.shape[0]
    mean_square = None
    for _ in range(steps):
        difference = particles[:, None] - particles[None]  # [M, M, d], x_i - x_j
        squared = (difference**2).sum(-1)
        width = bandwidth
        if width is None:
            distances = squared.sqrt().flatten().sort().values
            middle = (distances[(count**2 - 1) // 2] + distances[count**2 // 2]) / 2
            width = float(middle**2) / math.log(count + 1)
        width = width if width > 0 else 1.0
        kernel = torch.exp(-squared / width)
        repulsion = (2 / width) * (kernel[:, :, None] * difference).sum(1)
        direction = (kernel @ score_fn(particles).detach() + repulsion) / count
        if step_rule == "rms":
            square = direction**2
            mean_square = square if mean_square is None else 0.9 * mean_square + 0.1 * square
            direction = direction / (1e-6 + mean_square.sqrt())
        particles = particles + step_size * direction
    return particles
