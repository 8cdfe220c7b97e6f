import pytest
import torch

from fisherkernels.report import latent


class Flat:
    def encode(self, x):
        return x.flatten(1), torch.zeros(len(x), x[0].numel())


@pytest.fixture
def clusters():
    """Three far groups of 20 points in the plane, shape [60, 1, 1, 2], with their labels."""
    labels = torch.arange(60) % 3
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    return (centres[labels] + 0.1 * torch.randn(60, 2)).view(60, 1, 1, 2), labels


def test_nmi_is_one_for_clusters_that_are_the_classes(clusters):
    points, labels = clusters
    assert latent.clustering_nmi(points.flatten(1), labels) == pytest.approx(1.0)


def test_nmi_by_hand():
    # Two clusters {0, 1, 2}, {3} against classes (0, 0, 1, 1): I = 3/4 log 4/3 - 1/2 log 2 + ... from the counts.
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    labels = torch.tensor([0, 0, 1, 1])
    joint = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double() / 4  # cluster x class
    cluster, klass = joint.sum(1), joint.sum(0)
    information = torch.special.xlogy(joint, joint / (cluster[:, None] * klass)).sum()
    entropies = torch.special.entr(cluster).sum() + torch.special.entr(klass).sum()
    assert latent.clustering_nmi(points, labels) == pytest.approx((2 * information / entropies).item())


def test_nmi_falls_with_noise(clusters):
    curve = latent.nmi_curve(Flat(), *clusters, (0.0, 1.0, 400.0), num_draws=2)
    assert curve.shape == (3, 2)
    mean = curve.mean(dim=1)
    assert mean[0] == pytest.approx(1.0) and mean[1] > 0.9 and mean[2] < 0.4


def test_embedding_keeps_far_groups_apart_and_repeats(clusters):
    points, labels = clusters
    plane = latent.embed(points.flatten(1))
    assert plane.shape == (60, 2) and plane.abs().max() == pytest.approx(1.0)
    assert torch.equal(plane, latent.embed(points.flatten(1)))
    centres = torch.stack([plane[labels == c].mean(dim=0) for c in range(3)])
    spread = max((plane[labels == c] - centres[c]).norm(dim=1).mean() for c in range(3))
    assert torch.pdist(centres).min() > 3 * spread


def test_embedding_takes_at_most_max_points():
    assert latent.embed(torch.randn(30, 4), max_points=12).shape == (12, 2)
