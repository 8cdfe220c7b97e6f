"""``fisherkernels uncertainty``: the latent posterior of a FisherNet as pictures and numbers, a VAE's beside it."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fisherkernels.report.figures import PRINT
from fisherkernels.report.loading import Run, load_run
from fisherkernels.report.uncertainty_figures import STEPS, Panel, draw_map, draw_posterior
from fisherkernels.report.uncertainty_posterior import Posterior, posterior_of
from fisherkernels.training import DiagonalAutoEncoder, FisherNet

FOLDER = "uncertainty"
FORMATS = ("png", "pdf", "svg")


def load_runs(checkpoint: str, vae: str | None, root: str | None) -> dict[str, Run]:
    """The FisherNet and, where asked for, the model with a diagonal posterior beside it, by what they are called.

    Raises ValueError where a checkpoint is of another kind, or the two differ in data or latent dimension.
    """
    data_options = {} if root is None else {"root": root}
    run = load_run(checkpoint, data_options)
    if not isinstance(run.model, FisherNet):
        raise ValueError(f"--ckpt_path: expected a checkpoint of a FisherNet, received one of a {_kind(run)}")
    if run.model.latent_dim < 2:
        raise ValueError("--ckpt_path: expected a latent_dim of at least 2, received 1")
    if vae is None:
        return {"FisherNet": run}
    other = load_run(vae, data_options)
    if not isinstance(other.model, DiagonalAutoEncoder):
        raise ValueError(f"--vae: expected a checkpoint of a VAE or a FisherAE, received one of a {_kind(other)}")
    for name, ours, theirs in (
        ("data", type(run.data).__name__, type(other.data).__name__),
        ("latent_dim", run.model.latent_dim, other.model.latent_dim),
    ):
        if ours != theirs:
            raise ValueError(f"--vae: expected {name} {ours}, that of --ckpt_path, received {theirs}")
    return {"FisherNet": run, _kind(other): other}


def _kind(run: Run) -> str:
    return type(run.model).__name__


def choose_images(labels: Tensor, classes: Sequence[int] | None, num_images: int) -> Tensor:
    """Indices of the first ``num_images`` of the test images that are of one of the classes (of any, for None)."""
    if num_images < 1:
        raise ValueError(f"--num_images: expected an int >= 1, received {num_images}")
    if classes is None:
        return torch.arange(len(labels))[:num_images]
    unknown = sorted(set(classes) - set(labels.tolist()))
    if unknown:
        raise ValueError(f"--classes: expected labels among {labels.unique().tolist()}, received {unknown}")
    return torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0][:num_images]


@torch.no_grad()
def panel_of(name: str, run: Run, image: Tensor) -> Panel:
    """The posterior of one image [1, C, H, W], and what the points along its two widest axes decode to."""
    posterior = posterior_of(run.model, image)
    steps = torch.tensor(STEPS, dtype=image.dtype)
    points = torch.cat([posterior.along(axis, steps)[0] for axis in (0, 1)])  # [2 * len(STEPS), d]
    decoded = run.model.decode(points).unflatten(0, (2, len(STEPS)))
    return Panel(name, _color(name), posterior, run.model.decode(posterior.mean)[0], decoded)


def _color(name: str) -> str:
    return PRINT.fisher_ae if name == "FisherNet" else PRINT.vae


def write_table(posteriors: dict[str, Posterior], indices: Tensor, labels: Tensor, path: Path) -> None:
    """One row per model and image: the two widest axes, one-sigma; the angle is that of the first (for d = 2)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "index", "label", "mean_1", "mean_2", "std_1", "std_2", "angle_degrees", "area"])
        for name, posterior in posteriors.items():
            columns = (posterior.mean[:, :2], posterior.std[:, :2], posterior.angle[:, None], posterior.area[:, None])
            for index, numbers in zip(indices.tolist(), torch.cat(columns, dim=1).tolist(), strict=True):
                writer.writerow([name, index, labels[index].item(), *(f"{number:.6g}" for number in numbers)])


def main(arguments: Sequence[str]) -> None:
    """``fisherkernels uncertainty``."""
    parser = argparse.ArgumentParser(
        prog="fisherkernels uncertainty",
        description="Draws the latent posterior that a FisherNet's decoder implies: the one- and two-sigma ellipses "
        "of one test image with what the points along their axes decode to and, in a two-dimensional latent space, "
        "the two-sigma ellipses of many images.",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="CKPT", help="of a FisherNet, in the folder of its run")
    parser.add_argument("--vae", metavar="CKPT", help="of a VAE trained on the same data, drawn beside it")
    parser.add_argument("--image", type=int, default=0, help="index of the test image (%(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", metavar="LABEL", help="classes in the plane (default: all)")
    parser.add_argument("--num_images", type=int, default=300, help="test images in the plane (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures (%(default)s)")
    parser.add_argument("--data.root", dest="root", metavar="PATH", help="where the data lies, if it moved since")
    parser.add_argument("--out", help=f"folder of what is written (default: {FOLDER}/ in the run's folder)")
    options = parser.parse_args(arguments[1:])

    runs = load_runs(options.ckpt_path, options.vae, options.root)
    data = runs["FisherNet"].data
    if not 0 <= options.image < len(data.test_set):
        raise ValueError(f"--image: expected an index below {len(data.test_set)}, received {options.image}")
    labels = data.test_set.labels
    indices = choose_images(labels, options.classes, options.num_images)
    image = data.test_set[options.image : options.image + 1][0]
    out = Path(options.out) if options.out else Path(options.ckpt_path).parent.parent / FOLDER
    out.mkdir(parents=True, exist_ok=True)

    panels = [panel_of(name, run, image) for name, run in runs.items()]
    picture = out / f"posterior.{options.format}"
    draw_posterior(panels, image[0], picture)
    facts = {"image": options.image, "label": labels[options.image].item()}
    text = json.dumps(facts | {panel.title: panel.posterior.describe(0) for panel in panels}, indent=2)
    (out / "posterior.json").write_text(text + "\n")

    posteriors = {name: posterior_of(run.model, data.test_set[indices][0]) for name, run in runs.items()}
    write_table(posteriors, indices, labels, out / "posteriors.csv")
    written = [str(picture), "posterior.json", "posteriors.csv"]
    if runs["FisherNet"].model.latent_dim == 2:
        planes = [Panel(name, _color(name), posterior) for name, posterior in posteriors.items()]
        draw_map(planes, labels[indices], data.class_names, out / f"posteriors.{options.format}")
        written.append(f"posteriors.{options.format}")
    for name, posterior in posteriors.items():
        ratio = posterior.std[:, 0] / posterior.std[:, 1]
        print(
            f"{name}: one-sigma ellipses of {len(indices)} test images, two widest axes: median area "
            f"{posterior.area.median():.3g}, median ratio of the axes {ratio.median():.3g}"
        )
    print(f"wrote {', '.join(written)}")
