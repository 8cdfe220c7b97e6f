import csv
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import fisher_shannon_experiment as experiment
from benchmarks import fisher_shannon_nll
from fisherkernels import cli, measures

ROOT = Path(__file__).parents[2]
PLANE = "step,epoch,train/loss,val/reconstruction,val/kl,val/fisher_information,val/entropy_power\n"


def write_run(folder, kind, data, options, epochs, likelihoods=()):
    """What `fisherkernels fit` and `fisher_shannon_nll` leave, d = 4; epochs: (tr J, N), one each."""
    folder.mkdir(parents=True)
    config = {
        "model": {"class_path": f"fisherkernels.training.{kind}", "init_args": {"latent_dim": 4, **options}},
        "data": {"class_path": f"fisherkernels.training.{data}", "init_args": {}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{9 * i},{i},,80,{20 + i},{trace},{power}\n" for i, (trace, power) in enumerate(epochs)]
    (folder / "metrics.csv").write_text(PLANE + "0,0,3.5,,,,\n" + "".join(rows))
    names = ",".join(fisher_shannon_nll.COLUMNS)
    (folder / "nll.csv").write_text("\n".join([names, *likelihoods]) + "\n")


@pytest.fixture
def runs(tmp_path):
    control = {"f_z": 20.0, "lambda_z": 0.5, "per_dimension": True}
    binarized, reversed_ = "BinarizedMNISTDataModule", "ReversedMNISTDataModule"
    of_zeros = ["train,60,200,9,95.5,97,1,9", "test,10,200,9,150.25,155,1,9"]
    write_run(tmp_path / "b", "FisherShannon", reversed_, control, [(80, 0.1)], of_zeros)
    write_run(tmp_path / "c", "FisherShannon", binarized, control | {"per_dimension": False}, [(8, 0.6), (20, 0.25)])
    of_vae = ["test,10,200,9,91,95,1,9", "test,10,200,18,90,94,1,9"]
    write_run(tmp_path / "d", "VAE", binarized, {}, [(4, 1.0), (8, 0.6)], of_vae)
    return tmp_path


def test_a_row_per_epoch_the_newest_estimates_beside_the_papers_and_a_figure(runs, capsys):
    pytest.importorskip("matplotlib")
    out = runs / "out"
    experiment.main([str(runs), "--out", str(out)])
    with (out / "plane.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["epoch"]) for row in rows] == [("d", "1"), ("d", "2"), ("c", "1"), ("c", "2"), ("b", "1")]
    assert rows[3]["fisher_information"] == "5" and rows[3]["negative_elbo"] == "101"
    with (out / "nll.csv").open() as file:
        assert [row["nll"] for row in csv.DictReader(file)] == ["91", "90", "95.5", "150.25"]
    table = (out / "nll.md").read_text()
    assert "| VAE | 2 | 2.00 | 0.600 | 1.20 | 101.00 | 90.00 | 85.56 |" in table
    assert "| FAE, F = 20 for the sum, weight 0.5 | 2 | 5.00 | 0.250 | 1.25 | 101.00 |  |  |" in table
    assert "| FAE, F = 20, weight 0.5 | 1 | 20.00 | 0.100 | 2.00 | 100.00 | 95.50 | 150.25 | 94.48 | 164.56 |" in table
    assert (out / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert table.strip() in capsys.readouterr().out


def test_runs_without_the_plane_are_left_out(tmp_path):
    write_run(tmp_path / "a", "VAE", "BinarizedMNISTDataModule", {}, [])
    with pytest.raises(ValueError, match="expected runs with val/fisher_information in their metrics.csv, found none"):
        experiment.read_runs(tmp_path)


def test_the_likelihood_of_a_checkpoint_is_estimated_once(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", str(run)]
    cli.main(["fit", "--config", str(ROOT / "configs/vae_digits.yaml"), *options])
    arguments = [str(run), "--splits", "test", "train", "--samples", "3", "--images", "200"]
    fisher_shannon_nll.main(arguments)
    rows = fisher_shannon_nll.read(run / "nll.csv")
    assert [(row["split"], row["images"], row["samples"], row["steps"]) for row in rows] == [
        ("test", "200", "3", "1"),
        ("train", "200", "3", "1"),
    ]
    assert float(rows[0]["peak_mb"]) > 1

    from fisherkernels.report.loading import load_run

    loaded = load_run(run / "checkpoints" / "last.ckpt")
    exact = measures.importance_sampled_nll(loaded.model, loaded.data.test_set[:200][0], num_samples=200).mean().item()
    assert float(rows[0]["nll"]) == pytest.approx(exact, rel=0.05)
    monkeypatch.setattr(fisher_shannon_nll, "estimate", None)
    fisher_shannon_nll.main(arguments)
    assert fisher_shannon_nll.read(run / "nll.csv") == rows
    assert capsys.readouterr().out.count("run: split test, images 200, samples 3") == 2


def test_script_names_options_resumes_and_skips(tmp_path):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    out = tmp_path / "runs"
    (out / "vae" / "checkpoints").mkdir(parents=True)
    (out / "vae" / "checkpoints" / "last.ckpt").touch()
    environment = os.environ | {"PYTHON": str(python), "DATA_ROOT": str(tmp_path), "SAMPLES": "7"}
    command = ["bash", "benchmarks/fisher_shannon.sh", str(out)]

    def run(models, *options):
        log.write_text("")
        subprocess.run(
            [*command, *options], cwd=ROOT, env=environment | {"MODELS": models}, check=True, capture_output=True
        )
        return log.read_text().splitlines()

    models = "vae mae-m10 fae-f20-w0.1-sum reversed-f5-w1"
    fits = run(models, "--trainer.max_epochs", "2")
    vae, vae_nll, mae, _, fae, _, reversed_, reversed_nll, made = fits
    assert "--config configs/vae_binarized_mnist.yaml" in vae and vae.endswith("max_epochs 2 --ckpt_path last")
    assert vae_nll.startswith(f"-m benchmarks.fisher_shannon_nll {out}/vae --splits test --samples 7")
    assert "--config configs/mutual_ae_mnist.yaml --model.information 10" in mae
    assert "fisher_shannon_mnist.yaml --model.f_z 20 --model.lambda_z 0.1 --model.per_dimension false" in fae
    assert "fisher_shannon_reversed_mnist.yaml --model.f_z 5 --model.lambda_z 1 --data" in reversed_
    assert "--splits test train" in reversed_nll
    assert made.startswith("-m benchmarks.fisher_shannon_experiment")
    assert not any(" fit " in line for line in run(models, "--trainer.max_epochs", "2"))
    assert sum(" fit " in line for line in run(models, "--trainer.max_epochs", "3")) == 4
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("gan")
    assert b"MODELS: expected vae, mae-mM, fae-fF-wW or reversed-fF-wW, received gan" in error.value.stderr


def test_contenders_for_the_benchmark_agree(monkeypatch):
    from benchmarks.correctness import Gate
    from benchmarks.measures import importance_sampling

    monkeypatch.setattr(importance_sampling, "BATCH", 3)
    monkeypatch.setattr(importance_sampling, "SAMPLES", 32)
    (case,) = importance_sampling.CASES
    gate = Gate(case, torch.device("cpu"), torch.float64, seed=0)
    for contender in case.contenders:
        gate.check(contender, contender.build(torch.device("cpu"), torch.float64))
