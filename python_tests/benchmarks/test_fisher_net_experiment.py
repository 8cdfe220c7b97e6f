import csv
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import fisher_net_experiment as experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    """FisherNet overtakes the VAE at epoch 3; rows as a run's metrics.csv holds them."""
    errors = {"fisher_net-d2": (0.05, 0.04, 0.02, 0.01), "vae-d2": (0.04, 0.03, 0.025), "vae_learned-d5": (0.02,)}
    for name, values in errors.items():
        lines = ["step,epoch,train/loss,val/mse,val/mse_sampled", "0,0,3.5,,"]
        lines += [f"{9 * (i + 1)},{i},,{value},{2 * value}" for i, value in enumerate(values)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_one_tidy_row_per_run_and_epoch_a_table_and_a_figure(runs, capsys):
    pytest.importorskip("matplotlib")
    out = runs / "out"
    experiment.main([str(runs), "--out", str(out)])
    with (out / "test_mse.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and tuple(rows[0]) == experiment.COLUMNS
    assert rows[2] == dict(zip(experiment.COLUMNS, ("FisherNet", "learned", "2", "3", "0.02", "0.04"), strict=True))
    assert (out / "test_mse.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "test_mse.md").read_text().strip() in capsys.readouterr().out


def test_table_names_final_and_best_errors_and_where_fisher_net_is_lower(runs):
    lines = experiment.markdown(experiment.read_runs(runs)).splitlines()
    assert "| 2 | FisherNet, learned noise | 4 | 0.01000 | 0.01000 (4) | 0.02000 |  |" in lines
    assert "| 2 | VAE, noise variance 1 | 3 | 0.02500 | 0.02500 (3) | 0.05000 | 3 |" in lines
    assert lines[-1].startswith("Not trained: VAE, learned noise, d = 2; CVAE, learned noise, d = 2;")


def test_a_folder_of_something_else_is_named(runs):
    (runs / "gan-d2").mkdir()
    (runs / "gan-d2" / "metrics.csv").write_text("step,val/mse\n0,1\n")
    with pytest.raises(ValueError, match="gan-d2: expected a folder named fisher_net-dLATENT"):
        experiment.read_runs(runs)
    with pytest.raises(ValueError, match="expected runs with test errors, found none"):
        experiment.read_runs(runs / "gan-d2")


def test_script_resumes_what_was_interrupted_and_skips_what_is_finished(tmp_path):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    out = tmp_path / "runs"
    (out / "vae_learned-d3" / "checkpoints").mkdir(parents=True)
    (out / "vae_learned-d3" / "checkpoints" / "last.ckpt").touch()

    def run(*options):
        log.write_text("")
        environment = os.environ | {
            "PYTHON": str(python),
            "MODELS": "fisher_net vae_learned",
            "LATENT_DIMS": "3",
            "DATA_ROOT": str(tmp_path),
        }
        command = ["bash", "benchmarks/fisher_net.sh", str(out), *options]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        return log.read_text().splitlines()

    fisher_net, vae, made = run("--trainer.max_epochs", "2")
    assert "--config configs/fisher_net_fashion.yaml --model.latent_dim 3" in fisher_net
    assert fisher_net.endswith("--trainer.max_epochs 2")
    assert "--config configs/vae_fashion.yaml" in vae and "--model.learn_variance true" in vae
    assert vae.endswith("--trainer.max_epochs 2 --ckpt_path last")
    assert made.startswith("-m benchmarks.fisher_net_experiment")
    assert len(run("--trainer.max_epochs", "2")) == 1  # all finished: table and figure only
    assert len(run("--trainer.max_epochs", "3")) == 3
