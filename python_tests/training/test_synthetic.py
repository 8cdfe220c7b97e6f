import pytest
import torch

from fisherkernels.training import SyntheticDataModule, synthetic_points
from fisherkernels.training.synthetic import SYNTHETIC_SETS

N = 4000


@pytest.mark.parametrize("name", SYNTHETIC_SETS)
@pytest.mark.parametrize("n", [1, 7, N])
def test_points_follow_the_seed(name, n):
    points, labels = synthetic_points(name, n, seed=3)
    assert points.shape == (n, 2) and points.dtype == torch.float32 and labels.shape == (n,)
    again = synthetic_points(name, n, seed=3)
    assert torch.equal(points, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(points, synthetic_points(name, n, seed=4)[0])


@pytest.mark.parametrize("name", SYNTHETIC_SETS)
def test_points_lie_around_the_origin(name):
    points, labels = synthetic_points(name, N)
    assert points.mean(0).abs().max() < 0.3 and points.abs().max() < 7
    assert 1 < points.std(0).min() and points.std(0).max() < 4
    counts = labels.bincount()
    assert counts.min() > 0.8 * N / len(counts)


def test_shapes():
    points, labels = synthetic_points("rings", N)
    radius = points.norm(dim=1)
    assert radius[labels == 0].mean() == pytest.approx(4, abs=0.04)
    assert radius[labels == 1].mean() == pytest.approx(2, abs=0.04)
    assert radius[labels == 0].std() == pytest.approx(0.2, abs=0.02)

    points, labels = synthetic_points("star", N)
    angle = torch.atan2(points[:, 1], points[:, 0])
    far = points.norm(dim=1) > 2
    fold = torch.remainder(angle[far] - torch.pi / 2, 2 * torch.pi / 5)
    off = torch.minimum(fold, 2 * torch.pi / 5 - fold)
    assert off.max() < 0.6 and off.mean() < 0.1  # only along the spikes
    assert len(labels.unique()) == 5

    points, labels = synthetic_points("gaussians", N)
    centres = torch.stack([points[labels == i].mean(0) for i in range(8)])
    assert centres.norm(dim=1).tolist() == pytest.approx([4.0] * 8, abs=0.1)
    assert (points - centres[labels]).std(0).tolist() == pytest.approx([0.3] * 2, abs=0.02)

    points, labels = synthetic_points("spirals", N)
    expected = 3 * torch.pi * points.norm(dim=1) / 4 + torch.pi * labels
    direction = torch.stack([expected.cos(), expected.sin()], dim=1)
    outer = points.norm(dim=1) > 2
    cosine = (points * direction).sum(1)[outer] / points.norm(dim=1)[outer]
    assert cosine.mean() > 0.9

    points, labels = synthetic_points("moons", N)
    centres = 3 * (torch.tensor([[0.0, 0.0], [1.0, 0.5]]) - torch.tensor([0.5, 0.25]))
    radius = (points - centres[labels]).norm(dim=1)
    assert radius.mean() == pytest.approx(3, abs=0.06) and radius.std() == pytest.approx(0.3, abs=0.04)


def test_parts_are_independent_and_do_not_depend_on_the_order_seed():
    sets = []
    for seed in (0, 1):
        data = SyntheticDataModule("moons", batch_size=50, train_size=200, val_size=100, test_size=150, seed=seed)
        data.setup()
        sets.append([part[:][0] for part in (data.train_set, data.val_set, data.test_set)])
    assert [len(part) for part in sets[0]] == [200, 100, 150]
    assert all(torch.equal(a, b) for a, b in zip(*sets, strict=True))
    assert len(torch.unique(torch.cat(sets[0]), dim=0)) == 450
    x, labels = next(iter(data.train_dataloader()))
    assert x.shape == (50, 2) and labels.shape == (50,)
    other = SyntheticDataModule("moons", train_size=200, data_seed=1)
    other.setup()
    assert not torch.equal(other.train_set[:][0], sets[0][0])


def test_unknown_names_list_the_known_ones():
    known = "'rings', 'moons', 'spirals', 'star', 'gaussians'"
    for make in (SyntheticDataModule, lambda name: synthetic_points(name, 5)):
        with pytest.raises(ValueError, match=f"name: expected one of {known}, received 'circles'"):
            make("circles")
    with pytest.raises(ValueError, match="n: expected an int >= 1, received 0"):
        synthetic_points("star", 0)
    with pytest.raises(ValueError, match="val_size: expected an int >= 1, received 0"):
        SyntheticDataModule(val_size=0)
