import struct

import numpy as np
import pytest
import torch

from fisherkernels.training import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule


def write_idx(path, array):
    """The IDX format: two zero bytes, type 8 (unsigned byte), number of dimensions, the sizes big-endian, the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        for part, n in (("train", 40), ("t10k", 12)):
            folder = tmp_path / name / "raw"
            images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            write_idx(folder / f"{part}-images-idx3-ubyte", images)
            write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    return tmp_path


def test_digits():
    data = DigitsDataModule(batch_size=32)
    data.setup()
    assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [1297, 200, 300]
    images = torch.cat([part[:][0] for part in (data.train_set, data.val_set, data.test_set)])
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797  # no image in two sets


def test_the_split_does_not_depend_on_the_seed():
    splits = []
    for seed in (0, 1):
        data = DigitsDataModule(seed=seed)
        data.setup()
        splits.append((data.train_set.raw, data.test_set.raw))
    assert all(torch.equal(a, b) for a, b in zip(*splits, strict=True))


@pytest.mark.parametrize("module", [MNISTDataModule, FashionMNISTDataModule])
def test_idx_files(module, root):
    data = module(root=str(root), batch_size=8, val_size=10)
    data.prepare_data()
    data.setup()
    assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [30, 10, 12]
    raw = np.fromfile(root / module.dataset_name / "raw" / "t10k-images-idx3-ubyte", np.uint8)[16:]
    images, labels = data.test_set[:]
    assert torch.equal(images, torch.from_numpy(raw).view(12, 1, 28, 28) / 255)
    assert labels.tolist() == [i % 10 for i in range(12)]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28) and labels.shape == (8,)


def test_without_validation_images_the_test_set_validates(root):
    data = FashionMNISTDataModule(root=str(root), batch_size=8, val_size=0)
    data.setup()
    assert [len(data.train_set), len(data.val_set)] == [40, 12] and data.val_set is data.test_set


def test_missing_files_are_named(root):
    gone = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    gone.unlink()
    with pytest.raises(FileNotFoundError) as error:
        MNISTDataModule(root=str(root)).setup()
    assert str(gone) in str(error.value) and "train-images" not in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        FashionMNISTDataModule(root=str(root / "elsewhere")).setup()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{root}/elsewhere/FashionMNIST/raw/{name}-ubyte" in str(error.value)
    assert "--data.root" in str(error.value)


def test_validation_size_is_checked(root):
    with pytest.raises(ValueError, match="val_size: expected an int >= 0, received -1"):
        MNISTDataModule(val_size=-1)
    with pytest.raises(
        ValueError, match="val_size: expected an int below 40, the number of training images, received 40"
    ):
        MNISTDataModule(root=str(root), val_size=40).setup()
