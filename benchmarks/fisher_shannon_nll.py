"""Likelihood of a trained model by importance sampling, with its time and peak memory.

    python -m benchmarks.fisher_shannon_nll RUN [--splits test train] [--samples K] [--images N] [--data_root FOLDER]

Adds a row for each split to RUN/nll.csv, unless it is there for the same training steps, K and N. Called by
benchmarks/fisher_shannon.sh.
"""

import argparse
import csv
import resource
import sys
import time
from pathlib import Path

COLUMNS = ("split", "images", "samples", "steps", "nll", "negative_elbo", "seconds", "peak_mb")
KEY = COLUMNS[:4]
ELBO_SAMPLES = 5


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fisher_shannon_nll", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that `fisherkernels fit` has written")
    parser.add_argument("--splits", nargs="+", choices=["train", "val", "test"], default=["test"])
    parser.add_argument("--samples", type=int, default=200, help="K")
    parser.add_argument("--images", type=int, help="only the first ones of a split")
    parser.add_argument("--data_root", help="where the data are, if not where the run found them")
    options = parser.parse_args(arguments)

    from fisherkernels.report.loading import load_run

    data_options = {"root": options.data_root} if options.data_root else {}
    run = load_run(options.run / "checkpoints" / "last.ckpt", data_options)
    path = options.run / "nll.csv"
    rows = read(path)
    for split in options.splits:
        dataset = getattr(run.data, f"{split}_set")
        images = min(options.images or len(dataset), len(dataset))
        key = dict(zip(KEY, map(str, (split, images, options.samples, run.steps)), strict=True))
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | estimate(run.model, dataset, images, options.samples))
            write(path, rows)
        row = next(row for row in rows if key.items() <= row.items())
        print(f"{options.run.name}: " + ", ".join(f"{name} {row[name]}" for name in COLUMNS))


def estimate(model, dataset, images, samples):
    from fisherkernels.measures import evaluate

    started = time.perf_counter()
    options = {"nll_samples": samples, "elbo_samples": ELBO_SAMPLES, "fisher_divergence_samples": 0}
    values = evaluate(model, batches(dataset, images), **options, mmd=False, deviations=False)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measured = {"nll": f"{values['nll']:.3f}", "negative_elbo": f"{values['negative_elbo']:.3f}"}
    return measured | {"seconds": f"{seconds:.0f}", "peak_mb": f"{peak:.0f}"}


def batches(dataset, images, size=128):
    for start in range(0, images, size):
        yield dataset[start : min(start + size, images)]


def read(path):
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
