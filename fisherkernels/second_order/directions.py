"""Tangents of the input along which second derivatives are summed."""

import math

import torch
from torch import Tensor


def tangents_of_input(x: Tensor, weights, directions, estimator: str, num_samples: int, noise) -> Tensor | None:
    """Tangents of x [K, 1 or N, ...] whose second derivatives add up to what was asked for; None for all unit vectors.

    The arguments are those of :func:`fk.laplacian`.
    """
    sample = x.shape[1:]
    if directions is not None:
        directions = _check_constant("directions", directions, x)
        if directions.shape[1:] not in (sample, x.shape):
            raise ValueError(f"directions: expected a stack of shapes {list(sample)} or {list(x.shape)}, "
                             f"got {list(directions.shape)}")  # fmt: skip
        return directions.unsqueeze(1) if directions.shape[1:] == sample else directions
    root = None
    if weights is not None:
        weights = _check_constant("weights", weights, x)
        if weights.shape not in (sample, x.shape):
            raise ValueError(f"weights: expected shape {list(sample)} or {list(x.shape)}, got {list(weights.shape)}")
        if not torch.compiler.is_compiling() and bool((weights < 0).any()):
            raise ValueError(f"weights: expected numbers >= 0, got {weights.min().item()}")
        root = weights.sqrt()
        root = root.unsqueeze(0) if weights.shape == sample else root  # [1 or N, ...]
    if estimator == "hutchinson":
        signs = _signs(x, num_samples, noise) / math.sqrt(num_samples)
        return signs if root is None else signs * root
    if root is None:
        return None
    n = math.prod(sample)
    return torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *sample) * root


def random_signs(x: Tensor, num_samples: int) -> Tensor:
    """1 and -1 with even odds, [num_samples, *x.shape]."""
    return torch.randint(0, 2, (num_samples, *x.shape), device=x.device).to(x.dtype) * 2 - 1


def _signs(x: Tensor, num_samples: int, noise) -> Tensor:
    if noise is None:
        return random_signs(x, num_samples)
    noise = _check_constant("noise", noise, x)
    if noise.shape != (num_samples, *x.shape):
        raise ValueError(f"noise: expected shape {[num_samples, *x.shape]}, got {list(noise.shape)}")
    return noise


def _check_constant(name: str, given, x: Tensor) -> Tensor:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given).__name__}")
    if given.dtype != x.dtype or given.device != x.device:
        raise TypeError(f"{name}: expected {x.dtype} on {x.device}, like x, got {given.dtype} on {given.device}")
    return given.detach()
