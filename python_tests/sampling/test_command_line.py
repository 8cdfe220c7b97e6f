"""``fisherkernels sample`` on a checkpoint that ``fisherkernels fit`` wrote."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fisherkernels import cli

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    return tmp_path


def fit(config, latent_dim):
    """A run of a few steps; the path of its checkpoint."""
    arguments = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--model.latent_dim", str(latent_dim)]
    fast = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert cli.main([*arguments, *fast]) == 0
    return Path("runs") / config / "checkpoints" / "last.ckpt"


def one_line_error(capsys, *words):
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("fisherkernels: error: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*_digits.yaml")))
def test_every_model(config, folder, capsys):
    checkpoint = fit(config, 2)
    capsys.readouterr()
    options = ["--density", "gaussian", "gmm", "kde", "--num_samples", "7"]
    assert cli.main(["sample", "--ckpt_path", str(checkpoint), *options]) == 0
    text = capsys.readouterr().out
    out = folder / "runs" / config / "samples"
    assert {path.name for path in out.iterdir()} == {"samples.png", "samples.npz", "densities.json"}
    results = json.loads((out / "densities.json").read_text())
    likelihoods = {name: values["held_out_log_likelihood"] for name, values in results["densities"].items()}
    learned = ["prior"] if config == "fisher_ae_digits" else []
    assert list(likelihoods) == ["standard_normal", *learned, "gaussian", "gmm", "kde"]
    assert results["best"] == max(likelihoods, key=likelihoods.get)
    assert (results["training_images"], results["held_out_images"], results["latent_dim"]) == (1297, 200, 2)
    for name, value in likelihoods.items():
        assert f"{name:<16}{value:9.3f}" in text
    samples = np.load(out / "samples.npz")
    assert set(samples) == {f"{name}_{part}" for name in likelihoods for part in ("latent", "images")}
    assert samples["gmm_latent"].shape == (7, 2) and samples["gmm_images"].shape == (7, 1, 8, 8)

    from fisherkernels.report.loading import load_run

    model = load_run(checkpoint).model
    decoded = model.decode(torch.from_numpy(samples["kde_latent"])).detach()
    torch.testing.assert_close(torch.from_numpy(samples["kde_images"]), decoded)


def test_the_same_seed_draws_the_same_images(folder):
    sample = ["sample", "--ckpt_path", str(fit("vae_digits", 2)), "--density", "gmm"]
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        assert cli.main([*sample, "--seed", str(seed), "--out", name]) == 0
    first, again, other = (np.load(folder / name / "samples.npz") for name in ("first", "again", "other"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["gmm_images"], other["gmm_images"])
    assert not (folder / "runs" / "vae_digits" / "samples").exists()


def test_svgd_beside_the_inverse_cdf(folder, capsys):
    sample = ["sample", "--ckpt_path", str(fit("fisher_ae_digits", 3)), "--density", "gaussian"]
    capsys.readouterr()
    options = ["--method", "svgd", "--svgd_steps", "200", "--num_samples", "50"]
    assert cli.main([*sample, *options]) == 0
    printed = capsys.readouterr()
    assert "svgd: after 200 iterations" in printed.out and "of the 50 particles" in printed.out
    assert "200/200" in printed.err  # the progress bar
    out = folder / "runs" / "fisher_ae_digits" / "samples"
    assert {path.name for path in out.iterdir()} == {"samples.png", "samples.npz", "densities.json", "svgd.png"}
    results = json.loads((out / "densities.json").read_text())
    assert list(results["densities"]) == ["standard_normal", "prior", "prior_svgd", "gaussian"]
    assert results["densities"]["prior_svgd"]["settings"] == {"steps": 200}
    stein = results["svgd"]
    assert stein["particles"] == 50 and stein["steps"] == 200
    by_step = stein["distance_by_step"]
    assert by_step["200"] == stein["distance"] > 0 and "0" in by_step
    samples = np.load(out / "samples.npz")
    assert samples["prior_svgd_latent"].shape == samples["prior_latent"].shape == (50, 3)
    assert f"{stein['distance']:.3f} standard deviations" in printed.out


def test_mistakes_are_one_line(folder, capsys, monkeypatch):
    assert cli.main(["sample", "--ckpt_path", "nowhere/checkpoints/last.ckpt"]) == 2
    one_line_error(capsys, "nowhere/checkpoints/last.ckpt, which does not exist")
    sample = ["sample", "--ckpt_path", str(fit("vae_digits", 3))]
    capsys.readouterr()
    assert cli.main([*sample, "--density", "gaussian", "kd"]) == 2
    one_line_error(capsys, "density: expected one or more of gaussian, gmm, kde, flow, mkde", "received kd")
    assert cli.main([*sample, "--density", "mkde"]) == 2
    one_line_error(capsys, "d: mkde", "received d = 3")
    assert cli.main([*sample, "--density", "gaussian", "--num_samples", "0"]) == 2
    one_line_error(capsys, "num_samples: expected an int >= 1, received 0")
    assert cli.main([*sample, "--density", "gaussian", "--method", "svgd"]) == 2
    one_line_error(capsys, "method: svgd samples a learned prior; that of this VAE is N(0, I)")
    assert cli.main([*sample, "--density", "gaussian", "--svgd_steps", "0"]) == 2
    one_line_error(capsys, "svgd_steps: expected an int >= 1, received 0")
    assert cli.main([*sample, "--density", "gaussian", "--data.root", "x"]) == 2
    one_line_error(capsys, "data.root: the run's data has no such argument, only batch_size")
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert cli.main([*sample, "--density", "flow"]) == 2
    one_line_error(capsys, "needs zuko", "pip install 'fisherkernels[flow]'")
    assert not (folder / "runs" / "vae_digits" / "samples").exists()
