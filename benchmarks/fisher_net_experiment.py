"""Test error per epoch of FisherNet, VAE and CVAE: one table, one figure. `benchmarks/fisher_net.sh` trains them.

    python -m benchmarks.fisher_net_experiment RUNS [--out FOLDER]

RUNS holds a folder per training, named MODEL-dLATENT (fisher_net-d10, vae_learned-d2, ...), each with its metrics.csv.
"""

import argparse
import csv
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results" / "fisher_net"
COLUMNS = ("model", "noise_variance", "latent_dim", "epoch", "test_mse", "test_mse_sampled")
METRICS = {"test_mse": "val/mse", "test_mse_sampled": "val/mse_sampled"}  # the configs validate on the test set


class Style(NamedTuple):
    model: str
    noise_variance: str  # "learned" or "1"
    color: str
    dashes: str

    @property
    def label(self):
        return self.model + {"learned": ", learned noise", "1": ", noise variance 1"}[self.noise_variance]


MODELS = {  # folder's name -> how it is called and drawn
    "fisher_net": Style("FisherNet", "learned", "#0072b2", "-"),
    "vae_learned": Style("VAE", "learned", "#d55e00", "-"),
    "vae": Style("VAE", "1", "#d55e00", "--"),
    "cvae_learned": Style("CVAE", "learned", "#009e73", "-"),
    "cvae": Style("CVAE", "1", "#009e73", "--"),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fisher_net_experiment", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    curves = read_runs(options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(curves, options.out / "test_mse.csv")
    table = markdown(curves)
    (options.out / "test_mse.md").write_text(table + "\n")
    draw(curves, options.out / "test_mse.png")
    print(table)
    print(f"wrote test_mse.csv, test_mse.md and test_mse.png to {options.out}")


def read_runs(folder):
    """{(name of the model, d): {epoch, from 1: {"test_mse": ..., "test_mse_sampled": ...}}}."""
    curves = {}
    for path in sorted(Path(folder).glob("*/metrics.csv")):
        found = re.fullmatch(r"(\w+)-d(\d+)", path.parent.name)
        if found is None or found[1] not in MODELS:
            names = ", ".join(f"{name}-dLATENT" for name in MODELS)
            raise ValueError(f"{path.parent}: expected a folder named {names}")
        if epochs := _epochs(path):
            curves[found[1], int(found[2])] = epochs
    if not curves:
        raise ValueError(f"{folder}: expected runs with test errors, found none")
    return curves


def _epochs(path):
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(METRICS["test_mse"])]
    return {
        int(row["epoch"]) + 1: {name: float(row.get(metric) or "nan") for name, metric in METRICS.items()}
        for row in rows
    }


def write_csv(curves, path):
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (name, latent_dim), epochs in _ordered(curves):
            for epoch, errors in sorted(epochs.items()):
                values = [f"{errors[metric]:.6g}" for metric in METRICS]
                writer.writerow([MODELS[name].model, MODELS[name].noise_variance, latent_dim, epoch, *values])


def markdown(curves):
    """Final and best test MSE of every run, and from which epoch on FisherNet stays below it."""
    lines = ["| d | model | epochs | final MSE | best MSE (epoch) | final, z sampled | FisherNet lower from epoch |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|")
    for (name, latent_dim), epochs in _ordered(curves):
        errors = {epoch: values["test_mse"] for epoch, values in epochs.items()}
        last, best = max(errors), min(errors, key=errors.get)
        sampled = epochs[last]["test_mse_sampled"]
        cells = [latent_dim, MODELS[name].label, len(errors), f"{errors[last]:.5f}", f"{errors[best]:.5f} ({best})"]
        cells.append("" if math.isnan(sampled) else f"{sampled:.5f}")
        ours = curves.get(("fisher_net", latent_dim))
        cells.append(_lower_from(ours, errors) if ours and name != "fisher_net" else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    missing = [f"{MODELS[n].label}, d = {d}" for d in _latent_dims(curves) for n in MODELS if (n, d) not in curves]
    if missing:
        lines += ["", f"Not trained: {'; '.join(missing)}."]
    return "\n".join(lines)


def _lower_from(ours, theirs):
    """The first epoch from which on `ours` stays below, over the epochs both have; "never" where there is none."""
    common = sorted(ours.keys() & theirs.keys())
    since = None
    for epoch in reversed(common):
        if not ours[epoch]["test_mse"] < theirs[epoch]:
            break
        since = epoch
    return "never" if since is None else since


def draw(curves, path):
    """One panel per latent size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    latent_dims = _latent_dims(curves)
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, len(latent_dims), figsize=(0.6 + 2.6 * len(latent_dims), 3.1), squeeze=False)
        for ax, latent_dim in zip(axes[0], latent_dims, strict=True):
            for name, how in MODELS.items():
                epochs = curves.get((name, latent_dim))
                if epochs:
                    x = sorted(epochs)
                    y = [epochs[epoch]["test_mse"] for epoch in x]
                    marker = "o" if len(x) == 1 else None
                    ax.plot(x, y, how.dashes, color=how.color, lw=1.4, marker=marker, ms=4, label=how.label)
            ax.set_title(f"d = {latent_dim}")
            ax.set_xlabel("epoch")
            ax.set_ylim(*_visible([curves[key] for key in curves if key[1] == latent_dim]))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.grid(axis="y", color="#dddddd", lw=0.6)
            ax.set_axisbelow(True)
        axes[0, 0].set_ylabel("MSE on test data")
        handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        columns = max(1, min(len(handles), len(latent_dims)))
        figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, frameon=False)
        rows = math.ceil(len(handles) / columns)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.075 * rows))
        figure.savefig(path, dpi=200)
        plt.close(figure)


def _visible(runs):
    """Limits of the y axis: what happens after the first tenth of the epochs, whose errors dwarf the rest."""
    values = []
    for epochs in runs:
        start = max(epochs) // 10
        values += [errors["test_mse"] for epoch, errors in epochs.items() if epoch > start]
    values = [value for value in values if math.isfinite(value)]
    margin = 0.05 * (max(values) - min(values)) or 0.05 * max(values)
    return min(values) - margin, max(values) + margin


def _latent_dims(curves):
    return sorted({latent_dim for _, latent_dim in curves})


def _ordered(curves):
    names = list(MODELS)
    return sorted(curves.items(), key=lambda item: (item[0][1], names.index(item[0][0])))


if __name__ == "__main__":
    sys.exit(main())
