"""Gaussian posteriors of a trained model in the shape that its uncertainty is drawn in: principal axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisherkernels.training import DiagonalAutoEncoder, FisherNet


@dataclass(frozen=True)
class Posterior:
    """Of N images: mean [N, d]; standard deviations std [N, d] along the unit vectors axes[n, k], largest first."""

    mean: Tensor
    std: Tensor
    axes: Tensor

    @property
    def covariance(self) -> Tensor:
        """[N, d, d]."""
        return self.axes.mT @ torch.diag_embed(self.std.square()) @ self.axes

    @property
    def angle(self) -> Tensor:
        """Of the first axis against the first latent coordinate, in degrees in (-90, 90], [N]; for d = 2."""
        degrees = torch.rad2deg(torch.atan2(self.axes[:, 0, 1], self.axes[:, 0, 0]))
        return 90 - (90 - degrees) % 180

    @property
    def area(self) -> Tensor:
        """Of the one-sigma ellipse in the plane of the two widest axes, [N]."""
        return math.pi * self.std[:, 0] * self.std[:, 1]

    def along(self, axis: int, steps: Tensor) -> Tensor:
        """The points ``steps`` standard deviations from the mean along an axis, [N, len(steps), d]."""
        reach = steps[None, :, None] * self.std[:, axis, None, None]
        return self.mean[:, None] + reach * self.axes[:, None, axis]

    def describe(self, index: int) -> dict[str, Any]:
        """One image's numbers as plain lists."""
        parts = {"mean": self.mean, "std": self.std, "axes": self.axes, "covariance": self.covariance}
        return {name: part[index].tolist() for name, part in parts.items()} | {"area": self.area[index].item()}


@torch.no_grad()
def posterior_of(model: FisherNet | DiagonalAutoEncoder, images: Tensor, batch_size: int = 256) -> Posterior:
    """FisherNet's from the eigenvectors of its metric; a diagonal one's axes are the latent coordinates."""
    split = images.split(batch_size)
    if isinstance(model, FisherNet):
        parts = [model.principal_axes(batch) for batch in split]
    else:
        parts = [_coordinate_axes(*model.encode(batch)) for batch in split]
    return Posterior(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def _coordinate_axes(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    std, order = log_std.exp().sort(dim=1, descending=True)
    return mean, std, torch.nn.functional.one_hot(order, mean.shape[1]).to(mean.dtype)
