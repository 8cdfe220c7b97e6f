"""Reads the loss curves out of a run's metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Column name -> [(step, value)] in order of step; empty cells are skipped.

    The file is what Lightning's CSVLogger writes: one row per logging event, a ``step`` column, a column per metric.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: expected a metrics.csv, got {path}, which does not exist")
    curves: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name not in ("step", "epoch") and cell not in (None, ""):
                    curves.setdefault(name, []).append((int(row["step"]), float(cell)))
    return {name: sorted(points) for name, points in curves.items()}
