"""What ``fisherkernels predict`` leaves behind."""

import os
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Writes ``folder/predictions.npz``.

    Arrays, in order of the test set: ``mean`` [N, d] of the latent posterior, ``reconstruction`` from it (x's shape),
    ``label`` [N] where the data have labels, and the posterior's spread. A diagonal one is ``log_std`` [N, d].
    FisherNet's covariance is full: ``std`` [N, d] of each latent coordinate, ``principal_std`` [N, d], largest first,
    and ``principal_axes`` [N, k, d]: unit vectors, along which the first k of those are measured (k = ``num_axes``, or
    d if that is less).
    With several processes each writes its part, ``predictions.rank0.npz`` and so on.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__("epoch")
        self.folder = Path(folder)

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[dict[str, torch.Tensor]],
        batch_indices: Sequence,
    ) -> None:
        arrays = {name: torch.cat([batch[name] for batch in predictions]).cpu().numpy() for name in predictions[0]}
        part = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / f"predictions{part}.npz"
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        print(f"wrote {path}: {shapes}")
