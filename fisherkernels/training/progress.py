"""Progress for a console that is not a terminal (a log file, a pipe): plain lines instead of a redrawn bar."""

import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar


class PlainProgress(ProgressBar):
    """One line with step, speed and losses after the first step, then at most every ``interval`` seconds."""

    def __init__(self, interval: float = 10.0):
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._last = (0.0, 0)  # time and step of the last line
        self._due = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = (time.monotonic(), trainer.global_step)
        self._due = 0.0  # the first step is always shown

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        now, step = time.monotonic(), trainer.global_step
        then, before = self._last
        if not self._enabled or now < self._due:
            return
        losses = ", ".join(f"{name} {value:.4f}" for name, value in trainer.progress_bar_metrics.items())
        speed = f"{(now - then) / max(step - before, 1):.3g} s/step"
        print(f"epoch {trainer.current_epoch}, step {step}, {speed}: {losses}", flush=True)
        self._last, self._due = (now, step), now + self.interval
