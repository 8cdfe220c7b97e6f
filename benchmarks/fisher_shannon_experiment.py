"""Likelihoods of trained models, and where they lie in the Fisher-Shannon plane: tables and a figure.

    python -m benchmarks.fisher_shannon_experiment RUNS [--out FOLDER]

RUNS holds a folder per training, as `fisherkernels fit` leaves it (config.yaml, metrics.csv), of any models with a
diagonal Gaussian posterior; `benchmarks/fisher_shannon.sh` trains those of Zheng et al., "Understanding VAEs in
Fisher-Shannon Plane" (2018). nll.csv in a run's folder is what `benchmarks.fisher_shannon_nll` estimated.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results" / "fisher_shannon"
DATA = {  # the class of the data -> how it is called
    "BinarizedMNISTDataModule": "statically binarised MNIST",
    "ReversedMNISTDataModule": "reversed MNIST",
}
PRINTED = {  # (data, model) -> NLL of the split: Zheng et al., tables 1 and 2
    ("statically binarised MNIST", "VAE"): {"test": 85.56},
    ("statically binarised MNIST", "MAE, M = 0"): {"test": 81.58},
    ("statically binarised MNIST", "MAE, M = 10"): {"test": 80.86},
    ("statically binarised MNIST", "FAE, F = 0"): {"test": 83.24},
    ("statically binarised MNIST", "FAE, F = 20"): {"test": 79.30},
    ("reversed MNIST", "FAE, F = 0.1"): {"train": 96.67, "test": 108.37},
    ("reversed MNIST", "FAE, F = 5"): {"train": 95.89, "test": 109.19},
    ("reversed MNIST", "FAE, F = 10"): {"train": 95.12, "test": 134.94},
    ("reversed MNIST", "FAE, F = 20"): {"train": 94.48, "test": 164.56},
}
SPLITS = ("train", "val", "test")


class Position(NamedTuple):
    """After an epoch, means over the validation images."""

    fisher_information: float  # tr J / d
    entropy_power: float
    negative_elbo: float


class Run(NamedTuple):
    name: str
    data: str
    model: str
    weight: float | None  # lambda_z, or C of the mutual auto-encoder
    order: tuple  # of the tables' rows
    path: dict[int, Position]  # by epoch, from 1
    likelihoods: list[dict[str, str]]  # rows of nll.csv

    @property
    def last(self):
        return self.path[max(self.path)]

    @property
    def label(self):
        return self.model if self.weight is None else f"{self.model}, weight {self.weight:g}"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fisher_shannon_experiment", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    runs = read_runs(options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    write_plane(runs, options.out / "plane.csv")
    write_likelihoods(runs, options.out / "nll.csv")
    table = markdown(runs)
    (options.out / "nll.md").write_text(table + "\n")
    draw(runs, options.out / "plane.png")
    print(table)
    print(f"wrote plane.csv, nll.csv, nll.md and plane.png to {options.out}")


def read_runs(folder):
    """All runs in a folder that have validated once, in the order of the tables."""
    import yaml

    runs = []
    for path in sorted(Path(folder).glob("*/metrics.csv")):
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        model, data = config["model"], config["data"]["class_path"].rpartition(".")[2]
        positions = _path(path, model["init_args"]["latent_dim"])
        if positions:
            name, weight, order = _describe(model["class_path"].rpartition(".")[2], model["init_args"])
            likelihoods = _rows(path.parent / "nll.csv")
            runs.append(Run(path.parent.name, DATA.get(data, data), name, weight, order, positions, likelihoods))
    if not runs:
        raise ValueError(f"{folder}: expected runs with val/fisher_information in their metrics.csv, found none")
    known = list(DATA.values())
    place = {data: (known.index(data) if data in known else len(known)) for data in (run.data for run in runs)}
    return sorted(runs, key=lambda run: (place[run.data], run.data, run.order, run.name))


def _describe(kind, options):
    """What the model is called, the weight of its control, its place in the tables."""
    if kind == "FisherShannon":
        wanted = options["f_z"]
        several = isinstance(wanted, list)
        name = "FAE, F of each coordinate" if several else f"FAE, F = {wanted:g}"
        name += "" if options["per_dimension"] else " for the sum"
        return name, options["lambda_z"], (2, max(wanted) if several else wanted, options["lambda_z"])
    if kind == "MutualAE":
        return f"MAE, M = {options['information']:g}", options["weight"], (1, options["information"], 0.0)
    return kind, None, (0, kind, 0.0)


def _path(metrics, latent_dim):
    return {
        int(row["epoch"]) + 1: Position(
            float(row["val/fisher_information"]) / latent_dim,
            float(row["val/entropy_power"]),
            float(row["val/reconstruction"]) + float(row["val/kl"]),
        )
        for row in _rows(metrics)
        if row.get("val/fisher_information")
    }


def _rows(path):
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_plane(runs, path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "data", "model", "weight", "epoch", *Position._fields])
        for run in runs:
            for epoch, position in sorted(run.path.items()):
                values = [f"{value:.6g}" for value in position]
                writer.writerow([run.name, run.data, run.model, run.weight, epoch, *values])


def write_likelihoods(runs, path):
    rows = [{"run": run.name, "data": run.data, "model": run.model, "weight": run.weight, **row}
            for run in runs for row in run.likelihoods]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0] if rows else ["run"])
        writer.writerows(row.values() for row in rows)


def markdown(runs):
    """A table for each data set: the newest estimate with each number of samples in a column of its own."""
    parts = []
    for data in dict.fromkeys(run.data for run in runs):
        chosen = [run for run in runs if run.data == data]
        estimates = {key for run in chosen for key in _estimates(run)}
        estimates = sorted(estimates, key=lambda key: (SPLITS.index(key[0]), key))
        columns = ["model", "epochs", "tr J / d", "N", "N tr J / d", "negative ELBO, validation"]
        columns += [f"{split} NLL, {images:,} images, K = {samples:,}" for split, images, samples in estimates]
        splits = [split for split in SPLITS if any(split in _printed(run) for run in chosen)]
        columns += [f"paper's {split} NLL" for split in splits]
        lines = [f"**{data}**", "", "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
        for run in chosen:
            at, found, printed = run.last, _estimates(run), _printed(run)
            cells = [run.label, max(run.path), f"{at.fisher_information:.2f}", f"{at.entropy_power:.3f}"]
            cells += [f"{at.fisher_information * at.entropy_power:.2f}", f"{at.negative_elbo:.2f}"]
            cells += [f"{found[key]:.2f}" if key in found else "" for key in estimates]
            cells += [f"{printed[split]:.2f}" if split in printed else "" for split in splits]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _estimates(run):
    """(split, images, K) -> NLL after the most training steps."""
    rows = sorted(run.likelihoods, key=lambda row: int(row["steps"]))
    return {(row["split"], int(row["images"]), int(row["samples"])): float(row["nll"]) for row in rows}


def _printed(run):
    return PRINTED.get((run.data, run.model), {})


def draw(runs, path):
    """Left: each model after its last epoch, and the curve of the isotropic Gaussian. Right: the way there."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    markers = dict(zip(dict.fromkeys(run.data for run in runs), "os^vDP", strict=False))
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", sharex=True, sharey=True)
        colors = plt.get_cmap("tab20").colors
        last = max(2, *(max(run.path) for run in runs))
        for i, run in enumerate(runs):
            x, y = (np.array([run.path[epoch][j] for epoch in sorted(run.path)]) for j in range(2))
            marker = markers.get(run.data, "x")
            label = run.label + ("" if run.data == runs[0].data else f" ({run.data})")
            left.scatter(x[-1], y[-1], s=36, color=colors[i % len(colors)], marker=marker, label=label, zorder=3)
            right.plot(x, y, color="#bbbbbb", lw=0.7, zorder=1)
            points = right.scatter(
                x, y, c=sorted(run.path), s=14, marker=marker, cmap="viridis", vmin=1, vmax=last, zorder=2
            )
        reached = [position.fisher_information for run in runs for position in run.path.values()]
        curve = np.geomspace(min(0.9, *reached), max(reached) * 1.1)
        for axes, title in ((left, "trained models"), (right, "training")):
            axes.plot(curve, 1 / curve, color="black", lw=0.9, zorder=0, label="N tr J / d = 1")
            axes.set(xscale="log", yscale="log", xlabel="Fisher information tr J / d", title=title)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(ScalarFormatter())
                axis.set_minor_formatter(NullFormatter())
        left.set_ylabel("entropy power N")
        figure.colorbar(points, ax=right, label="epoch", ticks=MaxNLocator(5, integer=True))
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
        figure.savefig(path, dpi=180)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
