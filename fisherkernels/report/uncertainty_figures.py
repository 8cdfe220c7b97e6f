"""The drawings of ``fisherkernels uncertainty``: one image's posterior, and the latent plane of many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from torch import Tensor

from fisherkernels.report.figures import CLASS_COLORS, PRINT, style_axes
from fisherkernels.report.uncertainty_posterior import Posterior

STEPS = (-2, -1, 1, 2)  # standard deviations from the mean
AXIS_COLORS = ("#2b7a4b", "#8a4fa3")
FONT = {"font.size": 9.5, "axes.titlecolor": PRINT.ink}
PANEL = 4.0  # inches


@dataclass(frozen=True)
class Panel:
    """One model in a drawing; decoded [2, len(STEPS), C, H, W]: along the first two axes."""

    title: str
    color: str
    posterior: Posterior
    reconstruction: Tensor | None = None
    decoded: Tensor | None = None


def draw_posterior(panels: list[Panel], image: Tensor, path: Path) -> None:
    """One image: the one- and two-sigma ellipses of its posterior, and what the points on their axes decode to.

    The posteriors hold that image alone. For d > 2 the plane is that of the two widest axes, with the mean at 0.
    """
    with rc_context(FONT):
        size = (PANEL * len(panels), 1.46 * PANEL)
        figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
        columns = figure.subfigures(1, len(panels), wspace=0.04, squeeze=False)[0]
        for column, panel in zip(columns, panels, strict=True):
            top, bottom = column.subfigures(2, 1, height_ratios=(2.05, 1))
            _draw_ellipses(top.subplots(), panel)
            _draw_images(bottom, panel, image)
        figure.savefig(path)


def _draw_ellipses(axes: Axes, panel: Panel) -> None:
    posterior = panel.posterior
    planar = posterior.mean.shape[1] == 2
    mean = posterior.mean[0] if planar else torch.zeros(2)
    directions = posterior.axes[0] if planar else torch.eye(2)
    std = posterior.std[0, :2]
    angle = posterior.angle.item() if planar else 0.0
    style_axes(axes, PRINT)
    for sigma, alpha in ((2, 0.13), (1, 0.26)):
        width, height = (2 * sigma * std).tolist()
        patch = Ellipse(mean.tolist(), width, height, angle=angle, color=panel.color, alpha=alpha, linewidth=0)
        axes.add_patch(patch)
        outline = {"fill": False, "edgecolor": panel.color, "linewidth": 1.3}
        axes.add_patch(Ellipse(mean.tolist(), width, height, angle=angle, **outline))
        edge = mean + sigma * std[1] * _upward(directions[1])
        axes.annotate(
            f"{sigma}σ", edge.tolist(), (5, 4), textcoords="offset points", color=panel.color, fontsize="small"
        )
    for index, color in enumerate(AXIS_COLORS):
        points = mean + torch.tensor(STEPS)[:, None] * std[index] * directions[index]  # [4, 2]
        axes.plot(*points[[0, -1]].T.numpy(), color=color, linewidth=0.9)
        axes.plot(*points.T.numpy(), "o", color=color, markersize=4.5, label=f"axis {index + 1}, σ = {std[index]:.3g}")
    axes.plot(*mean.tolist(), "o", color=PRINT.ink, markersize=5)
    half = 2.35 * _extent(std, directions).max().item()
    axes.set(xlim=(mean[0] - half, mean[0] + half), ylim=(mean[1] - half, mean[1] + half), aspect="equal")
    names = [f"latent coordinate {k}" if planar else f"along axis {k}" for k in (1, 2)]
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.locator_params(nbins=5)
    axes.set_title(panel.title, loc="left", color=panel.color, fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, frameon=False, labelcolor=PRINT.ink, fontsize="small", ncols=2, loc="upper center",
        bbox_to_anchor=(0.5, -0.17), handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip


def _upward(direction: Tensor) -> Tensor:
    return direction if direction[1] >= 0 else -direction


def _extent(std: Tensor, directions: Tensor) -> Tensor:
    """Half the width and the height of the one-sigma ellipse's bounding box, [2]."""
    return (std[:, None] * directions).square().sum(0).sqrt()


def _draw_images(figure: SubFigure, panel: Panel, image: Tensor) -> None:
    """Two rows: the image and its reconstruction on the left, the points along each axis beside them."""
    ratios = (1, 0.12, *(1 for _ in STEPS))
    grid = figure.subplots(2, len(ratios), width_ratios=ratios, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for axes in grid[:, 1]:
        axes.set_axis_off()
    for axes, name, picture in zip(grid[:, 0], ("image", "at the mean"), (image, panel.reconstruction), strict=True):
        show_image(axes, picture)
        axes.set_title(name, fontsize="small", pad=3)
    for row, color in enumerate(AXIS_COLORS):
        for axes, step, picture in zip(grid[row, 2:], STEPS, panel.decoded[row], strict=True):
            show_image(axes, picture)
            axes.set_title(f"{'−' if step < 0 else '+'}{abs(step)}σ", fontsize="small", pad=3, color=color)


def show_image(axes: Axes, image: Tensor) -> None:
    """[C, H, W] with C = 1 or 3, clipped to [0, 1]."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_map(panels: list[Panel], labels: Tensor, names: dict[int, str], path: Path) -> None:
    """Means and two-sigma ellipses of many images in two latent coordinates, coloured by class."""
    classes = labels.unique().tolist()
    colors = {label: CLASS_COLORS[index % len(CLASS_COLORS)] for index, label in enumerate(classes)}
    each = np.array([colors[label] for label in labels.tolist()])
    with rc_context(FONT):
        size = (1.15 * PANEL * len(panels), 1.3 * PANEL)
        figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            style_axes(axes, PRINT)
            mean, diameters = panel.posterior.mean.numpy(), (4 * panel.posterior.std).numpy()
            ellipses = EllipseCollection(
                diameters[:, 0], diameters[:, 1], panel.posterior.angle.numpy(), units="xy", offsets=mean,
                offset_transform=axes.transData, facecolors=_fade(each, 0.12), edgecolors=_fade(each, 0.7),
                linewidths=0.6,
            )  # fmt: skip
            axes.add_collection(ellipses)
            axes.scatter(*mean.T, s=2, c=each, linewidths=0, zorder=3)
            extent = 2 * (panel.posterior.std[:, :, None] * panel.posterior.axes).square().sum(1).sqrt().numpy()
            _set_limits(axes, (mean - extent).min(0), (mean + extent).max(0))
            axes.set(xlabel="latent coordinate 1", ylabel="latent coordinate 2")
            axes.set_title(panel.title, loc="left", color=panel.color, fontweight="bold")
        handles = [
            Line2D(
                [], [], color=colors[label], marker="o", markersize=5, linewidth=0, label=names.get(label, str(label))
            )
            for label in classes
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False,
            labelcolor=PRINT.ink, handletextpad=0.1,
        )  # fmt: skip
        figure.savefig(path)


def _fade(colors: np.ndarray, alpha: float) -> list[tuple[str, float]]:
    return [(color, alpha) for color in colors]


def _set_limits(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """A square around the box, so that angles are true and the panels have one size."""
    middle, half = (low + high) / 2, 0.53 * (high - low).max()
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
