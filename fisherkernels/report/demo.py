"""``fisherkernels demo``: trains a Fisher AE and a VAE of the same size on digits and writes the report.

A demo that was killed starts over, as it trains for less than three minutes; the report of an earlier one stays in
place until the new one is whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fisherkernels.report import verdict
from fisherkernels.report.comparison import compare_checkpoints
from fisherkernels.report.picture import save_picture
from fisherkernels.training.command_line import main as train

MODELS = {"fisher_ae": "Fisher AE", "vae": "VAE"}


def run_demo(
    out: str | Path = "runs/demo",
    configs: str | Path = "configs",
    num_runs: int = 5,
    overrides: Sequence[str] = (),
    picture: str | Path | None = None,
) -> Path:
    """Trains ``num_runs`` models of each kind from ``configs/{fisher_ae,vae}_digits.yaml``, then writes the report.

    Run s of either kind has seed s. overrides: further ``fisherkernels fit`` options, given to both kinds alike.
    Returns the path of ``out/report.html``.
    """
    out = Path(out)
    if num_runs < 1:
        raise ValueError(f"num_runs: expected at least 1, got {num_runs}")
    checkpoints: dict[str, list[Path]] = {name: [] for name in MODELS}
    seconds: dict[str, list[float]] = {name: [] for name in MODELS}
    with _one_thread():
        for seed in range(num_runs):
            for name, label in MODELS.items():
                config = Path(configs) / f"{name}_digits.yaml"
                if not config.is_file():
                    raise FileNotFoundError(
                        f"configs: expected {config}; run from the repository's root or name its folder"
                    )
                print(f"training {label}, run {seed + 1} of {num_runs}", flush=True)
                folder = out / name / f"run_{seed}"
                start = time.perf_counter()
                train(
                    ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder), "--overwrite", "true"]
                    + ["--seed_everything", str(seed), "--trainer.accelerator", "cpu"]
                    + ["--trainer.check_val_every_n_epoch", "5", "--trainer.enable_progress_bar", "false", *overrides]
                )
                seconds[name].append(time.perf_counter() - start)
                checkpoints[name].append(folder / "checkpoints" / "last.ckpt")
        print("evaluating", flush=True)
        times = {name: {"training time, one thread": _describe(seconds[name])} for name in MODELS}
        evaluation = compare_checkpoints(**checkpoints, out=out / "report.html", extra_settings=times)
    if picture is not None:
        save_picture(evaluation, picture)
    mse = evaluation.under_noise["mse"]
    print(verdict.headline(mse), verdict.numbers(mse, "MSE per pixel over all noise levels"))
    print(f"wrote {out / 'report.html'}; training took {sum(map(sum, seconds.values())):.0f} s")
    return out / "report.html"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Nets this small gain nothing from a second thread, and lose much where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _describe(seconds: list[float]) -> str:
    return f"{sum(seconds):.0f} s in all, {min(seconds):.1f} to {max(seconds):.1f} s per run"


def main(arguments: Sequence[str]) -> None:
    """``fisherkernels demo``."""
    parser = argparse.ArgumentParser(
        prog="fisherkernels demo", description="Trains a Fisher AE and a VAE on digits and writes the report."
    )
    parser.add_argument("--out", default="runs/demo", help="folder of the runs and of report.html (%(default)s)")
    parser.add_argument("--configs", default="configs", help="folder of the two *_digits.yaml (%(default)s)")
    parser.add_argument("--num_runs", type=int, default=5, help="training runs of each model (%(default)s)")
    parser.add_argument("--picture", help="also write reconstructions and robustness curve to this PNG")
    options, overrides = parser.parse_known_args(arguments[1:])
    run_demo(options.out, options.configs, options.num_runs, overrides, options.picture)
