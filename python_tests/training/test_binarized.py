import pytest
import torch

from fisherkernels.training import BinarizedMNISTDataModule, MNISTDataModule, ReversedMNISTDataModule
from fisherkernels.training.binarized import binarize


def test_each_pixel_is_one_with_its_grey_value_as_probability():
    grey = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).repeat(50_000, 1)
    binary = binarize(grey, torch.Generator().manual_seed(0))
    assert binary.dtype == torch.uint8 and set(binary.unique().tolist()) == {0, 1}
    share = binary.float().mean(0)
    assert share[0] == 0 and share[3] == 1
    assert share[1:3].tolist() == pytest.approx([0.2, 128 / 255], abs=0.01)


def test_the_draws_are_the_same_in_every_run_and_the_order_is_kept(root):
    sets = []
    for seed in (0, 1):
        data = BinarizedMNISTDataModule(str(root), batch_size=8, val_size=10, seed=seed)
        data.setup()
        sets.append((data.train_set, data.val_set, data.test_set))
    for first, second in zip(*sets, strict=True):
        assert torch.equal(first.raw, second.raw)
        assert set(first[:][0].unique().tolist()) == {0.0, 1.0}
    train_set, val_set, test_set = sets[0]
    assert [len(part) for part in sets[0]] == [30, 10, 12]
    assert train_set.labels.tolist() == [i % 10 for i in range(30)]
    assert val_set.labels.tolist() == list(range(10))

    grey = MNISTDataModule(str(root), val_size=0)
    grey.setup()
    assert (test_set.raw <= grey.test_set.raw).all()  # black stays black
    assert abs(test_set[:][0].mean() - grey.test_set[:][0].mean()) < 0.02


def test_reversed_mnist_counts_its_digits(root):
    data = ReversedMNISTDataModule(str(root), batch_size=2, val_size=10, zeros=4, others=1)
    data.setup()
    assert data.train_set.labels.tolist() == [0, 0, 0, 0, *range(1, 10)]
    like = BinarizedMNISTDataModule(str(root), val_size=10)
    like.setup()
    assert torch.equal(data.test_set.raw, like.test_set.raw)
    assert torch.equal(data.train_set.raw[:3], like.train_set.raw[[0, 10, 20]])
    assert torch.equal(data.train_set.raw[3], like.val_set.raw[0])  # of all training images, and then not validated on
    assert torch.equal(data.val_set.raw, like.val_set.raw[1:]) and data.val_set.labels.tolist() == list(range(1, 10))


def test_bad_counts_are_named(root):
    with pytest.raises(ValueError, match="zeros: expected an int >= 0, received -1"):
        ReversedMNISTDataModule(zeros=-1)
    with pytest.raises(ValueError, match="others: expected at most 4, the images of the digit 1, received 5"):
        ReversedMNISTDataModule(str(root), val_size=10, zeros=4, others=5).setup()
