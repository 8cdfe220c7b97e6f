"""What the auto-encoders' LightningModules share: the steps, their noise, the logs and the optimiser."""

import math
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torchmetrics import MaxMetric, MeanMetric, MeanSquaredError

from fisherkernels import networks
from fisherkernels.checks import check_choice
from fisherkernels.losses import LossOutput
from fisherkernels.losses.elbo import LIKELIHOODS, negative_log_likelihood
from fisherkernels.training import seeds
from fisherkernels.training.batches import unpack
from fisherkernels.training.errors import NonFiniteLossError

Noise = Tensor | tuple[Tensor, ...]


class AutoEncoder(pl.LightningModule):
    """Base of all of them. Subclasses define the loss, the approximate posterior q(z|x) and, where it is not the
    standard normal, the prior.

    Args:
        encoder: x [N, ...] -> what the subclass needs.
        decoder: z [N, d] -> x's shape.
        latent_dim: d.
        num_samples: L, Monte-Carlo samples of z per data point.
        likelihood: ``gaussian``, ``bernoulli`` (the decoder gives probabilities) or ``bernoulli_logits``.
        variance: start value of the Gaussian decoder's variance, one scalar for all pixels.
        learn_variance: learn it, as a log-variance with its own learning rate.
        learning_rate: of the encoder, the decoder and the prior.
        variance_learning_rate: of the log-variance.
        betas: of Adam.
        seed: the noise of a step is a function of (seed, step, rank).

    Every logged term is a sum over pixels (or latent dimensions) and a mean over the samples of the batch. ``mse`` is a
    mean over pixels and images, between x and its reconstruction from the posterior mean; ``mse_sampled`` has the
    reconstructions from ``num_samples`` posterior samples instead. ``bce``, of the test set, is a mean too; it is left
    out where the data leave [0, 1].
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        *,
        num_samples: int,
        variance: float,
        learn_variance: bool,
        learning_rate: float,
        variance_learning_rate: float,
        betas: tuple[float, float],
        seed: int,
        likelihood: str = "gaussian",
    ):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"{name}: expected an int >= 1, received {value}")
        for name, value in (
            ("variance", variance),
            ("learning_rate", learning_rate),
            ("variance_learning_rate", variance_learning_rate),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number > 0, received {value}")
        check_choice("likelihood", likelihood, LIKELIHOODS)
        if likelihood != "gaussian" and (learn_variance or variance != 1.0):
            name, value = ("learn_variance", True) if learn_variance else ("variance", variance)
            raise ValueError(f"{name}: expected likelihood='gaussian' with {name}={value}, received {likelihood!r}")
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.num_samples = num_samples
        self.likelihood = likelihood
        self.learn_variance = learn_variance
        self.learning_rate = learning_rate
        self.variance_learning_rate = variance_learning_rate
        self.betas = tuple(betas)
        self.seed = seed
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)), requires_grad=learn_variance)
        self.errors = nn.ModuleDict(
            {f"{stage}_{name}": MeanSquaredError() for stage in ("val", "test") for name in ("mse", "mse_sampled")}
        )
        self.test_bce = MeanMetric()
        self.test_range = MaxMetric()  # of |x - 1/2|

    def loss(self, x: Tensor, noise: Noise) -> LossOutput:
        """The loss of a batch with the standard normal draws of ``draw_noise``."""
        raise NotImplementedError

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> Noise:
        """What ``loss`` and ``sample_posterior`` draw for a batch, on x's device."""
        raise NotImplementedError

    def encode_mean(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), [N, d]."""
        raise NotImplementedError

    def sample_posterior(self, x: Tensor, noise: Noise) -> Tensor:
        """The samples of q(z|x) that belong to the noise, [L, N, d]."""
        raise NotImplementedError

    def posterior(self, x: Tensor) -> Distribution | None:
        """q(z|x), N Gaussians over d dimensions; None where the encoder gives points and not densities."""
        return None

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        """What ``fisherkernels predict`` writes of a batch: ``mean``, ``reconstruction`` and the posterior's spread."""
        raise NotImplementedError

    def draw_latent(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n latent vectors [n, d] from the prior, on the module's device."""
        return torch.randn(n, self.latent_dim, generator=generator).to(self.device)

    @property
    def has_standard_normal_prior(self) -> bool:
        return True

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [..., d] -> [...]."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def prior_score(self, z: Tensor) -> Tensor:
        """Gradient of the log density of the prior, [..., d] -> [..., d]."""
        return -z

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) for z [L, N, d]: [L, N], a sum over pixels."""
        decoded = self.decoder(z.flatten(0, 1)).view(*z.shape[:2], *x.shape[1:]).flatten(2)  # [L, N, D]
        return -negative_log_likelihood(decoded, x.flatten(1), self.likelihood, self.likelihood_variance)

    @property
    def variance(self) -> Tensor:
        """The decoder's variance, 0-d."""
        return self.log_variance.exp()

    @property
    def likelihood_variance(self) -> Tensor | float:
        """The variance for the losses: 1 where the likelihood has none."""
        return self.variance if self.likelihood == "gaussian" else 1.0

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), of x's shape."""
        decoded = self.decoder(z)
        return decoded.sigmoid() if self.likelihood == "bernoulli_logits" else decoded

    def reconstruct(self, x: Tensor) -> Tensor:
        """x decoded from the posterior mean, of x's shape. Call ``eval()`` first when the nets hold BatchNorm."""
        return self.decode(self.encode_mean(x))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images, decoded from the prior. Call ``eval()`` first when the nets hold BatchNorm."""
        return self.decode(self.draw_latent(n, generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x)

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        # Layers that draw (Dropout) use the global stream: it too starts from (seed, step, rank).
        torch.manual_seed(seeds.fold_seed(*self._stream(seeds.TRAIN, batch_idx), 1))

    def training_step(self, batch, batch_idx: int) -> Tensor:
        loss, terms = self._step(unpack(batch)[0], seeds.TRAIN, batch_idx)
        self.log("train/loss", loss.detach(), prog_bar=True, logger=False)
        if self._is_logged(batch_idx):
            self._log_training_row(loss, terms, self.global_step)
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        self._evaluation_step("val", unpack(batch)[0], seeds.VALIDATION, batch_idx)

    def test_step(self, batch, batch_idx: int) -> None:
        x = unpack(batch)[0]
        reconstruction = self._evaluation_step("test", x, seeds.TEST, batch_idx)
        bce = nn.functional.binary_cross_entropy(reconstruction.clamp(0, 1), x.clamp(0, 1))
        self.test_bce.update(bce, weight=len(x))
        self.test_range.update((x - 0.5).abs().max())

    def predict_step(self, batch, batch_idx: int) -> dict[str, Tensor]:
        x, labels = unpack(batch)
        return self.predictions(x) | ({} if labels is None else {"label": labels})

    def on_test_epoch_end(self) -> None:
        if self.test_range.compute() <= 0.5:  # a Bernoulli's data
            self.log("test/bce", self.test_bce)
        self.test_range.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        return self._adam(list(self.parameters()), self.learning_rate)

    def _adam(self, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
        """Adam over the parameters, and over the log-variance with its own rate if it is among them and learns."""
        nets = [parameter for parameter in parameters if parameter is not self.log_variance]
        groups = [{"params": nets, "lr": learning_rate}]
        if self.learn_variance and len(nets) < len(parameters):
            groups.append({"params": [self.log_variance], "lr": self.variance_learning_rate})
        return torch.optim.Adam(groups, betas=self.betas)

    def _stream(self, stage: int, batch_idx: int) -> tuple[int, ...]:
        # batch_idx tells apart the batches accumulated into one step; evaluation noise is the same at every step.
        step = self.global_step if stage == seeds.TRAIN else 0
        return stage, self.seed, step, batch_idx, self.global_rank

    def _noise(self, x: Tensor, stage: int, batch_idx: int) -> Noise:
        return self.draw_noise(x, seeds.generator(*self._stream(stage, batch_idx)))

    def _step(self, x: Tensor, stage: int, batch_idx: int) -> LossOutput:
        return self._checked(self.loss, x, self._noise(x, stage, batch_idx), self._place(stage, batch_idx))

    def _place(self, stage: int, batch_idx: int) -> str:
        kind = {seeds.TRAIN: "training", seeds.VALIDATION: "validation", seeds.TEST: "test"}[stage]
        return f"{kind} step {self.global_step}, epoch {self.current_epoch}, batch {batch_idx}"

    def _checked(self, loss: Callable[[Tensor, Noise], LossOutput], x: Tensor, noise: Noise, place: str) -> LossOutput:
        """loss(x, noise), or an error that names the place and what is not finite."""
        try:
            output = loss(x, noise)
        except FloatingPointError as error:
            raise NonFiniteLossError(f"{place}: {error}") from error
        if not torch.isfinite(output.loss):
            raise NonFiniteLossError(f"{place}: {self._describe_non_finite(output)}")
        return output

    @staticmethod
    def _describe_non_finite(output: LossOutput) -> str:
        causes = []
        for name, term in output.terms.items():
            for what, count in (("NaN", term.isnan().sum()), ("infinite", term.isinf().sum())):
                if count:
                    causes.append(f"the term '{name}' is {what} for {count} of {len(term)} samples")
        return " and ".join(causes) or "every term is finite but their sum overflows"

    def _evaluation_step(self, name: str, x: Tensor, stage: int, batch_idx: int) -> Tensor:
        """Logs loss, terms and reconstruction errors; returns the reconstruction from the posterior mean."""
        loss, terms = self._step(x, stage, batch_idx)
        self.log(f"{name}/loss", loss, prog_bar=True, batch_size=len(x), sync_dist=True)
        means = {f"{name}/{term}": value.mean() for term, value in terms.items()}
        self.log_dict(means, batch_size=len(x), sync_dist=True)
        mean, z = self._codes(name, x, self._noise(x, stage, batch_idx))
        reconstruction, sampled = self.decode(mean), self.decode(z.flatten(0, 1))  # [N, ...], [L * N, ...]
        for error, image in (("mse", reconstruction), ("mse_sampled", sampled)):
            metric = self.errors[f"{name}_{error}"]
            metric(image, x.repeat(len(image) // len(x), *(1 for _ in x.shape[1:])))
            self.log(f"{name}/{error}", metric)
        return reconstruction

    def _only_output(self, x: Tensor, name: str) -> Tensor:
        """What an encoder gives that gives [N, d] and nothing else; ``name`` says what that is."""
        output = networks.as_mean(self.encoder(x), x)
        if output.shape[1] != self.latent_dim:
            raise ValueError(
                f"encoder: expected the {name} alone, [{len(x)}, {self.latent_dim}], received {list(output.shape)}; "
                "the encoders of fisherkernels.nets give it with mean_only=True"
            )
        return output

    def _codes(self, name: str, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Posterior means [N, d] and samples [L, N, d] of an evaluation's batch; ``name`` is val or test."""
        return self.encode_mean(x), self.sample_posterior(x, noise)

    def _is_logged(self, batch_idx: int) -> bool:
        """Whether the step that begins now is one of every ``log_every_n_steps``."""
        trainer = self.trainer
        return not (self.global_step % trainer.log_every_n_steps or batch_idx % trainer.accumulate_grad_batches)

    def _log_training_row(self, loss: Tensor, terms: dict[str, Tensor], step: int) -> None:
        """One row, written at once: a checkpoint of this step comes after its row."""
        values = {"loss": loss, **{name: term.mean() for name, term in terms.items()}}
        if self.learn_variance:
            values["variance"] = self.variance
        stacked = torch.stack([value.detach() for value in values.values()])
        reduced = self.trainer.strategy.reduce(stacked, reduce_op="mean").tolist()
        row = {f"train/{name}": value for name, value in zip(values, reduced, strict=True)}
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **row}, step=step)
