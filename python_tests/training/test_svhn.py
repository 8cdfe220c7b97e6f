import hashlib

import numpy as np
import pytest
import torch

from fisherkernels import cli
from fisherkernels.training import SVHNDataModule


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Root folder of 6 training, 4 test and 9 additional images in SVHN's format; their checksums are made known."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    random = np.random.default_rng(0)
    files = {}
    for split, n in (("train", 6), ("test", 4), ("extra", 9)):
        path = tmp_path / f"{split}_32x32.mat"
        images = random.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        savemat(path, {"X": images, "y": np.arange(1, n + 1, dtype=np.uint8)[:, None]})
        checksum = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        files[split] = ["", path.name, checksum]
    monkeypatch.setattr(SVHN, "split_list", files)
    return tmp_path


def test_images_and_parts(svhn):
    from scipy.io import loadmat

    data = SVHNDataModule(str(svhn), batch_size=2, val_size=5)
    data.prepare_data()
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 5, 4]
    images, labels = data.test_set[:]
    expected = loadmat(svhn / "test_32x32.mat")["X"].transpose(3, 2, 0, 1) / 255
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6)
    assert labels.tolist() == [1, 2, 3, 4]
    assert len(set(data.val_set.labels.tolist())) == 5
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 32, 32)


def test_without_validation_images_the_additional_ones_are_not_needed(svhn):
    (svhn / "extra_32x32.mat").unlink()
    data = SVHNDataModule(str(svhn), batch_size=2, val_size=0)
    data.setup()
    assert data.val_set is data.test_set
    with pytest.raises(FileNotFoundError, match=r"extra_32x32\.mat is missing or damaged"):
        SVHNDataModule(str(svhn), val_size=1).setup()


def test_mistakes_are_named(svhn, tmp_path):
    with pytest.raises(ValueError, match="val_size: expected an int >= 0, received -1"):
        SVHNDataModule(val_size=-1)
    with pytest.raises(ValueError, match="val_size: expected at most 9, the additional images, received 10"):
        SVHNDataModule(str(svhn), val_size=10).setup()
    with pytest.raises(FileNotFoundError, match="SVHN is not under root='.*nowhere': .*train_32x32.mat is missing"):
        SVHNDataModule(str(tmp_path / "nowhere")).setup()


def test_the_config_trains_and_is_measured(svhn, pytestconfig, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(pytestconfig.rootpath / "configs" / "fisher_shannon_svhn.yaml")
    options = ["--data.root", str(svhn), "--data.batch_size", "2", "--data.val_size", "5", "--model.latent_dim", "3"]
    options += ["--model.encoder.hidden", "[8]", "--model.decoder.hidden", "[8]"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.max_steps", "3"]) == 0
    assert cli.main(["test", "--config", config, *options]) == 0
    printed = capsys.readouterr().out
    for name in ("negative_elbo", "mse", "mmd", "fisher_information", "information_z"):
        assert f"test/{name}" in printed
