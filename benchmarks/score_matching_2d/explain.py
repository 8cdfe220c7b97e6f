"""Why some objectives fail: small experiments beside `python -m benchmarks.score_matching_2d`.

    python -m benchmarks.score_matching_2d.explain OUT_DIR [--results FOLDER] [--report-only]

Four seeds and 400 updates of the decoder each; what OUT_DIR has already is not trained again. The factor c is that of
:mod:`benchmarks.score_matching_2d.linear`.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.score_matching_2d.linear import factor
from benchmarks.score_matching_2d.methods import METHODS
from benchmarks.score_matching_2d.runs import Data, Run, result, spread
from benchmarks.score_matching_2d.training import Settings

NAME = "points_2d_why"
MEMBERS = 4
SETTINGS = Settings(400, encoder_updates=5, batch_size=50, learning_rate=1e-2, variance_learning_rate=3e-2)
DATA = Data(100_000, 1000, 2**14, padding=0)
KL = [("elbo", 5), ("m1", 5), ("m2", 5), ("m3", 5)]
BY_FACTOR = [
    *KL, ("m2", 1), ("m3", 1), ("m2", 2), ("m3", 2), ("m2_unbiased", 5), ("m3_unbiased", 5)
]  # fmt: skip


class Setup(NamedTuple):
    folder: str
    what: str
    name: str  # of the data set
    runs: list[tuple[str, int]]  # method, S
    changes: dict = {}
    padding: int = 0


SETUPS = (
    Setup("base", "gamma = 1 at the start", "rings", BY_FACTOR),
    Setup("g01", "gamma = 0.1 at the start", "rings", BY_FACTOR, {"variance": 0.1}),
    Setup("base", "gamma = 1 at the start", "moons", KL),
    Setup("g01", "gamma = 0.1 at the start", "moons", KL, {"variance": 0.1}),
    Setup("j1", "gamma = 1, J = 1", "rings", [("m2", 5), ("m3", 5)], {"encoder_updates": 1}),
    Setup("j10", "gamma = 1, J = 10", "rings", [("m3", 5)], {"encoder_updates": 10}),
    Setup("long", "gamma = 0.1, 1200 updates", "rings", KL, {"variance": 0.1, "cycles": 1200}),
    Setup("pad6", "gamma = 1, 6 further coordinates", "rings", [("elbo", 5), ("m2", 5), ("m3", 1)], padding=6),
    Setup("g01", "FD inference", "rings", [("fd_m1", 5), ("fd_reparametrized_m1", 5)], {"variance": 0.1}),  # fmt: skip
)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_matching_2d.explain", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--results", type=Path, help="folder for table, text and figure")
    parser.add_argument("--report-only", action="store_true", help="train nothing; leave out what is missing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = []
    for setup in SETUPS:
        folder = options.out_dir / setup.folder
        folder.mkdir(parents=True, exist_ok=True)
        for method, num_samples in setup.runs:
            run = Run(setup.name, method, num_samples)
            if not options.report_only or (folder / run.file).exists():
                settings, data = SETTINGS._replace(**setup.changes), DATA._replace(padding=setup.padding)
                done.append((setup, run, result(folder, run, MEMBERS, settings, data)))
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        write_csv(done, options.results / f"{NAME}.csv")
        (options.results / f"{NAME}.md").write_text(markdown(done) + "\n")
        draw(done, options.results / f"{NAME}.png")


def factor_of(run: Run) -> float | None:
    """c, which KL inference has."""
    method = METHODS[run.method]
    return factor(method, run.num_samples) if method.divergence == "kl" else None


def write_csv(done, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiment", "data_set", "method", "num_samples", "c", "seed", "nll", "variance"])
        for setup, run, found in done:
            for seed in range(MEMBERS):
                values = [f"{found[name][seed].item():.5g}" for name in ("nll", "variance")]
                writer.writerow([setup.what, *run, factor_of(run), seed, *values])


def markdown(done) -> str:
    lines = ["| | data | method | S | c | NLL | gamma |", "|---|---|---|---:|---:|---:|---:|"]
    for setup, run, found in done:
        c = factor_of(run)
        cells = [setup.what, run.name, METHODS[run.method].label, run.num_samples, "" if c is None else f"{c:g}"]
        cells += [spread(found[name]).replace("+-", "±") for name in ("nll", "variance")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


MARKERS = {1: "o", 2: "s", 5: "^"}  # by S


def draw(done, path: Path) -> None:
    """Against c on the rings, from both starts: what the methods share."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(6.4, 4.8), sharex=True)
        for column, setup in zip(axes.T, SETUPS[:2], strict=True):
            column[0].set_title(f"rings, {setup.what}")
            for where, run, found in done:
                if where == setup:
                    _mark(column, run, found)
            column[1].set_xlabel("c, the weight of the posterior variance of f(z)")
            for ax in column:
                ax.grid(axis="y", color="#dddddd", lw=0.6)
                ax.set_axisbelow(True)
        axes[0, 0].set_ylabel("NLL, nats")
        axes[1, 0].set_ylabel("learned gamma")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False, fontsize=7)
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _mark(axes, run: Run, found: dict) -> None:
    method, x = METHODS[run.method], factor_of(run)
    shift = {"elbo": -0.03, "m1": -0.01, "m2": 0.01, "m3": 0.03}[method.objective]
    label = f"{method.objective.upper()}, {'unbiased' if method.unbiased else f'S = {run.num_samples}'}"
    how = {"fmt": "D" if method.unbiased else MARKERS[run.num_samples], "ms": 4, "color": method.color, "label": label}
    for ax, name in zip(axes, ("nll", "variance"), strict=True):
        ax.errorbar(x + shift, found[name].mean(), found[name].std() / len(found[name]) ** 0.5, **how)


if __name__ == "__main__":
    sys.exit(main())
