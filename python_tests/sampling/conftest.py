import functools
import importlib

import pytest
import torch

from fisherkernels.sampling import fit_density

NEEDS = {"flow": "zuko", "mkde": "nifty.cl"}
FAST = {  # options that make the slow kinds quick: enough to see two clusters, and hardly fitted at all
    "flow": ({"steps": 150, "learning_rate": 1e-2, "num_transforms": 2}, {"steps": 3}),
    "mkde": (
        {"num_cells": 24, "num_iterations": 2, "num_posterior_samples": 1},
        {"num_cells": 8, "num_iterations": 1, "num_posterior_samples": 1},
    ),
}


def require(kind):
    """Skips where the library of that kind of density is not installed."""
    if kind in NEEDS:
        try:
            importlib.import_module(NEEDS[kind])
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")


def two_clusters(n, d, seed):
    """n points [n, d], half of them around each of two points that lie 8 standard deviations apart in coordinate 0."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    points[:, 0] += 8 * (torch.rand(n, generator=generator) < 0.5)
    return points


@functools.cache
def fit_clusters(kind, d):
    """A density of 400 points of the two clusters."""
    require(kind)
    return fit_density(two_clusters(400, d, 0), kind, **FAST.get(kind, ({},))[0])


@pytest.fixture
def fitted():
    return fit_clusters


@pytest.fixture
def fit_briefly():
    """fit(means, kind, **options), hardly trained."""

    def fit(means, kind, **options):
        require(kind)
        return fit_density(means, kind, **options, **FAST.get(kind, ({},))[-1])

    return fit


@pytest.fixture
def needs():
    return require


@pytest.fixture
def clusters():
    return two_clusters
