"""``fisherkernels report``: the page for any Fisher AE and VAE trained on the same data."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fisherkernels.report.evaluation import Contender, Evaluation, evaluate
from fisherkernels.report.loading import Run, load_run
from fisherkernels.report.page import render, write
from fisherkernels.report.settings import software, training_settings
from fisherkernels.training import VAE, FisherAE

DATA_NAMES = {
    "DigitsDataModule": "handwritten digits",
    "MNISTDataModule": "MNIST",
    "FashionMNISTDataModule": "FashionMNIST",
}


def compare_checkpoints(
    fisher_ae: Sequence[str | Path],
    vae: Sequence[str | Path],
    out: str | Path,
    extra_settings: dict[str, dict[str, str]] | None = None,
    num_images: int | None = None,
) -> Evaluation:
    """Evaluates the checkpoints, run by run in pairs, on their common test set and writes the page to ``out``.

    extra_settings: further rows (label -> value) of the page's table of settings, under ``fisher_ae`` and ``vae``.
    num_images: use only the first so many images of the training and of the test set.
    """
    start = time.perf_counter()
    extra_settings = extra_settings or {}
    runs = {"fisher_ae": [load_run(path) for path in fisher_ae], "vae": [load_run(path) for path in vae]}
    for name, kind in (("fisher_ae", FisherAE), ("vae", VAE)):
        for run in runs[name]:
            if not isinstance(run.model, kind):
                raise ValueError(
                    f"{name}: expected checkpoints of a {kind.__name__}, received one of a {type(run.model).__name__}"
                )
    data = {run.config["data"]["class_path"] for group in runs.values() for run in group}
    if len(data) != 1:
        raise ValueError(f"vae: expected a run on the same data as fisher_ae, got {', '.join(sorted(data))}")
    contenders = {
        name: _contender(label, runs[name], extra_settings.get(name, {}))
        for name, label in (("fisher_ae", "Fisher AE"), ("vae", "VAE"))
    }
    module = runs["fisher_ae"][0].data
    if num_images is not None and num_images < 10:
        raise ValueError(f"num_images: expected at least 10, got {num_images}")
    images, labels = module.test_set[:num_images]
    train_images = module.train_set[:num_images][0]
    evaluation = evaluate(contenders["fisher_ae"], contenders["vae"], images, labels, train_images)
    facts = software() | {"evaluation": f"{time.perf_counter() - start:.0f} s"}
    _, height, width = module.test_set.shape
    name = DATA_NAMES.get(type(module).__name__, type(module).__name__)
    write(render(**contenders, evaluation=evaluation, data=f"{name} ({height} × {width} pixels)", facts=facts), out)
    return evaluation


def _contender(label: str, runs: list[Run], extra: dict[str, str]) -> Contender:
    logs = [run.metrics for run in runs if run.metrics.is_file()]
    return Contender(label, [run.model for run in runs], logs, training_settings(runs) | extra)


def main(arguments: Sequence[str]) -> None:
    """``fisherkernels report``."""
    parser = argparse.ArgumentParser(prog="fisherkernels report", description="Compares trained models in one page.")
    for name in ("fisher_ae", "vae"):
        parser.add_argument(
            f"--{name}", nargs="+", required=True, metavar="CKPT", help="one checkpoint per training run"
        )
    parser.add_argument("--out", default="report.html", help="the page to write (default: %(default)s)")
    parser.add_argument("--num_images", type=int, help="use only the first images of the training and of the test set")
    options = parser.parse_args(arguments[1:])
    torch.manual_seed(0)
    compare_checkpoints(options.fisher_ae, options.vae, options.out, num_images=options.num_images)
    print(f"wrote {options.out}")
