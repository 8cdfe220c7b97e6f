"""FisherNet as a LightningModule."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from fisherkernels import losses
from fisherkernels.losses.fisher_net import fisher_net_loss
from fisherkernels.metric import FisherMetric
from fisherkernels.training.autoencoder import AutoEncoder


class FisherNet(AutoEncoder):
    """Zacherl, Frank and Enßlin, "Probabilistic Autoencoder Using Fisher Information" (Entropy 2021): Adam on
    :func:`fk.fisher_net_loss`.

    The posterior of z is Gaussian around the encoder's mean with the metric M = J^T J / variance + I of the decoder
    there as its precision: a full covariance that no network has to learn. The defaults are the paper's.

    Args:
        encoder: x [N, ...] -> the mean [N, d].
        decoder: z [N, d] -> x's shape; any module that :func:`fk.linearize` takes.
        latent_dim, num_samples, variance, learn_variance, learning_rate, variance_learning_rate, betas, seed: see
            :class:`AutoEncoder`; the variance is the noise variance exp(xi).
        dataset_size: p, the number of training images; None takes it from the data module or loader.
        logdet, mirrored, gradient, method, tol, max_iter, batch_statistics: see :func:`fk.fisher_net_loss`. Method
            "auto" goes by measured speed and may choose differently in another process: name the method where two runs
            must agree bit for bit.
        num_axes: principal axes of the posterior that ``predict`` writes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int = 10,
        *,
        dataset_size: int | None = None,
        logdet: bool | Literal["exact", "lanczos"] = False,
        mirrored: bool = False,
        gradient: Literal["full", "mean"] = "full",
        method: Literal["auto", "cg", "cholesky"] = "auto",
        tol: float = 1e-3,
        max_iter: int | None = None,
        batch_statistics: Literal["batch", "frozen"] = "batch",
        num_axes: int = 10,
        num_samples: int = 1,
        variance: float = 1.0,
        learn_variance: bool = True,
        learning_rate: float = 1e-4,
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
        for name, value in (("dataset_size", dataset_size), ("max_iter", max_iter), ("num_axes", num_axes)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an int >= 1, received {value}")
        if mirrored and num_samples % 2:
            raise ValueError(f"num_samples: expected an even number with mirrored=True, received {num_samples}")
        self.save_hyperparameters(ignore=["encoder", "decoder"], logger=False)
        self.dataset_size = dataset_size
        self.logdet = logdet
        self.num_axes = num_axes
        self.mirrored = mirrored
        self.batch_statistics = batch_statistics
        self.solver = {"gradient": gradient, "method": method, "tol": tol, "max_iter": max_iter}

    def setup(self, stage: str) -> None:
        if self.dataset_size is None:
            train_set = getattr(self.trainer.datamodule, "train_set", None)
            if train_set is None and stage == "fit":
                self.trainer.fit_loop.setup_data()
                train_set = getattr(self.trainer.train_dataloader, "dataset", None)
            if train_set is None:
                raise ValueError("dataset_size: expected the number of training images where no data module has it")
            self.dataset_size = len(train_set)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dataset_size"] = self.dataset_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.dataset_size is None:
            self.dataset_size = checkpoint.get("dataset_size")

    def loss(self, x: Tensor, noise: tuple[Tensor, Tensor]) -> losses.LossOutput:
        return fisher_net_loss(
            self.encode_mean,
            self.decoder,
            x,
            log_noise_variance=self.log_variance,
            dataset_size=self.dataset_size,
            logdet=self.logdet,
            num_samples=self.num_samples,
            mirrored=self.mirrored,
            noise=noise,
            batch_statistics=self.batch_statistics,
            **self.solver,
        )

    def encode_mean(self, x: Tensor) -> Tensor:
        return self._only_output(x, "mean")

    def posterior_metric(self, x: Tensor) -> FisherMetric:
        """The metric at the posterior mean of x: the posterior's precision, per image."""
        mean = self.encode_mean(x)
        with torch.autocast(x.device.type, enabled=False):
            return FisherMetric(self.decoder, mean, self.variance, batch_statistics=self.batch_statistics)

    def principal_axes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [N, d] of the posterior, its principal standard deviations [N, d], largest first, and, as the rows of
        [N, d, d], the unit vectors along which they are measured.
        """
        metric = self.posterior_metric(x)
        eigenvalues, eigenvectors = metric.eigh()  # ascending: the widest direction comes first
        return metric.mean, eigenvalues.rsqrt(), eigenvectors.mT

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Data side [S, N, D] and latent side [S, N, d], S halved where samples are mirrored."""
        draws = self.num_samples // 2 if self.mirrored else self.num_samples
        if x.device.type != "cpu":  # S D values per image are too many to bring over
            generator = torch.Generator(x.device).manual_seed(generator.initial_seed())
        options = {"generator": generator, "dtype": x.dtype, "device": x.device}
        return tuple(torch.randn(draws, len(x), width, **options) for width in (x.shape[1:].numel(), self.latent_dim))

    def sample_posterior(self, x: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        metric = self.posterior_metric(x)
        return metric.sample(self.num_samples, noise=noise, mirrored=self.mirrored, **self.solver)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        metric = self.posterior_metric(x)
        return MultivariateNormal(metric.mean, precision_matrix=metric.dense(), validate_args=False)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        mean, std, axes = self.principal_axes(x)
        return {
            "mean": mean,
            "std": (axes * std[:, :, None]).square().sum(1).sqrt(),  # of each latent coordinate, [N, d]
            "principal_std": std,
            "principal_axes": axes[:, : self.num_axes],
            "reconstruction": self.decode(mean),
        }
