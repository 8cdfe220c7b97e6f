"""``fisherkernels sample``: new images of a trained model from densities fitted to its latent means."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fisherkernels.report.loading import load_run
from fisherkernels.sampling.comparison import METHODS, PRIOR_SVGD, Comparison, compare
from fisherkernels.sampling.fit import DENSITIES
from fisherkernels.sampling.picture import save_picture
from fisherkernels.sampling.stein import STEPS, SteinRun
from fisherkernels.sampling.stein_picture import save_stein_picture

FOLDER = "samples"


def results(comparison: Comparison) -> dict[str, Any]:
    """What ``densities.json`` says of each density; log-likelihoods are means per image, in nats."""
    densities = {}
    for name, candidate in comparison.candidates.items():
        below, error = comparison.below_best(name)
        densities[name] = {
            "held_out_log_likelihood": candidate.held_out.mean().item(),
            "below_best": below,
            "below_best_standard_error": error,
            "fit_seconds": round(candidate.fit_seconds, 2),
            "settings": candidate.density.settings,
        }
    return {"best": comparison.best, "densities": densities, "skipped": comparison.skipped}


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(comparison: Comparison) -> str:
    """The same as lines to print."""
    lines = []
    for name, candidate in comparison.candidates.items():
        below, error = comparison.below_best(name)
        behind = "best" if name == comparison.best else f"{below:.3f} ± {error:.3f} below the best"
        settings = ", ".join(f"{key} {_short(value)}" for key, value in candidate.density.settings.items())
        lines.append(f"  {name:<16}{candidate.held_out.mean():9.3f}  {behind}{f'; {settings}' if settings else ''}")
    lines += [f"  skipped {kind}: {reason}" for kind, reason in comparison.skipped.items()]
    return "\n".join(lines)


def stein_results(run: SteinRun) -> dict[str, Any]:
    """What ``densities.json`` says of a run of Stein variational gradient descent; see :class:`SteinRun`."""
    return {
        "particles": len(run.particles),
        "steps": run.steps,
        "seconds": round(run.seconds, 2),
        "distance": run.distances[run.steps],
        "distance_of_exact_draws": run.exact[0],
        "distance_of_exact_draws_std": run.exact[1],
        "distance_by_step": {str(step): value for step, value in run.distances.items()},
    }


def stein_line(run: SteinRun) -> str:
    """The same in words."""
    return (
        f"svgd: after {run.steps:,} iterations ({run.seconds:.1f} s) the coordinates of the {len(run.particles)} "
        f"particles are {run.distances[run.steps]:.3f} standard deviations from the prior (Wasserstein-1, mean); as "
        f"many exact draws {run.exact[0]:.3f} ± {run.exact[1]:.3f}"
    )


def arrays(comparison: Comparison) -> dict[str, np.ndarray]:
    """What ``samples.npz`` holds: ``NAME_latent`` [n, d] and ``NAME_images`` [n, ...] of each density."""
    return {
        f"{name}_{part}": getattr(candidate, part).numpy()
        for name, candidate in comparison.candidates.items()
        for part in ("latent", "images")
    }


def main(arguments: Sequence[str]) -> None:
    """``fisherkernels sample``."""
    parser = argparse.ArgumentParser(
        prog="fisherkernels sample",
        description="Fits densities to the latent means of the training images, draws latent vectors from them and "
        "decodes those, beside samples from N(0, I) and from a learned prior. The log-likelihood of the validation "
        "images' latent means says which density fits best.",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="CKPT", help="a checkpoint in the folder of its run")
    parser.add_argument(
        "--density", nargs="+", default=["all"], metavar="KIND",
        help=f"one or more of {', '.join(DENSITIES)}, or all: those that are installed and take this latent dimension "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument("--num_samples", type=int, default=64, help="latent vectors of each density (%(default)s)")
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0],
        help="how a Fisher AE's learned prior is sampled: exactly, or also by Stein variational gradient descent, as "
        "in the paper; svgd.png then shows how far from exact it is (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--svgd_steps", type=int, default=STEPS, help="its iterations (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the fits and the draws (%(default)s)")
    parser.add_argument("--data.root", dest="root", metavar="PATH", help="where the data lies, if it moved since")
    parser.add_argument(
        "--out", help=f"folder for samples.png, samples.npz and densities.json (default: {FOLDER}/ in the run's folder)"
    )
    options = parser.parse_args(arguments[1:])
    run = load_run(options.ckpt_path, {} if options.root is None else {"root": options.root})
    held_out_images = run.data.val_set[:][0]
    comparison = compare(
        run.model, run.data.train_set[:][0], held_out_images, options.density, options.num_samples, options.seed,
        method=options.method, svgd_steps=options.svgd_steps, progress=True,
    )  # fmt: skip
    stein = comparison.candidates[PRIOR_SVGD].density.run if options.method == "svgd" else None
    out = Path(options.out) if options.out else Path(options.ckpt_path).parent.parent / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "checkpoint": str(options.ckpt_path),
        "model": type(run.model).__name__,
        "latent_dim": comparison.held_out_means.shape[1],
        "training_images": len(run.data.train_set),
        "held_out_images": len(held_out_images),
        "seed": options.seed,
    }
    about_stein = {} if stein is None else {"svgd": stein_results(stein)}
    text = json.dumps(facts | results(comparison) | about_stein, indent=2, allow_nan=False)
    (out / "densities.json").write_text(text + "\n")
    np.savez_compressed(out / "samples.npz", **arrays(comparison))
    save_picture(comparison, held_out_images, out / "samples.png")
    print(
        f"{facts['model']}, d = {facts['latent_dim']}: log-likelihood of the latent means of {len(held_out_images)} "
        f"validation images, nats per image; fitted to those of {facts['training_images']} training images"
    )
    print(table(comparison))
    written = "samples.npz, densities.json"
    if stein is not None:
        save_stein_picture(stein, out / "svgd.png")
        print(stein_line(stein))
        written += ", svgd.png"
    print(f"wrote {out / 'samples.png'}, {written}")
