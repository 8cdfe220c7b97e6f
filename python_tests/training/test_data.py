import numpy as np
import pytest
import torch

from fisherkernels.training import BatchLoader, DigitsDataModule, FashionMNISTDataModule, MNISTDataModule


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


def test_padding_is_zeros_around_the_image(root):
    options = {"root": str(root), "batch_size": 8, "val_size": 10}
    plain, padded = MNISTDataModule(**options), MNISTDataModule(**options, image_size=33)
    for data in (plain, padded):
        data.setup()
    images = padded.train_set[:][0]
    assert images.shape == (30, 1, 33, 33)
    assert torch.equal(images[..., 2:30, 2:30], plain.train_set[:][0])
    assert padded.train_set.raw.sum() == plain.train_set.raw.sum()


def test_noise_is_new_in_every_epoch_of_training_and_the_same_in_evaluation(root):
    def batches(loader):
        return torch.cat([x for x, _ in loader])

    data = MNISTDataModule(str(root), batch_size=10, val_size=10, image_size=32, noise_std=0.1, seed=1)
    data.setup()
    loader = data.train_dataloader()
    order = [loader.order(epoch) for epoch in range(2)]
    noise = [batches(loader) - data.train_set[order[epoch]][0] for epoch in range(2)]
    assert all(abs(draws.std() - 0.1) < 0.002 and abs(draws.mean()) < 0.002 for draws in noise)
    aligned = [draws[indices.argsort()] for draws, indices in zip(noise, order, strict=True)]
    assert (aligned[0] - aligned[1]).std() > 0.13
    assert len(torch.unique(aligned[0].flatten(1), dim=0)) == 30
    assert torch.equal(batches(data.train_dataloader()), noise[0] + data.train_set[order[0]][0])

    other = MNISTDataModule(str(root), batch_size=10, val_size=10, image_size=32, noise_std=0.1, seed=2)
    other.setup()
    loader = data.test_dataloader()
    assert torch.equal(batches(loader), batches(loader))
    assert torch.equal(batches(loader), batches(other.test_dataloader()))
    assert not torch.equal(batches(loader), data.test_set[:][0])


def test_noise_continues_in_mid_epoch(root):
    data = MNISTDataModule(str(root), batch_size=10, val_size=10, noise_std=0.1)
    data.setup()
    options = {"shuffle": True, "noise_std": 0.1}
    whole = list(BatchLoader(data.train_set, 10, **options, position=lambda: (4, 0)))
    rest = list(BatchLoader(data.train_set, 10, **options, position=lambda: (4, 2)))
    assert len(rest) == 1 and torch.equal(rest[0][0], whole[2][0])


def test_bad_padding_and_noise_are_named():
    with pytest.raises(ValueError, match="image_size: expected an int >= 28, received 27"):
        MNISTDataModule(image_size=27)
    with pytest.raises(ValueError, match="noise_std: expected a finite number >= 0, received -0.1"):
        MNISTDataModule(noise_std=-0.1)
