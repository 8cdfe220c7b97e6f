"""Loggers of a run's folder. ``resume(step)`` drops what was logged from that step on, before it is logged again."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(Logger):
    """Base: a logger that writes into ``folder`` itself, without versions."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's folder holds its whole configuration in config.yaml."""

    def resume(self, step: int) -> None:
        raise NotImplementedError


class CSVMetrics(RunLogger):
    """``folder/metrics.csv``: one row per logging event, columns ``step``, ``epoch``, one per metric.

    ``step`` counts optimiser steps from 0; a validation row has the step it follows. Rows reach the file at once: a run
    that is killed has lost none.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        self.path = self.folder / "metrics.csv"
        self._columns: list[str] = []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        new = [name for name in row if name not in self._columns]
        if new:
            self._rewrite(self._read(), self._columns + new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def resume(self, step: int) -> None:
        rows = [row for row in self._read() if int(row["step"]) < step]
        self._rewrite(rows, list(rows[0]) if rows else [])

    def _read(self) -> list[dict[str, str]]:
        """The complete rows; a row that a kill cut short has no line end."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        return list(csv.DictReader(lines))

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
        self._columns = columns


class TensorBoardEvents(RunLogger):
    """TensorBoard scalars in ``folder/tensorboard/``."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(folder)
        self._writer = None
        self._purge_step: int | None = None

    @property
    def writer(self):
        """The ``SummaryWriter``, made at first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    @rank_zero_only
    def resume(self, step: int) -> None:
        self._purge_step = step

    @rank_zero_only
    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
