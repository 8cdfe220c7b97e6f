"""The command line: in this process where it can be, in a process of its own where a kill or an import is tested."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from fisherkernels import cli

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["--model.encoder.hidden", "[16]", "--model.decoder.hidden", "[16]", "--model.latent_dim", "3"]
FAST = [*SMALL, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    return tmp_path


def command(name, config, *options):
    return cli.main([name, "--config", str(CONFIGS / f"{config}.yaml"), *options])


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("config", ["fisher_ae_digits", "fisher_net_digits", "vae_digits"])
def test_fit_test_predict(config, folder, capsys):
    assert command("fit", config, *FAST, "--trainer.max_epochs", "2") == 0
    run = folder / "runs" / config
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "checkpoints",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    losses = [float(row["train/loss"]) for row in rows(run) if row["train/loss"]]
    assert len(losses) == {"fisher_net_digits": 4}.get(config, 2)  # every 10th step of two epochs
    assert losses[-1] < losses[0]
    assert [0 < float(row["val/mse"]) < 0.3 for row in rows(run) if row["val/mse"]] == [True, True]
    assert str(Path("runs") / config) in capsys.readouterr().out

    assert command("test", config, *FAST) == 0
    results = json.loads((run / "test.json").read_text())
    assert results["checkpoint"].endswith("best.ckpt")
    assert 0 < results["test/mse"] < 0.3 and 0 < results["test/bce"] < 1

    assert command("validate", config, *FAST, "--ckpt_path", "last") == 0
    validated = json.loads((run / "validate.json").read_text())
    assert validated["val/loss"] == pytest.approx(float(rows(run)[-1]["val/loss"]), rel=1e-5)

    assert command("predict", config, *FAST) == 0
    assert "predictions.npz: mean [300, 3]" in capsys.readouterr().out
    predictions = np.load(run / "predictions.npz")
    assert predictions["reconstruction"].shape == (300, 1, 8, 8) and predictions["label"].shape == (300,)


def test_a_checkpoint_rebuilds_its_model(folder):
    from fisherkernels.training import FisherAE

    assert command("fit", "fisher_ae_digits", *FAST, "--trainer.max_steps", "2") == 0
    path = folder / "runs/fisher_ae_digits/checkpoints/last.ckpt"
    model = FisherAE.load_from_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0, equal_nan=True)
    assert model.latent_dim == 3 and model.encode(torch.rand(2, 1, 8, 8))[0].shape == (2, 3)


def test_a_saved_config_repeats_the_run(folder, capsys):
    assert command("fit", "fisher_ae_digits", *FAST, "--trainer.max_steps", "11", "--seed_everything", "7") == 0
    first = folder / "runs" / "fisher_ae_digits"
    again = ["fit", "--config", str(first / "config.yaml"), "--trainer.default_root_dir", "again"]
    assert cli.main(again) == 0
    assert rows(first) == rows(folder / "again")
    assert command("fit", "fisher_ae_digits", *FAST, "--trainer.max_steps", "11", "--overwrite", "true") == 0
    assert rows(first)[0]["train/loss"] != rows(folder / "again")[0]["train/loss"]  # another seed


def test_print_config_is_a_config(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        command("fit", "vae_digits", "--data.batch_size", "16", "--print_config")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "batch_size: 16" in text and "default_root_dir: runs/vae_digits" in text
    assert not (folder / "runs").exists()


def settings_of(config, capsys, *options):
    import yaml

    with pytest.raises(SystemExit):
        command("fit", config, *options, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


FISHER_AE_CONFIGS = (
    *("fisher_ae_digits", "fisher_ae_fashion", "fisher_ae_mnist"),
    *("vae_digits", "vae_fashion_bernoulli", "vae_mnist"),
)


@pytest.mark.parametrize("config", FISHER_AE_CONFIGS)
def test_fisher_ae_configs_have_the_papers_settings(config, capsys):
    settings = settings_of(config, capsys)
    model = settings["model"]["init_args"]
    assert (model["latent_dim"], model["learning_rate"], model["betas"]) == (8, 2e-4, [0.5, 0.999])
    assert settings["data"]["init_args"]["batch_size"] == 128
    assert settings["trainer"]["max_epochs"] == 100
    if "fisher_ae" in config:
        assert (model["prior"], model["prior_order"], model["variance"]) == ("polynomial", 5, 1.0)
        assert (model["decoder_gradient"], model["stability"]) == ("full", "posterior")
    if "mnist" in config or "fashion" in config:
        assert model["encoder"]["class_path"] == "fisherkernels.nets.PaperMNISTEncoder"
        assert model["decoder"]["class_path"] == "fisherkernels.nets.PaperMNISTDecoder"


@pytest.mark.parametrize("config", ["fisher_net_fashion", "vae_fashion", "cvae_fashion"])
def test_fisher_net_configs_have_the_papers_settings(config, capsys):
    settings = settings_of(config, capsys, "--model.latent_dim", "5")
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    assert (model["latent_dim"], model["learning_rate"], model["betas"]) == (5, 1e-4, [0.9, 0.999])
    assert (data["batch_size"], data["val_size"], settings["trainer"]["max_epochs"]) == (64, 0, 50)
    encoder, decoder = model["encoder"]["init_args"], model["decoder"]["init_args"]
    assert encoder["activation"] == decoder["activation"] == "relu" and decoder["output"] == "identity"
    if config == "cvae_fashion":
        assert (encoder["channels"], encoder["strides"], encoder["kernel_size"]) == ([32, 32, 64], [2, 1, 2], 3)
        assert (decoder["channels"], decoder["strides"], decoder["kernel_size"]) == ([64, 32, 32], [2, 1, 2], 3)
    else:
        assert encoder["hidden"] == decoder["hidden"] == [448, 448, 448]
    if config == "fisher_net_fashion":
        assert encoder["mean_only"] and model["learn_variance"] and model["variance_learning_rate"] == 1e-2
        assert (model["num_samples"], model["logdet"], model["gradient"], model["tol"]) == (1, False, "full", 1e-3)
    else:
        assert (model["likelihood"], model["variance"], model["learn_variance"]) == ("gaussian", 1.0, False)


def one_line_error(capsys, *words):
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("fisherkernels: error: ")
    for word in words:
        assert word in text


def test_mistakes_are_one_line(folder, capsys):
    assert cli.main(["fti"]) == 2
    one_line_error(capsys, "unknown command 'fti'", "fit, validate, test, predict, demo, report, sample, uncertainty")
    assert command("fit", "fisher_ae_digits", "--model.latent_dm", "3") == 2
    one_line_error(capsys, "latent_dm")
    assert command("fit", "fisher_net_digits", "--model.logdet", "maybe") == 2
    one_line_error(capsys, "logdet", "bool", "'exact', 'lanczos'", "Given value: maybe")
    assert cli.main(["fit", "--trainer.max_epochs", "3"]) == 2
    one_line_error(capsys, "fit: expected --config FILE")
    assert cli.main(["fit", "--config", "nowhere.yaml"]) == 2
    one_line_error(capsys, "nowhere.yaml")
    assert command("fit", "fisher_ae_mnist", "--data.root", "nowhere", *FAST[-4:]) == 2
    one_line_error(capsys, "nowhere/MNIST/raw/train-images-idx3-ubyte")
    assert command("fit", "fisher_ae_digits", *FAST, "--data.batch_size", "2000") == 2
    one_line_error(capsys, "batch_size 2000 is more than the 1297 training samples")


def test_last_without_a_checkpoint_is_an_error(folder, capsys):
    for name in ("fit", "test"):
        assert command(name, "fisher_ae_digits", *FAST, "--ckpt_path", "last") == 2
        one_line_error(capsys, "--ckpt_path last", str(Path("runs/fisher_ae_digits/checkpoints")), "none")
    assert command("predict", "fisher_ae_digits", *FAST) == 2
    one_line_error(capsys, "no checkpoint in runs/fisher_ae_digits/checkpoints")
    assert not (folder / "runs").exists()


def test_a_checkpoint_of_another_model_is_an_error(folder, capsys):
    assert command("fit", "fisher_ae_digits", *FAST, "--trainer.max_steps", "2") == 0
    capsys.readouterr()
    assert command("test", "fisher_ae_digits", *FAST, "--model.latent_dim", "4", "--ckpt_path", "last") == 2
    one_line_error(capsys, "the checkpoint does not belong to the model of this config", "size mismatch for encoder")


def test_a_run_is_not_lost_by_starting_another(folder, capsys):
    fit = ["--trainer.max_steps", "3", "--checkpoint_every_n_steps", "1"]
    assert command("fit", "fisher_ae_digits", *FAST, *fit) == 0
    last = folder / "runs/fisher_ae_digits/checkpoints/last.ckpt"
    before = last.read_bytes()
    capsys.readouterr()
    assert command("fit", "fisher_ae_digits", *FAST, *fit) == 2
    one_line_error(capsys, "runs/fisher_ae_digits holds a run (last.ckpt)", "--ckpt_path last", "--overwrite true")
    assert last.read_bytes() == before
    fit[1] = "2"
    assert command("fit", "fisher_ae_digits", *FAST, *fit, "--overwrite", "true") == 0
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_nan_is_one_line_with_step_and_term(folder, capsys, monkeypatch):
    from fisherkernels.training import FisherAE

    loss = FisherAE.loss

    def poisoned(self, x, noise):
        output = loss(self, x, noise)
        factor = float("nan") if self.global_step == 4 else 1.0
        return output._replace(
            loss=output.loss * factor, terms={**output.terms, "stability": output.terms["stability"] * factor}
        )

    monkeypatch.setattr(FisherAE, "loss", poisoned)
    assert command("fit", "fisher_ae_digits", *FAST) == 1
    one_line_error(capsys, "training step 4", "the term 'stability' is NaN for 128 of 128 samples")
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(FloatingPointError):
        command("fit", "fisher_ae_digits", *FAST, "--overwrite", "true")


def python(code, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, text=True,
                          capture_output=True, timeout=300, **kwargs)  # fmt: skip


def test_kill_9_and_resume_is_exact(folder):
    """SIGKILL in mid-epoch, then a new process with ``--ckpt_path last``: equal to the run that was not killed."""
    options = [
        *FAST,
        "--trainer.max_epochs",
        "3",
        "--trainer.log_every_n_steps",
        "1",
        "--checkpoint_every_n_steps",
        "3",
    ]
    arguments = ["fit", "--config", str(CONFIGS / "fisher_ae_digits.yaml"), *options]
    fit = "from fisherkernels.cli import main; assert main({}) == 0"
    kill = """
        import os, signal
        from fisherkernels.training import FisherAE
        def kill(self, loss):
            if self.global_step == 16:
                os.kill(os.getpid(), signal.SIGKILL)
        FisherAE.on_before_backward = kill
        """
    whole = python(fit.format([*arguments, "--trainer.default_root_dir", "whole"]))
    assert whole.returncode == 0, whole.stderr
    killed = python(textwrap.dedent(kill) + fit.format(arguments))
    assert killed.returncode == -signal.SIGKILL
    run = folder / "runs" / "fisher_ae_digits"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15
    assert int(rows(run)[-1]["step"]) == 16  # one step more was logged than checkpointed
    resumed = python(fit.format([*arguments, "--ckpt_path", "last"]))
    assert resumed.returncode == 0, resumed.stderr
    assert rows(run) == rows(folder / "whole")
    assert len(rows(run)) == 33  # 30 training steps, 3 validations
    ours, theirs = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (run, folder / "whole"))
    for part in ("state_dict", "optimizer_states"):
        pairs = zip(*(torch.utils._pytree.tree_leaves(c[part]) for c in (ours, theirs)), strict=True)
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_info_and_losses_need_no_extra(folder):
    """``info`` and the library itself run where nothing but torch and numpy is installed."""
    done = python(
        """
        import sys
        for name in ("lightning", "pytorch_lightning", "jsonargparse", "tensorboard", "torchvision", "sklearn",
                     "torchmetrics", "matplotlib"):
            sys.modules[name] = None  # importing it raises ModuleNotFoundError
        import fisherkernels
        from fisherkernels.cli import main
        assert main(["info"]) == 0
        assert main(["fit", "--config", "x.yaml"]) == 2
        """
    )
    assert done.returncode == 0, done.stderr
    assert "backend cpu" in done.stdout
    assert "pip install 'fisherkernels[train]'" in done.stderr and done.stderr.count("\n") == 1


def test_usage(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main([]) == 2
