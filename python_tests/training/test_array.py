"""Data of the user's own: through the Python API and from a file."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fisherkernels import cli, training
from fisherkernels.training import ArrayDataModule
from fisherkernels.training.batches import unpack

MODELS = (training.FisherAE, training.VAE, training.FisherNet, training.ScoreMatching, training.WAEGAN)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_plain_loader_trains_as_the_data_module_does(run, kind, labelled, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(24, 1, 8, 8)
    states = []
    for data in (DataLoader(TensorDataset(x, torch.zeros(24)) if labelled else x, batch_size=8), x):
        model = run.model(kind)
        trainer = pl.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        if data is x:
            data = training.BatchLoader(TensorDataset(x, torch.zeros(24)), 8)
        trainer.fit(model, data)
        states.append(model.state_dict())
        results = trainer.predict(model, data)
        assert sum(len(batch["mean"]) for batch in results) == 24
        assert ("label" in results[0]) is (labelled or not isinstance(data, DataLoader))
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("batch", [{"image": torch.zeros(1)}, ("name", torch.zeros(1)), (), None])
def test_a_batch_of_another_form_is_refused(batch):
    with pytest.raises(TypeError, match=r"batch: expected x \[N, ...\], or a tuple or list that starts with it, recei"):
        unpack(batch)


def test_an_array_is_split_and_keeps_its_labels(tmp_path):
    x = np.arange(60, dtype=np.float64).reshape(20, 3)
    np.save(tmp_path / "x.npy", x)
    data = ArrayDataModule(str(tmp_path / "x.npy"), torch.arange(20), batch_size=4, test_fraction=0.25)
    data.setup()
    parts = data.train_set, data.val_set, data.test_set
    assert [len(part) for part in parts] == [13, 2, 5]
    values, labels = (torch.cat([part[:][which] for part in parts]) for which in (0, 1))
    assert values.dtype == torch.float32
    assert labels.sort().values.tolist() == list(range(20))
    torch.testing.assert_close(values, torch.from_numpy(x[labels.numpy()]).float())
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3)


def test_byte_images_are_scaled():
    images = torch.arange(10, dtype=torch.uint8).mul(25)[:, None, None, None].expand(10, 1, 2, 2)
    data = ArrayDataModule(images)
    data.setup()
    values = torch.cat([part[:][0][:, 0, 0, 0] for part in (data.train_set, data.val_set, data.test_set)])
    torch.testing.assert_close(values.sort().values, torch.arange(10) * 25 / 255)
    assert data.train_set[:][1].unique().tolist() == [0]


def test_mistakes_are_named(tmp_path):
    broken = torch.zeros(6, 2)
    broken[4, 1] = torch.nan
    (tmp_path / "text.npy").write_text("no array")
    cases = (
        (TypeError, torch.zeros(6, 2, dtype=torch.int64), None, r"array: expected .*, received torch.int64 \[6, 2\]"),
        (TypeError, torch.zeros(6), None, r"array: expected .*, received torch.float32 \[6\]"),
        (ValueError, broken, None, "array: expected finite values, received NaN or infinity in row 4"),
        (ValueError, torch.zeros(2, 2), None, "expected enough samples .* received 2"),
        (ValueError, torch.zeros(6, 2), torch.zeros(5), r"labels: expected shape \[6\], received \[5\]"),
        (FileNotFoundError, str(tmp_path / "none.npy"), None, "array: expected a tensor or the path of a .npy file"),
        (ValueError, str(tmp_path / "text.npy"), None, "array: .*text.npy holds no array of numbers"),
    )
    for error, array, labels, message in cases:
        with pytest.raises(error, match=message):
            ArrayDataModule(array, labels).setup()


def test_a_file_trains_from_the_command_line(pytestconfig, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    config = str(pytestconfig.rootpath / "configs" / "vae_rings.yaml")
    data = ["--data", "ArrayDataModule", "--data.array", "points.npy", "--data.batch_size", "10"]
    options = [*data, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.max_steps", "3"]) == 0
    assert cli.main(["test", "--config", config, *options]) == 0
    assert "test/negative_elbo" in capsys.readouterr().out
