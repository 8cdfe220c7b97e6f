"""All measures of a model, batch by batch."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError

from fisherkernels.measures.deviations import DeviationHistogram
from fisherkernels.measures.divergence import posterior_fisher_divergence
from fisherkernels.measures.likelihood import ROWS, importance_sampled_nll, negative_elbo
from fisherkernels.measures.mmd import CubicMMD
from fisherkernels.training import seeds


class MeasureSuite(nn.Module):
    """The chosen measures of a model, each a mean over all data (the discrepancy excepted).

    Args:
        model: an :class:`~fisherkernels.training.AutoEncoder`.
        elbo_samples: of ``negative_elbo``; 0 leaves it out.
        nll_samples: K of ``nll``, the negative log-likelihood by importance sampling; 0 leaves it out.
        fisher_divergence_samples: of ``posterior_fisher_divergence``; 0 leaves it out.
        mmd: ``mmd``, the squared discrepancy of the aggregate posterior, :class:`CubicMMD`.
        deviations: ``posterior_std``, the posterior's mean standard deviation, and the histogram.
        rows: latent samples decoded at a time for ``nll``.
        seed: of all draws.

    A model whose encoder gives points, without a density, has the discrepancy alone; asking it for ``nll`` is an error.
    """

    def __init__(
        self,
        model,
        *,
        elbo_samples: int = 1,
        nll_samples: int = 0,
        fisher_divergence_samples: int = 1,
        mmd: bool = True,
        deviations: bool = True,
        rows: int = ROWS,
        seed: int = 0,
    ):
        super().__init__()
        self.samples = {
            "negative_elbo": elbo_samples,
            "nll": nll_samples,
            "posterior_fisher_divergence": fisher_divergence_samples,
        }
        options = ("elbo_samples", "nll_samples", "fisher_divergence_samples")
        for name, value in zip(options, self.samples.values(), strict=True):
            if value < 0:
                raise ValueError(f"{name}: expected an int >= 0, received {value}")
        if rows < 1:
            raise ValueError(f"rows: expected an int >= 1, received {rows}")
        self.rows = rows
        self.seed = seed
        self.means = nn.ModuleDict()
        self.mmd = CubicMMD() if mmd else None
        self.deviations = DeviationHistogram(model.latent_dim) if deviations else None
        self._batches = 0

    @torch.no_grad()
    def update(self, model, x: Tensor) -> None:
        """Takes in a batch; the model is in ``eval()``."""
        generator = seeds.generator(seeds.MEASURE, self.seed, self._batches, model.global_rank)
        self._batches += 1
        posterior = model.posterior(x) if any(self.samples.values()) or self.deviations is not None else None
        if posterior is not None:
            self._update_densities(model, x, posterior, generator)
        elif self.samples["nll"]:
            kind = type(model).__name__
            raise ValueError(f"nll_samples: expected 0 for a {kind}, which has no posterior density, received "
                             f"{self.samples['nll']}")  # fmt: skip
        if self.mmd is not None:
            codes = model.sample_posterior(x, model.draw_noise(x, generator))[0]
            self.mmd.update(codes, model.draw_latent(len(x), generator).to(codes))

    def _update_densities(self, model, x: Tensor, posterior, generator: torch.Generator) -> None:
        functions = {
            "negative_elbo": negative_elbo,
            "nll": importance_sampled_nll,
            "posterior_fisher_divergence": posterior_fisher_divergence,
        }
        for name, samples in self.samples.items():
            if samples:
                options = {"rows": max(self.rows, len(x))} if name == "nll" else {}
                options |= {"num_samples": samples, "posterior": posterior, "generator": generator}
                self._add(name, functions[name](model, x, **options))
        if self.deviations is not None:
            self.deviations.update(posterior.stddev)
            self._add("posterior_std", posterior.stddev)

    def _add(self, name: str, values: Tensor) -> None:
        if name not in self.means:
            self.means[name] = MeanMetric(nan_strategy="disable").to(values.device)
        self.means[name].update(values)

    def compute(self) -> dict[str, Tensor]:
        """name -> 0-d."""
        values = {name: metric.compute() for name, metric in self.means.items()}
        if self.mmd is not None:
            values["mmd"] = self.mmd.compute()
        return values


@torch.no_grad()
def evaluate(model, batches: Iterable[tuple[Tensor, Tensor]], **options) -> dict[str, float]:
    """The measures of a model over batches (x, labels), and ``mse``, of the reconstructions from the posterior mean.

    Args:
        model: an :class:`~fisherkernels.training.AutoEncoder`; evaluated in ``eval()`` and left as it was.
        batches: such as ``data.train_dataloader()``: `fisherkernels test` knows the test set only.
        options: of :class:`MeasureSuite`.
    """
    training = model.training
    model.eval()
    suite = MeasureSuite(model, **options).to(model.device)
    error = MeanSquaredError().to(model.device)
    for x, _ in batches:
        x = x.to(model.device)
        suite.update(model, x)
        error.update(model.reconstruct(x), x)
    model.train(training)
    values = {"mse": error.compute(), **suite.compute()}
    return {name: float(value) for name, value in values.items()}
