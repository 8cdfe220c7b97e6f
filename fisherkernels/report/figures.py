"""The report's drawings: matplotlib panels as theme-following inline SVG, image strips as PNG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

METRIC_LABELS = {
    "mse": "MSE per pixel (intensity²)",
    "bce": "BCE per pixel (nats)",
    "nmi": "NMI of k-means clusters and classes",
}


@dataclass(frozen=True)
class Palette:
    """Colours of one medium. Class colours are mid-tones that read on white and on near-black."""

    ink: str
    muted: str
    grid: str
    fisher_ae: str
    vae: str


PRINT = Palette(ink="#1d2125", muted="#5c636b", grid="#e3e5e8", fisher_ae="#1f66ad", vae="#b4540a")
# Stand-ins that `svg` replaces by CSS variables of the page, so that figures follow its light or dark theme.
PAGE = Palette(ink="#010101", muted="#010102", grid="#010103", fisher_ae="#010104", vae="#010105")
CSS_VARIABLES = {
    PAGE.ink: "var(--ink)",
    PAGE.muted: "var(--muted)",
    PAGE.grid: "var(--rule)",
    PAGE.fisher_ae: "var(--fisher-ae)",
    PAGE.vae: "var(--vae)",
}
CLASS_COLORS = (
    "#4c8fd6", "#e08a2e", "#3fa66a", "#d6575a", "#9a78c9", "#a87a5e", "#d673b4", "#8a9096", "#a8a63a", "#2fb0bf",
)  # fmt: skip


def svg(draw: Callable[[Axes, Palette], None], alt: str, width: float = 4.4, height: float = 3.1) -> str:
    """One panel as inline SVG. draw(axes, palette) draws it; alt is read by screen readers; sizes in inches."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": alt, "font.size": 10.5, "axes.titlecolor": PAGE.ink}
    with rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        style_axes(axes, PAGE)
        draw(axes, PAGE)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in CSS_VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(
        r"^<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>",
        rf'<svg viewBox="\1" role="img" aria-label="{escape(alt)}">',
        text,
    )
    return text.strip()


def style_axes(axes: Axes, palette: Palette) -> None:
    axes.set_facecolor("none")
    axes.grid(True, color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.grid)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)


def legend(axes: Axes, palette: Palette, **options) -> None:
    axes.legend(frameon=False, labelcolor=palette.ink, fontsize="small", **options)


def loss_panel(
    runs: list[dict[str, list[tuple[int, float]]]],
    train: str,
    validation: str,
    title: str,
    ylabel: str,
    color: str,
) -> Callable[[Axes, Palette], None]:
    """One term against the step: a thin line per run, the mean over runs thick, the validation's mean dashed."""

    def draw(axes: Axes, palette: Palette) -> None:
        curves = [run[train] for run in runs if train in run]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.7, alpha=0.3)
        axes.plot(*_mean_curve(curves), color=color, linewidth=1.8, label="training")
        held_out = [run[validation] for run in runs if validation in run]
        values = np.array([value for curve in curves for _, value in curve[len(curve) // 20 :]])
        if held_out:
            axes.plot(
                *_mean_curve(held_out),
                color=palette.ink,
                linewidth=1.2,
                linestyle=(0, (4, 2)),
                label="validation",
            )
            values = np.append(values, [value for curve in held_out for _, value in curve[len(curve) // 20 :]])
        finite = values[np.isfinite(values)]
        if finite.size:
            # The first steps would flatten the rest: the axis holds everything after the first twentieth.
            margin = 0.06 * (finite.max() - finite.min() or 1.0)
            axes.set_ylim(finite.min() - margin, finite.max() + margin)
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set_xlabel("training step")
        axes.set_ylabel(ylabel)
        legend(axes, palette, loc="best")

    return draw


def _mean_curve(curves: list[list[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(curves))
    return steps, [float(np.mean(by_step[step])) for step in steps]


def noise_panel(
    variances: tuple[float, ...],
    fisher_ae: Tensor,
    vae: Tensor,
    ylabel: str,
    baseline: tuple[float, str] | None = None,
) -> Callable[[Axes, Palette], None]:
    """A quantity against the noise variance. fisher_ae, vae: [repetitions, V]; line: mean, band: ± 1 std."""

    def draw(axes: Axes, palette: Palette) -> None:
        style = (
            ("Fisher AE", fisher_ae, palette.fisher_ae, "o", "-"),
            ("VAE", vae, palette.vae, "s", (0, (5, 2))),
        )
        for name, table, color, marker, line in style:
            mean = table.mean(dim=0).numpy()
            std = table.std(dim=0, correction=0).numpy()
            axes.fill_between(variances, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
            axes.plot(variances, mean, color=color, marker=marker, markersize=4.5, linestyle=line, label=name)
        if baseline:
            level, name = baseline
            axes.axhline(level, color=palette.muted, linewidth=1.0, linestyle=":", label=name)
        axes.set_xlabel("noise variance σ² (intensity²)")
        axes.set_ylabel(ylabel)
        axes.set_xlim(left=0)
        legend(axes, palette, loc="best")

    return draw


def map_panel(points: Tensor, labels: Tensor, title: str) -> Callable[[Axes, Palette], None]:
    """Points [n, 2] drawn as the digit of their class, coloured by class."""

    def draw(axes: Axes, palette: Palette) -> None:
        for index, label in enumerate(labels.unique().tolist()):
            chosen = points[labels == label].numpy()
            color = CLASS_COLORS[index % len(CLASS_COLORS)]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=34, marker=f"${label}$", color=color, linewidths=0)
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set_aspect("equal", adjustable="box")
        axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(palette.grid)

    return draw


def strip(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Images [C, 1, H, W] (or [C, H, W]) in rows of ``columns``: [height, width, 2] bytes, grey and opacity.

    Intensity is clipped to [0, 1], black to white; pixels are repeated until an image is at least 32 wide; the gaps
    between images are transparent.
    """
    height, width = images.shape[-2:]
    repeat = -(-32 // width)
    tiles = (images.reshape(-1, height, width).nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
    tiles = tiles.repeat(repeat, axis=1).repeat(repeat, axis=2)
    height, width, gap = height * repeat, width * repeat, 2
    columns = columns or len(tiles)
    rows = -(-len(tiles) // columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 2), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width, 0] = tile
        canvas[top : top + height, left : left + width, 1] = 255
    return canvas


def png(pixels: np.ndarray, alt: str) -> str:
    """An <img> with the bytes of ``strip`` inside; CSS scales it without smoothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, "LA").save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    size = f'width="{width}" height="{height}"'
    return f'<img class="pixels" {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'
