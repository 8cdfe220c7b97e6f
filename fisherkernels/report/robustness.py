"""Reconstruction error against the clean image when the input is corrupted by noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Gaussian decoders may output exactly 0 or 1, where the cross-entropy is infinite.
PROBABILITY_FLOOR = 1e-3


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels of (prediction - target)², one value per image.

    prediction, target: [N, ...], the same shape. Returns [N], in squared units of intensity.
    """
    _check_same_shape(prediction, target)
    return (prediction - target).square().flatten(1).mean(dim=1)


def binary_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels of -t log p - (1 - t) log(1 - p), one value per image, in nats per pixel.

    prediction, target: [N, ...], the same shape, target in [0, 1]. p is the prediction clamped to
    [``PROBABILITY_FLOOR``, 1 - ``PROBABILITY_FLOOR``]. Returns [N].
    """
    _check_same_shape(prediction, target)
    if target.numel() and (target.min() < 0 or target.max() > 1):
        low, high = target.min().item(), target.max().item()
        raise ValueError(f"target: expected values in [0, 1] for a cross-entropy, got [{low:g}, {high:g}]")
    p = prediction.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(target * p.log() + (1 - target) * torch.log1p(-p)).flatten(1).mean(dim=1)


METRICS = {"mse": mean_squared_error, "bce": binary_cross_entropy}


@dataclass(frozen=True)
class RobustnessCurve:
    """Errors of one model: ``errors[metric]`` is [V, K, N] for V noise variances, K noise draws, N images."""

    variances: tuple[float, ...]
    errors: dict[str, Tensor]


def standard_noise(images: Tensor, num_draws: int, seed: int) -> Tensor:
    """[K, *images.shape] standard normal, a function of (shape, num_draws, seed): every model meets the same noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_draws, *images.shape), generator=generator, dtype=images.dtype).to(images.device)


@torch.no_grad()
def robustness_curve(
    model,
    images: Tensor,
    variances: tuple[float, ...],
    *,
    num_draws: int = 10,
    seed: int = 0,
    batch_size: int = 1024,
) -> RobustnessCurve:
    """Errors of ``model.reconstruct(x + σ n)`` against the clean x, as in Figure 1 of Elkhalil et al. (2021).

    n is standard normal, the same draws at every σ², and the corrupted image is not clipped. images: [N, ...] in
    [0, 1]; variances: σ², squared units of intensity, each >= 0.
    """
    if not variances or min(variances) < 0:
        raise ValueError(f"variances: expected at least one value, each >= 0, got {variances}")
    if num_draws < 1:
        raise ValueError(f"num_draws: expected at least 1, got {num_draws}")
    noise = standard_noise(images, num_draws, seed)
    errors = {name: images.new_empty(len(variances), num_draws, len(images)) for name in METRICS}
    for v, variance in enumerate(variances):
        for k in range(num_draws):
            corrupted = images + variance**0.5 * noise[k]
            reconstruction = torch.cat([model.reconstruct(batch) for batch in corrupted.split(batch_size)])
            for name, metric in METRICS.items():
                errors[name][v, k] = metric(reconstruction, images)
    return RobustnessCurve(tuple(variances), errors)


def _check_same_shape(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction: expected target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}")
