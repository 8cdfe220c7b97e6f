"""The variational auto-encoder as a LightningModule: the baseline beside the Fisher AE."""

from typing import Literal

import torch
from torch import Tensor, nn

from fisherkernels import losses
from fisherkernels.training.diagonal import DiagonalAutoEncoder


class VAE(DiagonalAutoEncoder):
    """Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014): Adam on :func:`fk.elbo_loss`.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate,
            betas, seed: see :class:`AutoEncoder`; the variance belongs to the Gaussian likelihood.
        likelihood: ``gaussian``, ``bernoulli`` (the Fisher AE paper's VAE; the decoder gives probabilities) or
            ``bernoulli_logits``.
        beta: weight of the KL divergence.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 8,
        *,
        likelihood: Literal["gaussian", "bernoulli", "bernoulli_logits"] = "bernoulli",
        beta: float = 1.0,
        num_samples: int = 1,
        variance: float = 1.0,
        learn_variance: bool = False,
        learning_rate: float = 2e-4,
        variance_learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ):
        super().__init__(
            encoder,
            decoder,
            latent_dim,
            num_samples=num_samples,
            variance=variance,
            learn_variance=learn_variance,
            learning_rate=learning_rate,
            variance_learning_rate=variance_learning_rate,
            betas=betas,
            seed=seed,
        )
        if likelihood != "gaussian" and (learn_variance or variance != 1.0):
            name, value = ("learn_variance", True) if learn_variance else ("variance", variance)
            raise ValueError(f"{name}: expected likelihood='gaussian' with {name}={value}, received {likelihood!r}")
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.likelihood = likelihood
        self.beta = beta

    def loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        return losses.elbo_loss(
            self.encoder,
            self.decoder,
            x,
            beta=self.beta,
            likelihood=self.likelihood,
            variance=self.variance if self.likelihood == "gaussian" else 1.0,
            num_samples=self.num_samples,
            noise=noise,
        )

    def decode(self, z: Tensor) -> Tensor:
        mean = self.decoder(z)
        return mean.sigmoid() if self.likelihood == "bernoulli_logits" else mean

    def draw_latent(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, self.latent_dim, generator=generator).to(self.device)
