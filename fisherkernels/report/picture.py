"""One picture for a README: reconstructions of noisy images beside the robustness curve."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from fisherkernels.report.evaluation import Evaluation
from fisherkernels.report.figures import METRIC_LABELS, PRINT, noise_panel, strip, style_axes


def save_picture(evaluation: Evaluation, path: str | Path) -> Path:
    """Writes a PNG of about 1500 x 590 pixels on white."""
    e = evaluation
    variance = e.shown_variances[-1]
    rows = (
        ("test images", PRINT.ink, e.examples),
        ("Fisher AE", PRINT.fisher_ae, e.fisher_ae.clean_reconstructions),
        ("VAE", PRINT.vae, e.vae.clean_reconstructions),
        (f"with noise,\nσ² = {variance:g}", PRINT.ink, e.noisy_examples[variance]),
        ("Fisher AE", PRINT.fisher_ae, e.fisher_ae.noisy_reconstructions[variance]),
        ("VAE", PRINT.vae, e.vae.noisy_reconstructions[variance]),
    )
    with rc_context({"font.size": 11, "axes.titlecolor": PRINT.ink}):
        figure = Figure(figsize=(10.4, 4.1), dpi=144, facecolor="white", layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
        for axes, (label, color, images) in zip(left.subplots(len(rows), 1), rows, strict=True):
            pixels = strip(images)
            axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=255, alpha=pixels[..., 1] / 255.0)
            axes.set(xticks=[], yticks=[])
            axes.set_ylabel(label, color=color, rotation=0, ha="right", va="center", labelpad=8)
            for spine in axes.spines.values():
                spine.set_visible(False)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
        axes = right.subplots()
        style_axes(axes, PRINT)
        tables = [results.errors["mse"].mean(dim=3).transpose(1, 2).flatten(0, 1) for results in (e.fisher_ae, e.vae)]
        noise_panel(e.variances, *tables, METRIC_LABELS["mse"], (e.mean_image_error["mse"], "mean image"))(axes, PRINT)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path
