"""The mutual auto-encoder as a LightningModule."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from fisherkernels import losses
from fisherkernels.checks import check_number
from fisherkernels.training.diagonal import DiagonalAutoEncoder


class MutualAE(DiagonalAutoEncoder):
    """Phuong et al., "The Mutual Autoencoder" (2018), the baseline of :class:`FisherShannon`: Adam on
    :func:`fk.mutual_ae_loss`, a VAE whose mutual information is held at a given value.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate,
            betas, seed: see :class:`AutoEncoder`; the variance belongs to the Gaussian likelihood.
        weight: C, of the control.
        information: M, the mutual information it asks for, in nats.
        approximation: the net of r(z|x), from x to what the encoder gives, taken as it is; None: the encoder's layers
            with parameters of their own, started at the encoder's but for the last layer, which starts at 0.
        likelihood: ``gaussian``, ``bernoulli`` (the decoder gives probabilities) or ``bernoulli_logits``.

    Where the last layer of r is 0, r is the prior N(0, I) and the bound H(z) + E log r is 0 in expectation, the least
    that mutual information can be. A net with random outputs starts at hundreds of nats below that, 1/sigma^2 being
    exponential in them: the constraint's first gradients would then say nothing about the information, and outweigh
    the reconstruction's in the decoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 40,
        *,
        weight: float = 1.0,
        information: float = 0.0,
        approximation: nn.Module | None = None,
        likelihood: Literal["gaussian", "bernoulli", "bernoulli_logits"] = "bernoulli",
        num_samples: int = 1,
        variance: float = 1.0,
        learn_variance: bool = False,
        learning_rate: float = 1e-3,
        variance_learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        seed: int = 0,
    ):
        super().__init__(
            encoder,
            decoder,
            latent_dim,
            num_samples=num_samples,
            likelihood=likelihood,
            variance=variance,
            learn_variance=learn_variance,
            learning_rate=learning_rate,
            variance_learning_rate=variance_learning_rate,
            betas=betas,
            seed=seed,
        )
        for name, value in (("weight", weight), ("information", information)):
            check_number(name, value)
        self.save_hyperparameters(ignore=["encoder", "decoder", "approximation"], logger=False)
        self.weight = weight
        self.information = information
        self.approximation = started_at_prior(encoder) if approximation is None else approximation

    def loss(self, x: Tensor, noise: tuple[Tensor, Tensor, Tensor]) -> losses.LossOutput:
        return losses.mutual_ae_loss(
            self.encoder,
            self.decoder,
            x,
            approximation=self.approximation,
            weight=self.weight,
            information=self.information,
            likelihood=self.likelihood,
            variance=self.likelihood_variance,
            num_samples=self.num_samples,
            noise=noise,
        )

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Of the posterior and of the prior, each [L, N, d], and of the data [L, N, D]."""
        widths = (self.latent_dim, self.latent_dim, x.shape[1:].numel())
        return tuple(torch.randn(self.num_samples, len(x), width, generator=generator).to(x) for width in widths)

    def sample_posterior(self, x: Tensor, noise: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return super().sample_posterior(x, noise[0])

    def _codes(self, name: str, x: Tensor, noise: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return super()._codes(name, x, noise[0])


def started_at_prior(encoder: nn.Module) -> nn.Module:
    """A copy whose last linear or convolutional layer is 0: mean 0 and log_std 0, N(0, I), at every x."""
    net = copy.deepcopy(encoder)
    last = [module for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))][-1:]
    for parameter in (parameter for module in last for parameter in module.parameters()):
        nn.init.zeros_(parameter)
    return net
