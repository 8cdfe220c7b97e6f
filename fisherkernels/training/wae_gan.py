"""The Wasserstein auto-encoder with a GAN penalty as a LightningModule."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisherkernels.checks import check_number
from fisherkernels.losses.output import LossOutput, reduce_terms
from fisherkernels.nets import LatentDiscriminator
from fisherkernels.training import seeds
from fisherkernels.training.autoencoder import AutoEncoder
from fisherkernels.training.batches import unpack
from fisherkernels.training.manual import update


class WAEGAN(AutoEncoder):
    r"""WAE-GAN, Algorithm 1 of Tolstikhin et al., "Wasserstein Auto-Encoders" (ICLR 2018): baseline of the Fisher AE.

    Encoder and decoder minimise, per image, :math:`\|x - G(E(x))\|^2 - \lambda \log D(E(x))`; the discriminator of
    latent vectors, before them in every step, :math:`-\log D(z) - \log(1 - D(E(x)))` with z from the prior. Adam for
    each.

    Args:
        encoder: x [N, ...] -> the code [N, d]: there is no posterior density. The encoders of ``fisherkernels.nets``
            give it with ``mean_only=True``.
        decoder, latent_dim, betas, seed: see :class:`AutoEncoder`.
        penalty_weight: lambda, >= 0; 10 is the paper's for MNIST.
        discriminator_hidden: widths of the discriminator's hidden layers.
        learning_rate: of encoder and decoder.
        discriminator_learning_rate: of the discriminator.

    The reconstruction term is a sum over pixels, without 1/2. ``train/discriminator`` is the discriminator's loss.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 8,
        *,
        penalty_weight: float = 10.0,
        discriminator_hidden: Sequence[int] = (256,),
        learning_rate: float = 1e-3,
        discriminator_learning_rate: float = 5e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ):
        super().__init__(
            encoder,
            decoder,
            latent_dim,
            num_samples=1,
            variance=1.0,
            learn_variance=False,
            learning_rate=learning_rate,
            variance_learning_rate=learning_rate,
            betas=betas,
            seed=seed,
        )
        check_number("penalty_weight", penalty_weight)
        check_number("discriminator_learning_rate", discriminator_learning_rate, positive=True)
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.automatic_optimization = False
        self.discriminator = LatentDiscriminator(latent_dim, discriminator_hidden)
        self.penalty_weight = penalty_weight
        self.discriminator_learning_rate = discriminator_learning_rate

    def encode_mean(self, x: Tensor) -> Tensor:
        return self._only_output(x, "code")

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Latent vectors [N, d] from the prior, for the discriminator."""
        return torch.randn(len(x), self.latent_dim, generator=generator).to(x)

    def sample_posterior(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.encode_mean(x)[None]

    def loss(self, x: Tensor, noise: Tensor) -> LossOutput:
        """What encoder and decoder minimise; there is no noise in it."""
        code = self.encode_mean(x)
        error = (x - self.decoder(code)).flatten(1)
        terms = {
            "reconstruction": error.square().sum(1),
            "adversarial": self.penalty_weight * F.softplus(-self.discriminator(code)),
        }
        return reduce_terms(terms, "mean")

    def discriminator_loss(self, x: Tensor, noise: Tensor) -> LossOutput:
        """What the discriminator minimises."""
        with torch.no_grad():
            code = self.encode_mean(x)
        value = F.softplus(-self.discriminator(noise)) + F.softplus(self.discriminator(code))
        return reduce_terms({"discriminator": value}, "mean")

    def training_step(self, batch, batch_idx: int) -> None:
        x, step, place = unpack(batch)[0], self.global_step, self._place(seeds.TRAIN, batch_idx)
        is_logged, noise = self._is_logged(batch_idx), self._noise(x, seeds.TRAIN, batch_idx)
        optimizer, discriminator_optimizer = self.optimizers()
        against = self._checked(self.discriminator_loss, x, noise, place)
        update(self, discriminator_optimizer, against.loss, counted=False)
        output = self._checked(self.loss, x, noise, place)
        self.log("train/loss", output.loss.detach(), prog_bar=True, logger=False)
        if is_logged:
            self._log_training_row(output.loss, {**output.terms, **against.terms}, step)
        update(self, optimizer, output.loss, counted=True)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        code = self.encode_mean(x)
        return {"mean": code, "reconstruction": self.decode(code)}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        nets = [*self.encoder.parameters(), *self.decoder.parameters()]
        discriminator = list(self.discriminator.parameters())
        return [
            self._adam(nets, self.learning_rate),
            self._adam(discriminator, self.discriminator_learning_rate),
        ]
