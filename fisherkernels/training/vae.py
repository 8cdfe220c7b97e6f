"""The variational auto-encoder as a LightningModule: the baseline beside the Fisher AE."""

from typing import Literal

from torch import Tensor, nn

from fisherkernels import losses
from fisherkernels.checks import check_number
from fisherkernels.training.diagonal import DiagonalAutoEncoder


class VAE(DiagonalAutoEncoder):
    """Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014): Adam on :func:`fk.elbo_loss`.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate,
            betas, seed: see :class:`AutoEncoder`; the variance belongs to the Gaussian likelihood.
        likelihood: ``gaussian``, ``bernoulli`` (the Fisher AE paper's VAE; the decoder gives probabilities) or
            ``bernoulli_logits``.
        beta: weight of the KL divergence, >= 0; other than 1 it is the beta-VAE (Higgins et al., ICLR 2017).
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
            likelihood=likelihood,
            variance=variance,
            learn_variance=learn_variance,
            learning_rate=learning_rate,
            variance_learning_rate=variance_learning_rate,
            betas=betas,
            seed=seed,
        )
        check_number("beta", beta)
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.beta = beta

    def loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        return losses.elbo_loss(
            self.encoder,
            self.decoder,
            x,
            beta=self.beta,
            likelihood=self.likelihood,
            variance=self.likelihood_variance,
            num_samples=self.num_samples,
            noise=noise,
        )
