"""One picture of a comparison: for each density a grid of decoded samples over a map of its latent vectors."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from fisherkernels.report.figures import PRINT
from fisherkernels.sampling.comparison import BASELINE, PRIOR, PRIOR_SVGD, Comparison

GRID = 6  # images per row and column
MAP_POINTS = 1000
TITLES = {BASELINE: "N(0, I)", PRIOR: "learned prior", PRIOR_SVGD: "learned prior, SVGD"}


def save_picture(comparison: Comparison, held_out_images: Tensor, path: str | Path) -> Path:
    """Writes a PNG: the held-out images and their latent means first, then N(0, I), then the fitted densities.

    Maps show the first two principal coordinates of the held-out means (grey) and of as many points of the density; a
    1-D latent space is drawn against the order of the points.
    """
    means = comparison.held_out_means.double()
    centre = means.mean(dim=0)
    axes = torch.linalg.svd(means - centre, full_matrices=False).Vh[:2].T  # [d, 2 or 1]
    grey = (means - centre) @ axes
    panels = [("held-out images", held_out_images, None)]
    for name, candidate in comparison.candidates.items():
        title = TITLES.get(name, name)
        title += f": {candidate.held_out.mean():.2f} nats" + (" (best)" if name == comparison.best else "")
        points = candidate.density.sample(min(len(grey), MAP_POINTS), torch.Generator().manual_seed(0)).double()
        panels.append((title, candidate.images, (points - centre) @ axes))
    with rc_context({"font.size": 10, "axes.titlecolor": PRINT.ink}):
        figure = Figure(figsize=(2.5 * len(panels), 5.2), dpi=144, facecolor="white", layout="constrained")
        grid = figure.subplots(2, len(panels))
        for (top, bottom), (title, images, points) in zip(grid.T, panels, strict=True):
            _draw_images(top, images)
            top.set_title(title, fontsize="medium")
            _draw_map(bottom, grey, points)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path


def _draw_images(axes: Axes, images: Tensor) -> None:
    shown = images[: GRID * GRID].detach().cpu().nan_to_num().clamp(0, 1)  # [n, C, H, W]
    columns = min(GRID, math.ceil(math.sqrt(len(shown))))
    tiles = make_grid(shown, nrow=columns, padding=1, pad_value=0.5).movedim(0, 2)  # [height, width, 3]
    axes.imshow(tiles.numpy(), interpolation="nearest")
    axes.set_axis_off()


def _draw_map(axes: Axes, grey: Tensor, points: Tensor | None) -> None:
    for cloud, color in ((grey, "#b3b8bd"), (points, PRINT.fisher_ae)):
        if cloud is not None:
            cloud = cloud[:MAP_POINTS]
            if cloud.shape[1] == 1:
                cloud = torch.stack([cloud[:, 0], torch.linspace(0, 1, len(cloud))], dim=1)
            axes.scatter(*cloud.T.numpy(), s=4, color=color, linewidths=0)
    low, high = grey.amin(dim=0), grey.amax(dim=0)
    margin = 0.15 * (high - low)
    axes.set_xlim((low - margin)[0].item(), (high + margin)[0].item())
    if grey.shape[1] == 2:
        axes.set_ylim((low - margin)[1].item(), (high + margin)[1].item())
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(PRINT.grid)
