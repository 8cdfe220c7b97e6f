"""Every configuration of a method or baseline on MNIST or a synthetic set trains, with small nets."""

import csv
import json

import pytest
import yaml

from fisherkernels import cli

FIVE_LAYERS = ["--model.encoder.hidden", "[8]", "--model.decoder.hidden", "[8]"]
NARROW = ["--model.encoder.width", "2", "--model.decoder.width", "2", "--model.latent_dim", "3"]
CONFIGS = {
    "score_matching_mnist": NARROW,
    "score_matching_resnet_fashion": NARROW,
    "score_matching_rings": [],
    "score_matching_bilevel_rings": [],
    "joint_fd_rings": [],
    "vae_rings": [],
    "fisher_shannon_mnist": FIVE_LAYERS,
    "fisher_shannon_reversed_mnist": [*FIVE_LAYERS, "--data.zeros", "12", "--data.others", "4"],
    "mutual_ae_mnist": FIVE_LAYERS,
    "vae_binarized_mnist": FIVE_LAYERS,
    "beta_vae_mnist": FIVE_LAYERS,
    "wae_gan_mnist": [],
    "cvae_mnist": ["--model.encoder.channels", "[2,2,2]", "--model.decoder.channels", "[2,2,2]"],
    "fisher_net_mnist": FIVE_LAYERS,
}
TESTED = {  # measures that `fisherkernels test` prints beside mse and mmd
    "score_matching_rings": {"negative_elbo", "nll", "posterior_fisher_divergence", "posterior_std", "entropy_power"},
    "fisher_shannon_mnist": {"negative_elbo", "nll", "bce", "fisher_information", "information_z"},
    "wae_gan_mnist": {"bce", "adversarial"},
}


@pytest.fixture
def command(pytestconfig, tmp_path, monkeypatch):
    """Runs ``fisherkernels NAME --config configs/CONFIG.yaml`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]

    def run(name, config, *more):
        path = pytestconfig.rootpath / "configs" / f"{config}.yaml"
        return cli.main([name, "--config", str(path), *options, *more])

    return run


def small(path, root):
    """Options for a few small batches of the config's data."""
    data = yaml.safe_load(path.read_text())["data"]["class_path"]
    if data.endswith("SyntheticDataModule"):
        sizes = {"train": 200, "val": 50, "test": 60}
        options = [word for part, n in sizes.items() for word in (f"--data.{part}_size", str(n))]
        return ["--data.batch_size", "20", *options]
    return ["--data.root", str(root), "--data.batch_size", "10", "--data.val_size", "20"]


def training_losses(run):
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("config", CONFIGS)
def test_fit_and_test(config, command, pytestconfig, larger_root, tmp_path, capsys):
    options = [*small(pytestconfig.rootpath / "configs" / f"{config}.yaml", larger_root), *CONFIGS[config]]
    assert command("fit", config, *options, "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1") == 0
    run = tmp_path / "runs" / config
    assert len(training_losses(run)) == 4
    if config not in TESTED:
        return
    nll = [] if config == "wae_gan_mnist" else ["--measures.nll_samples", "3"]
    assert command("test", config, *options, *nll) == 0
    results, printed = json.loads((run / "test.json").read_text()), capsys.readouterr().out
    for name in TESTED[config] | {"mse", "mmd"}:
        assert f"test/{name}" in results and f"test/{name}" in printed
    assert ("test/negative_elbo" in results) is (config != "wae_gan_mnist")
    assert ("test/bce" in results) is ("mnist" in config)


@pytest.mark.parametrize("config", ["score_matching_rings", "joint_fd_rings", "vae_rings"])
def test_the_loss_falls_on_rings(config, command, tmp_path):
    """From a variance far too small, which the data correct within a few steps."""
    sizes = ["--data.train_size", "4000", "--data.batch_size", "100", "--data.val_size", "50"]
    start = ["--model.variance", "0.1", "--model.variance_learning_rate", "0.1"]
    assert command("fit", config, *sizes, *start, "--trainer.max_steps", "60") == 0
    losses = training_losses(tmp_path / "runs" / config)
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]


def test_mistakes_are_one_line(command, capsys):
    for config, option, value, words in (
        ("score_matching_rings", "data.name", "circles", "'rings', 'moons', 'spirals', 'star', 'gaussians', received"),
        ("score_matching_rings", "model.objective", "m4", "'m1', 'm2', 'm3'"),
        ("score_matching_rings", "trainer.accumulate_grad_batches", "2", "not supported for manual optimization"),
    ):
        assert command("fit", config, f"--{option}", value) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and words in message
