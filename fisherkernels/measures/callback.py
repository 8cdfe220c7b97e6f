"""The measures in a Lightning test loop."""

from pathlib import Path

import lightning.pytorch as pl

from fisherkernels.measures.deviations import draw_figure, write_table
from fisherkernels.measures.likelihood import ROWS
from fisherkernels.measures.suite import MeasureSuite
from fisherkernels.training.batches import unpack


class TestMeasures(pl.Callback):
    """Logs the measures of :class:`MeasureSuite` as ``test/...`` after a test epoch, and writes the histogram of the
    posterior's standard deviations into the run folder, ``posterior_std.csv`` and ``posterior_std.png``.

    Args:
        elbo_samples: samples of test/negative_elbo; 0 leaves it out.
        nll_samples: samples of test/nll, the negative log-likelihood by importance sampling (the papers take 5000); 0
            leaves it out.
        fisher_divergence_samples: samples of test/posterior_fisher_divergence; 0 leaves it out.
        mmd: test/mmd, the squared maximum mean discrepancy between codes and prior.
        deviations: test/posterior_std and its histogram.
        rows: latent samples decoded at a time for test/nll: more need more memory.
    """

    __test__ = False  # not a test case

    def __init__(
        self,
        elbo_samples: int = 1,
        nll_samples: int = 0,
        fisher_divergence_samples: int = 1,
        mmd: bool = True,
        deviations: bool = True,
        rows: int = ROWS,
    ):
        self.options = {
            "elbo_samples": elbo_samples,
            "nll_samples": nll_samples,
            "fisher_divergence_samples": fisher_divergence_samples,
            "mmd": mmd,
            "deviations": deviations,
            "rows": rows,
        }

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._suite = MeasureSuite(pl_module, **self.options, seed=pl_module.seed).to(pl_module.device)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._suite.update(pl_module, unpack(batch)[0])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self._suite.compute().items():
            pl_module.log(f"test/{name}", value.float(), sync_dist=True)
        deviations = self._suite.deviations
        if deviations is not None and deviations.update_called:
            shares = deviations.compute().cpu()
            if trainer.is_global_zero:
                folder = Path(trainer.default_root_dir)
                folder.mkdir(parents=True, exist_ok=True)
                write_table(folder / "posterior_std.csv", shares, deviations.edges)
                draw_figure(folder / "posterior_std.png", shares, deviations.edges)
