import math

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from fisherkernels.training import VAE, FisherNet

D, LATENT, VARIANCE = 5, 2, 0.5


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z + b, variance I) with orthogonal columns of W: the posterior is diagonal."""

    def __init__(self):
        torch.manual_seed(0)
        basis = torch.linalg.qr(torch.randn(D, LATENT, dtype=torch.float64)).Q
        self.weight = basis * torch.tensor([2.0, 0.7])  # [D, d]
        self.offset = torch.randn(D, dtype=torch.float64)
        precision = 1 + self.weight.square().sum(0) / VARIANCE
        self.std = precision.rsqrt()  # [d], of the posterior
        self.gain = self.weight.T / VARIANCE / precision[:, None]  # [d, D]: mean = gain (x - b)

    def data(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        z, noise = (torch.randn(n, k, dtype=torch.float64, generator=generator) for k in (LATENT, D))
        return z @ self.weight.T + self.offset + math.sqrt(VARIANCE) * noise

    def nll(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + VARIANCE * torch.eye(D, dtype=torch.float64)
        return -torch.distributions.MultivariateNormal(self.offset, covariance).log_prob(x)

    def _decoder(self) -> nn.Module:
        decoder = nn.Linear(LATENT, D).double()
        decoder.weight.data, decoder.bias.data = self.weight, self.offset
        return decoder

    def vae(self, shift: float = 0.0, stretch: float = 1.0) -> VAE:
        """q(z|x) has the posterior's mean plus `shift` and its standard deviation times `stretch`."""
        encoder = nn.Linear(D, 2 * LATENT).double()
        encoder.weight.data = torch.cat([self.gain, torch.zeros_like(self.gain)])
        log_std = (self.std * stretch).log()
        encoder.bias.data = torch.cat([shift - self.gain @ self.offset, log_std])
        return VAE(encoder, self._decoder(), LATENT, likelihood="gaussian", variance=VARIANCE).double().eval()

    def fisher_net(self) -> FisherNet:
        encoder = nn.Linear(D, LATENT).double()
        encoder.weight.data, encoder.bias.data = self.gain, -self.gain @ self.offset
        options = {"variance": VARIANCE, "dataset_size": 10, "method": "cholesky"}
        return FisherNet(encoder, self._decoder(), LATENT, **options).double().eval()

    def kl(self, shift: float, stretch: float) -> Tensor:
        """KL(q || posterior), for every x the same."""
        scaled = torch.tensor(shift).div(self.std).square() + stretch**2 - 1 - 2 * math.log(stretch)
        return 0.5 * scaled.sum()


@pytest.fixture
def linear():
    return LinearGaussian()


@pytest.fixture
def trainer(tmp_path):
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      default_root_dir=tmp_path / "run")  # fmt: skip
