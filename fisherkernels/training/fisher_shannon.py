"""The Fisher-Shannon auto-encoder as a LightningModule."""

from typing import Literal

import torch
from torch import Tensor, nn

from fisherkernels import losses
from fisherkernels.checks import check_choice, check_number
from fisherkernels.training.diagonal import DiagonalAutoEncoder


class FisherShannon(DiagonalAutoEncoder):
    """Zheng et al., "Understanding VAEs in Fisher-Shannon Plane" (2018): Adam on :func:`fk.fisher_shannon_loss`, a VAE
    whose Fisher information is held at given values.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate,
            betas, seed: see :class:`AutoEncoder`; the variance belongs to the Gaussian likelihood.
        lambda_z, f_z: weight of the encoder's control, and the Fisher information it asks for: one number, or one for
            each of the d latent coordinates.
        lambda_x, f_x: those of the decoder; one number.
        estimator, per_dimension: see :func:`fk.fisher_shannon_loss`.
        likelihood: ``gaussian``, ``bernoulli`` (the decoder gives probabilities) or ``bernoulli_logits``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 40,
        *,
        lambda_z: float = 1.0,
        f_z: float | list[float] = 0.0,
        lambda_x: float = 0.0,
        f_x: float = 0.0,
        estimator: Literal["analytic", "sampled"] = "analytic",
        per_dimension: bool = True,
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
        check_choice("estimator", estimator, ("analytic", "sampled"))
        several = isinstance(f_z, (list, tuple))
        if several and len(f_z) != latent_dim:
            raise ValueError(f"f_z: expected a number or {latent_dim} of them, latent_dim, received {len(f_z)}")
        for name, values in (("lambda_z", [lambda_z]), ("f_z", f_z if several else [f_z]), ("lambda_x", [lambda_x]),
                             ("f_x", [f_x])):  # fmt: skip
            for value in values:
                check_number(name, value)
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.lambda_z = lambda_z
        self.lambda_x = lambda_x
        self.f_x = f_x
        self.register_buffer("f_z", torch.tensor(f_z, dtype=self.log_variance.dtype), persistent=False)
        self.estimator = estimator
        self.per_dimension = per_dimension

    def loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        return losses.fisher_shannon_loss(
            self.encoder,
            self.decoder,
            x,
            lambda_z=self.lambda_z,
            f_z=self.f_z,
            lambda_x=self.lambda_x,
            f_x=self.f_x,
            estimator=self.estimator,
            per_dimension=self.per_dimension,
            likelihood=self.likelihood,
            variance=self.likelihood_variance,
            num_samples=self.num_samples,
            noise=noise,
        )
