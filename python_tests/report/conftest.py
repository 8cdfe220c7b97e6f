import pytest
import torch

from fisherkernels.report.evaluation import Contender, evaluate


class Shrinking:
    """A stand-in model: answers ``scale * x + offset``; its code is the flattened image."""

    def __init__(self, scale=1.0, offset=0.0):
        self.scale, self.offset = scale, offset

    def eval(self):
        return self

    def reconstruct(self, x):
        return self.scale * x + self.offset

    def encode(self, x):
        mean = self.scale * x.flatten(1)
        return mean, torch.zeros_like(mean)

    def sample(self, n, generator=None):
        return torch.rand(n, 1, 4, 4, generator=generator)


@pytest.fixture(scope="session")
def stand_in():
    """The class of the stand-in models."""
    return Shrinking


@pytest.fixture(scope="session")
def images():
    return torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def labels():
    return torch.arange(24) % 3


@pytest.fixture(scope="session")
def small_evaluation(images, labels):
    """evaluate(Fisher AEs, VAEs) -> (contender, contender, Evaluation) on few images, draws and noise levels."""

    def make(fisher_ae, vae):
        contenders = Contender("Fisher AE", fisher_ae), Contender("VAE", vae)
        options = dict(variances=(0.0, 0.1, 0.4), shown_variances=(0.1,), num_draws=2, num_nmi_draws=1, num_samples=10)
        return *contenders, evaluate(*contenders, images, labels, images, **options)

    return make
