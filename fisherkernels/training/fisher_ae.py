"""The Fisher auto-encoder as a LightningModule."""

from typing import Literal

import torch
from torch import Tensor, nn

from fisherkernels import losses, priors
from fisherkernels.training.diagonal import DiagonalAutoEncoder


class FisherAE(DiagonalAutoEncoder):
    """Algorithm 1 of Elkhalil et al., "Fisher Auto-Encoders" (AISTATS 2021): Adam on :func:`fk.fisher_ae_loss`.

    The defaults are the paper's: exponential-family prior of order K = 5, decoder variance fixed at 1, full gradient of
    eq. 11, learning rate 2e-4.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate,
            betas, seed: see :class:`AutoEncoder`.
        prior: ``polynomial`` (log p(z) = sum_jk eta_jk z_j^k + const, learned) or ``standard_normal``.
        prior_order: K.
        prior_constraint: ``none`` (the paper's; not a proper density for odd K) or ``normalizable`` (even K only).
        decoder_gradient: ``full`` or ``stopped``, see :func:`fk.fisher_ae_loss`.
        stability: ``posterior``, ``log_std`` or ``none``, see :func:`fk.fisher_ae_loss`.

    An unconstrained polynomial prior is fitted only where the codes lie and may have most of its mass far from there:
    ``sample`` draws from it truncated, per coordinate, to ``code_range`` [d, 2], the range of the posterior means of
    the validation data (the prior's own truncation before the first validation).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 8,
        *,
        prior: Literal["polynomial", "standard_normal"] = "polynomial",
        prior_order: int = 5,
        prior_constraint: Literal["none", "normalizable"] = "none",
        decoder_gradient: Literal["full", "stopped"] = "full",
        stability: Literal["posterior", "log_std", "none"] = "posterior",
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
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        if prior == "polynomial":
            self.prior = priors.PolynomialExponentialFamily(latent_dim, prior_order, prior_constraint)
        else:
            self.prior = priors.StandardNormal(latent_dim)
        self.decoder_gradient = decoder_gradient
        self.stability = stability
        self.register_buffer("code_range", torch.full((latent_dim, 2), torch.nan))

    def loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        return losses.fisher_ae_loss(
            self.encoder,
            self.decoder,
            x,
            prior=self.prior,
            decoder_gradient=self.decoder_gradient,
            stability=self.stability,
            variance=self.variance,
            num_samples=self.num_samples,
            noise=noise,
        )

    @property
    def truncates_prior(self) -> bool:
        """Whether ``sample`` cuts the prior to the range of the codes."""
        return isinstance(self.prior, priors.PolynomialExponentialFamily) and self.prior.constraint == "none"

    def on_validation_epoch_start(self) -> None:
        self._codes_seen = []

    def _codes(self, name: str, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, z = super()._codes(name, x, noise)
        if name == "val" and self.truncates_prior:
            self._codes_seen.append(torch.stack([mean.amin(0), mean.amax(0)]))  # [2, d]
        return mean, z

    def on_validation_epoch_end(self) -> None:
        if self._codes_seen:
            seen = self.all_gather(torch.stack(self._codes_seen)).view(-1, 2, self.latent_dim)
            self.code_range.copy_(torch.stack([seen[:, 0].amin(0), seen[:, 1].amax(0)], dim=1))

    @property
    def has_standard_normal_prior(self) -> bool:
        return isinstance(self.prior, priors.StandardNormal)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [..., d] -> [...].

        Its constant makes the density one on the interval from which ``sample`` draws. An unconstrained polynomial is
        no density beyond that, and the formula goes on: measures taken with such a prior then are those of no model.
        """
        if self.has_standard_normal_prior:
            return super().log_prior(z)
        return self.prior.log_density(z) - self.prior.log_normalizer(self.prior_interval())

    def prior_score(self, z: Tensor) -> Tensor:
        return self.prior.score(z)

    def draw_latent(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.prior.sample(n, generator=generator, interval=self.prior_interval()).to(self.device)

    def prior_interval(self) -> Tensor | None:
        """Outer ends [d, 2] of the prior's truncation; None leaves them to the prior."""
        if not (self.truncates_prior and torch.isfinite(self.code_range).all()):
            return None
        low, high = self.code_range.cpu().unbind(1)
        return torch.stack([low, torch.maximum(high, low + 1e-6 * (1 + low.abs()))], dim=1)
