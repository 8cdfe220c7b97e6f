"""The forward Laplacian of Linear, activation, ..., Linear with one output, written out for this kind of net.

Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian", 2023.
"""

import torch
from torch.nn import functional as F


def tanh(x):
    """Value, first and second derivative."""
    value = torch.tanh(x)
    slope = 1 - value.square()
    return value, slope, -2 * value * slope


def silu(x):
    """Value, first and second derivative."""
    s = torch.sigmoid(x)
    of_s = s * (1 - s)
    return x * s, s + x * of_s, of_s * (2 + x * (1 - 2 * s))


DERIVATIVES = {"tanh": tanh, "SiLU": silu}


def laplacian(activation, weights, x, reduced=False):
    """[N, 1] at x [N, n]. The first layer's n tangents are its weights; `reduced`: as many tangents as it has units,
    whose outer products have the same sum.
    """
    derivatives = DERIVATIVES[activation]
    W = weights[0]  # [h, n]
    tangents = (torch.linalg.cholesky(W @ W.T) if reduced else W).T[:, None]  # [n or h, 1, h]
    second, value = None, F.linear(x, W, weights[1])  # [N, h]
    for W, b in zip(weights[2::2], weights[3::2], strict=True):
        value, slope, curvature = derivatives(value)
        bent = curvature * tangents.square().sum(0)
        second = (bent if second is None else bent + slope * second) @ W.T
        if len(W) > 1:  # the output's tangents are not asked for
            tangents = (slope * tangents) @ W.T  # [n or h, N, h]
            value = F.linear(value, W, b)
    return second
