"""Checkpoints of a run, written atomically: ``last.ckpt`` to resume from, ``best.ckpt`` of the lowest val/loss."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from fisherkernels.training.loggers import RunLogger


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill during the write leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        super().save_checkpoint(checkpoint, temporary, storage_options)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


class RunCheckpoints(Checkpoint):
    """Saves ``folder/last.ckpt`` every ``every_n_steps`` steps and at the end of an epoch or of the run, and
    ``folder/best.ckpt`` when ``monitor`` is the lowest so far.

    The last batch of an epoch is not followed by a checkpoint of its own but by the epoch's, after validation: resuming
    from between the two would leave the validation out.
    """

    def __init__(self, folder: str | os.PathLike, every_n_steps: int = 100, monitor: str = "val/loss"):
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps: expected an int >= 1, received {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.best_score: float | None = None
        self._saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.resume(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if due and step != self._saved_step and not trainer.is_last_batch:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_last_batch:
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.best_score is None or score < self.best_score:
            self.best_score = score
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.folder / "last.ckpt")
