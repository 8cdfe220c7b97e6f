import numpy as np
import pytest
import torch
from PIL import Image

from fisherkernels import cli
from fisherkernels.training import CelebADataModule


def test_images_are_cut_resized_and_kept(celeba, monkeypatch):
    data = CelebADataModule(str(celeba), batch_size=2)
    data.prepare_data()
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 3, 2]
    images, labels = data.test_set[:]
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
    assert labels.tolist() == [0, 1]  # images 10 and 11
    original = Image.open(celeba / "celeba" / "img_align_celeba" / "000011.jpg").crop((15, 35, 163, 183))
    expected = np.asarray(original.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    assert np.abs(images[1].numpy() - expected).max() < 2 / 255
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 64, 64)

    def resize_again(*args):
        raise AssertionError("resized twice")

    monkeypatch.setattr(CelebADataModule, "_resize", resize_again)
    again = CelebADataModule(str(celeba), attribute="Male")
    again.prepare_data()
    again.setup()
    assert torch.equal(again.test_set[:][0], images) and again.test_set[:][1].tolist() == [1, 1]


def test_mistakes_are_named(celeba, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="attribute: expected one of Male, Smiling, received 'Hat'"):
        CelebADataModule(str(celeba), attribute="Hat").setup()
    with pytest.raises(ValueError, match="image_size: expected an int >= 1, received 0"):
        CelebADataModule(image_size=0)
    with pytest.raises(FileNotFoundError, match="CelebA is not under root='.*nowhere': expected .*img_align_celeba/"):
        CelebADataModule(str(tmp_path / "nowhere")).prepare_data()


def test_the_colour_config_trains_and_predicts(celeba, pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(pytestconfig.rootpath / "configs" / "fisher_net_colour.yaml")
    options = ["--data.root", str(celeba), "--data.batch_size", "2", "--model.latent_dim", "20"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.max_epochs", "1"]) == 0
    assert cli.main(["predict", "--config", config, *options]) == 0
    predictions = np.load("runs/fisher_net_colour/predictions.npz")
    assert predictions["reconstruction"].shape == (2, 3, 64, 64)
    assert predictions["std"].shape == (2, 20) and predictions["principal_axes"].shape == (2, 10, 20)


SMALL = ["--model.encoder.width", "2", "--model.decoder.width", "2", "--model.latent_dim", "3"]
RESNETS = ["--model.encoder", "ResNet18Encoder", "--model.decoder", "ResNet18Decoder", "--model.encoder_updates", "1"]


@pytest.mark.parametrize("nets", [[], RESNETS])
def test_the_score_matching_config_trains_and_is_measured(celeba, nets, pytestconfig, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(pytestconfig.rootpath / "configs" / "score_matching_celeba.yaml")
    options = [*nets, *SMALL, "--data.root", str(celeba), "--data.batch_size", "3"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.max_steps", "2"]) == 0
    assert cli.main(["test", "--config", config, *options]) == 0
    printed = capsys.readouterr().out
    for name in ("negative_elbo", "mse", "mmd", "posterior_fisher_divergence"):
        assert f"test/{name}" in printed
    saved = (tmp_path / "runs" / "score_matching_celeba" / "config.yaml").read_text()
    assert ("ResNet18Encoder" in saved) is bool(nets) and "image_size: 32" in saved


@pytest.mark.parametrize("name", ["fisher_ae_celeba", "vae_celeba"])
def test_the_papers_nets_train(celeba, name, pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(pytestconfig.rootpath / "configs" / f"{name}.yaml")
    options = ["--data.root", str(celeba), "--data.batch_size", "2", "--trainer.max_steps", "1"]
    options += ["--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.enable_progress_bar", "false"]) == 0
    assert (tmp_path / "runs" / name / "checkpoints" / "last.ckpt").is_file()
