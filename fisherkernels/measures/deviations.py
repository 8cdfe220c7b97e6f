"""Histogram of the posterior's standard deviations."""

import csv
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric


class DeviationHistogram(Metric):
    """Shares of the posterior's standard deviations in bins of equal width, for each latent coordinate.

    Near 1 a coordinate carries nothing about x, its posterior being the prior; near 0 it carries much. The last bin
    takes what is above `upper` too.

    Args:
        latent_dim: d.
        bins: their number.
        upper: end of the last bin.

    Source: Wenliang, "On the failure of variational score matching for VAE models", figures 9 and 10.
    """

    full_state_update = False
    is_differentiable = False

    counts: Tensor

    def __init__(self, latent_dim: int, bins: int = 30, upper: float = 1.5):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("bins", bins)):
            if value < 1:
                raise ValueError(f"{name}: expected an int >= 1, received {value}")
        if not upper > 0:
            raise ValueError(f"upper: expected a number > 0, received {upper}")
        self.bins = bins
        self.upper = upper
        self.add_state("counts", torch.zeros(latent_dim, bins, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def edges(self) -> Tensor:
        """[bins + 1]."""
        return torch.linspace(0, self.upper, self.bins + 1)

    def update(self, std: Tensor) -> None:
        """std [N, d]; a NaN counts in the last bin."""
        place = (std.nan_to_num(torch.inf) / self.upper * self.bins).clamp(max=self.bins - 1).long()  # [N, d]
        self.counts.scatter_add_(1, place.T, torch.ones_like(place.T))

    def compute(self) -> Tensor:
        """[d, bins], each row with a sum of 1."""
        return self.counts / self.counts.sum(1, keepdim=True)


def write_table(path: Path, shares: Tensor, edges: Tensor) -> None:
    """A CSV file with a row for each bin: its ends, the share of all coordinates, that of each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["low", "high", "all", *(f"z{j}" for j in range(len(shares)))])
        for low, high, column in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.T, strict=True):
            writer.writerow([f"{value:.6g}" for value in (low, high, column.mean().item(), *column.tolist())])


def draw_figure(path: Path, shares: Tensor, edges: Tensor) -> None:
    """Each coordinate's histogram as a pale line, their mean in black."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    centres = (edges[:-1] + edges[1:]) / 2
    axes.plot(centres, shares.T, alpha=0.3, linewidth=0.8)
    axes.plot(centres, shares.mean(0), color="black")
    axes.set(xlabel="standard deviation of the posterior", ylabel="share of the test set", ylim=(0, None))
    figure.savefig(path, dpi=150)
