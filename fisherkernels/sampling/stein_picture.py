"""How the particles of Stein variational gradient descent come closer to the prior, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from fisherkernels.report.figures import PRINT, style_axes
from fisherkernels.sampling.stein import SteinRun


def save_stein_picture(run: SteinRun, path: Path) -> None:
    """Writes a PNG: distance from the prior against the iteration, and that of as many exact draws as a band."""
    mean, std = run.exact
    steps = [step for step in run.distances if step]
    with rc_context({"font.size": 10, "axes.titlecolor": PRINT.ink}):
        figure = Figure(figsize=(5.2, 3.6), dpi=144, facecolor="white", layout="constrained")
        axes = figure.subplots()
        style_axes(axes, PRINT)
        axes.semilogx(steps, [run.distances[step] for step in steps], color=PRINT.vae, label="SVGD")
        axes.axhline(mean, color=PRINT.fisher_ae, label="exact draws (inverse CDF)")
        axes.axhspan(max(mean - std, 0.0), mean + std, color=PRINT.fisher_ae, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("iteration")
        axes.set_ylabel("Wasserstein-1 / standard deviation")
        axes.set_title(f"Distance of {len(run.particles):,} particles from the learned prior", fontsize="medium")
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
