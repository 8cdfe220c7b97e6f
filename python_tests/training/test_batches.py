import itertools

import pytest
import torch

from fisherkernels.training import BatchLoader, ImageDataset


@pytest.fixture
def dataset():
    return ImageDataset(torch.arange(23 * 4, dtype=torch.uint8).view(23, 1, 2, 2), torch.arange(23), 255)


def labels(loader):
    return [batch[1].tolist() for batch in loader]


def test_images_are_scaled(dataset):
    images, numbers = dataset[torch.tensor([22, 0])]
    assert images.dtype == torch.float32 and images.shape == (2, 1, 2, 2)
    assert torch.equal(images[0].flatten() * 255, torch.tensor([88.0, 89.0, 90.0, 91.0]))
    assert numbers.tolist() == [22, 0]
    assert dataset.shape == (1, 2, 2) and len(dataset[:][0]) == 23


def test_dataset_checks_its_shapes():
    with pytest.raises(ValueError, match=r"got images \[3, 4\] and labels \[3\]"):
        ImageDataset(torch.zeros(3, 4), torch.zeros(3), 1)


def test_order_is_a_function_of_seed_and_epoch(dataset):
    def epochs(seed):
        loader = BatchLoader(dataset, 5, shuffle=True, seed=seed)
        return [labels(loader) for _ in range(3)]

    first = epochs(1)
    assert first == epochs(1)
    assert all(a != b for a, b in itertools.combinations([*first, epochs(2)[0]], 2))
    for epoch in first:
        assert [len(batch) for batch in epoch] == [5] * 4
        assert len(set(sum(epoch, []))) == 20


def test_position_continues_an_epoch(dataset):
    whole = BatchLoader(dataset, 5, shuffle=True, seed=1)
    epochs = [labels(whole) for _ in range(3)]
    resumed = BatchLoader(dataset, 5, shuffle=True, seed=1, position=lambda: (2, 3))
    assert labels(resumed) == epochs[2][3:]
    assert len(resumed) == len(whole) == 4


def test_position_is_asked_when_the_first_batch_is(dataset):
    position = [0, 0]
    batches = iter(BatchLoader(dataset, 5, shuffle=True, position=lambda: tuple(position)))
    position[:] = 7, 2
    assert len(list(batches)) == 2


def test_evaluation_keeps_order_and_the_short_batch(dataset):
    loader = BatchLoader(dataset, 5)
    assert sum(labels(loader), []) == list(range(23))
    assert len(loader) == len(labels(loader)) == 5


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_out_the_samples(dataset, shuffle):
    ranks = [BatchLoader(dataset, 5, shuffle=shuffle, rank=rank, world_size=2) for rank in range(2)]
    seen = [labels(loader) for loader in ranks]
    assert [len(epoch) for epoch in seen] == [len(loader) for loader in ranks]
    flat = [sum(epoch, []) for epoch in seen]
    assert not set(flat[0]) & set(flat[1])
    if shuffle:
        assert [len(batch) for epoch in seen for batch in epoch] == [5] * 4
    else:
        assert sorted(flat[0] + flat[1]) == list(range(23))


def test_bad_batch_size(dataset):
    with pytest.raises(ValueError, match="batch_size: expected an int >= 1, received 0"):
        BatchLoader(dataset, 0)
    with pytest.raises(ValueError, match="batch_size 12 is more than the 11 training samples of one rank"):
        BatchLoader(dataset, 12, shuffle=True, world_size=2)
