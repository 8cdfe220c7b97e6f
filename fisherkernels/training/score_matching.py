"""Variational score matching as a LightningModule."""

from typing import Literal

import torch
from torch import Tensor, nn

from fisherkernels import losses
from fisherkernels.checks import check_choice
from fisherkernels.training import bilevel, seeds
from fisherkernels.training.batches import unpack
from fisherkernels.training.diagonal import DiagonalAutoEncoder
from fisherkernels.training.manual import update

OBJECTIVES = ("m1", "m2", "m3", "elbo", "joint_fd")


class ScoreMatching(DiagonalAutoEncoder):
    """Algorithm 1 of Wenliang, "On the failure of variational score matching for VAE models": J updates of the encoder
    for each update of the decoder and its variance, by Adam optimisers of their own.

    Every training batch updates the encoder once, on :func:`fk.inference_loss`; every J-th then updates the decoder,
    with new noise, on :func:`fk.score_matching_loss`. A step is a batch: an epoch has one J-th as many updates of the
    decoder.

    Args:
        encoder, decoder, latent_dim, num_samples, variance, learn_variance, variance_learning_rate, betas, seed: see
            :class:`AutoEncoder`; num_samples is S, of both losses.
        objective: what the decoder minimises: ``m1``, ``m2`` or ``m3``; for comparison ``elbo``, the negative evidence
            lower bound, or ``joint_fd``, the joint Fisher divergence of the Fisher auto-encoder, which the encoder then
            minimises too.
        divergence: what the encoder minimises, ``kl`` or ``fisher``; ignored with ``joint_fd``.
        reparametrize: see :func:`fk.inference_loss`; None is the paper's choice, true for ``kl``, false for ``fisher``.
        unbiased: see :func:`fk.score_matching_loss`.
        encoder_updates: J, >= 1.
        bilevel_steps: K, >= 1: the decoder's gradient goes also through K further steps of the encoder, plain gradient
            steps that are taken for this purpose only (Bao et al., NeurIPS 2020); None takes none. For m1, m2 and m3.
        bilevel_step_size: of those.
        learning_rate: of the decoder.
        encoder_learning_rate: of the encoder; None is the decoder's.

    The logged loss is the decoder's, with its terms; those of the encoder's loss are ``train/inference_...``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 2,
        *,
        objective: Literal["m1", "m2", "m3", "elbo", "joint_fd"] = "m1",
        divergence: Literal["kl", "fisher"] = "kl",
        reparametrize: bool | None = None,
        unbiased: bool = False,
        encoder_updates: int = 1,
        bilevel_steps: int | None = None,
        bilevel_step_size: float = 1e-3,
        num_samples: int = 5,
        variance: float = 1.0,
        learn_variance: bool = True,
        learning_rate: float = 1e-4,
        encoder_learning_rate: float | None = None,
        variance_learning_rate: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
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
        check_choice("objective", objective, OBJECTIVES)
        check_choice("divergence", divergence, ("kl", "fisher"))
        if divergence == "kl" and reparametrize is False:
            raise ValueError("reparametrize: expected None or True with divergence='kl', received False")
        for name, value in (("encoder_updates", encoder_updates), ("bilevel_steps", bilevel_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an int >= 1, received {value}")
        if bilevel_steps is not None and objective not in bilevel.OBJECTIVES:
            raise ValueError(f"bilevel_steps: expected None with objective={objective!r}, received {bilevel_steps}")
        if unbiased and num_samples < 2:
            raise ValueError(f"num_samples: expected an int >= 2 with unbiased=True, received {num_samples}")
        for name, value in (("bilevel_step_size", bilevel_step_size), ("encoder_learning_rate", encoder_learning_rate)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number > 0, received {value}")
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.automatic_optimization = False
        self.objective = objective
        self.divergence = divergence
        self.reparametrize = divergence == "kl" if reparametrize is None else reparametrize
        self.unbiased = unbiased
        self.encoder_updates = encoder_updates
        self.bilevel_steps = bilevel_steps
        self.bilevel_step_size = bilevel_step_size
        self.encoder_learning_rate = learning_rate if encoder_learning_rate is None else encoder_learning_rate

    def loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        """What the decoder minimises."""
        common = {"variance": self.variance, "num_samples": self.num_samples, "noise": noise}
        if self.objective == "elbo":
            return losses.elbo_loss(self.encoder, self.decoder, x, **common)
        if self.objective == "joint_fd":
            return losses.fisher_ae_loss(self.encoder, self.decoder, x, **common)
        return losses.score_matching_loss(
            self.encoder, self.decoder, x, objective=self.objective, unbiased=self.unbiased, **common
        )

    def inference_loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        """What the encoder minimises."""
        if self.objective == "joint_fd":
            return self.loss(x, noise)
        return losses.inference_loss(
            self.encoder,
            self.decoder,
            x,
            divergence=self.divergence,
            reparametrize=self.reparametrize,
            variance=self.variance,
            num_samples=self.num_samples,
            noise=noise,
        )

    def bilevel_loss(self, x: Tensor, noise: Tensor) -> losses.LossOutput:
        """What the decoder minimises, as a function of it through K further steps of the encoder; noise [K + 1, L, N,
        d], of those steps and then of the loss.
        """
        return bilevel.bilevel_loss(
            self.encoder,
            self.decoder,
            x,
            noise,
            step_size=self.bilevel_step_size,
            objective=self.objective,
            unbiased=self.unbiased,
            divergence=self.divergence,
            reparametrize=self.reparametrize,
            variance=self.variance,
        )

    def training_step(self, batch, batch_idx: int) -> None:
        x, step, place = unpack(batch)[0], self.global_step, self._place(seeds.TRAIN, batch_idx)
        is_logged, stream = self._is_logged(batch_idx), self._stream(seeds.TRAIN, batch_idx)
        encoder_optimizer, decoder_optimizer = self.optimizers()
        inference_noise, *bilevel_noise = self._more_noise(x, stream)
        inference = self._checked(self.inference_loss, x, inference_noise, place)
        update(self, encoder_optimizer, inference.loss, counted=True)

        updates_decoder = (step + 1) % self.encoder_updates == 0
        if not (updates_decoder or is_logged):
            return
        loss, noise = self.loss, self.draw_noise(x, seeds.generator(*stream))
        if updates_decoder and self.bilevel_steps is not None:
            loss, noise = self.bilevel_loss, torch.stack([*bilevel_noise, noise])
        with torch.set_grad_enabled(updates_decoder):
            output = self._checked(loss, x, noise, place)
        self.log("train/loss", output.loss.detach(), prog_bar=True, logger=False)
        if is_logged:
            terms = {f"inference_{name}": term for name, term in inference.terms.items()}
            self._log_training_row(output.loss, {**output.terms, **terms}, step)
        if updates_decoder:
            update(self, decoder_optimizer, output.loss, counted=False)

    def _more_noise(self, x: Tensor, stream: tuple[int, ...]) -> list[Tensor]:
        """What ``draw_noise`` gives for the encoder's update, and for the K further steps where there are any."""
        return [self.draw_noise(x, seeds.generator(*stream, 2 + i)) for i in range(1 + (self.bilevel_steps or 0))]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            self._adam(list(self.encoder.parameters()), self.encoder_learning_rate),
            self._adam([*self.decoder.parameters(), self.log_variance], self.learning_rate),
        ]
