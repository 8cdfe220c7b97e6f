"""A trained run, from its checkpoint and the config.yaml beside it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
import yaml


@dataclass
class Run:
    """``model`` in eval mode, ``data`` set up for testing, the saved ``config``, and how far it was trained."""

    model: pl.LightningModule
    data: pl.LightningDataModule
    config: dict[str, Any]
    metrics: Path
    steps: int
    epochs: int


def load_run(checkpoint: str | Path, data_options: dict[str, Any] | None = None) -> Run:
    """Reads ``FOLDER/checkpoints/NAME.ckpt`` and ``FOLDER/config.yaml``, as ``fisherkernels fit`` leaves them.

    data_options: replace arguments of the data module that the config has.

    Raises FileNotFoundError where one of them is missing, ValueError for an argument that the data module has not and
    for a file that is no checkpoint.
    """
    checkpoint = Path(checkpoint)
    folder = checkpoint.parent.parent
    config_path = folder / "config.yaml"
    for path in (checkpoint, config_path):
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint: expected {path}, which does not exist (fisherkernels fit writes it)")
    config = yaml.safe_load(config_path.read_text())
    data = config["data"]["init_args"]
    for name, value in (data_options or {}).items():
        if name not in data:
            raise ValueError(f"data.{name}: the run's data has no such argument, only {', '.join(data)}")
        data[name] = value
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    for net in ("encoder", "decoder"):
        parser.link_arguments("model.init_args.latent_dim", f"model.init_args.{net}.init_args.latent_dim")
    built = parser.instantiate_classes(parser.parse_object({name: config[name] for name in ("model", "data")}))
    state = _read(checkpoint)
    built.model.load_state_dict(state["state_dict"])
    built.data.setup("test")
    return Run(built.model.eval(), built.data, config, folder / "metrics.csv", state["global_step"], state["epoch"] + 1)


def _read(checkpoint: Path) -> dict[str, Any]:
    expected = f"checkpoint: expected one that fisherkernels fit wrote, received {checkpoint}"
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{expected}, which cannot be read: {error}") from error
    keys = ("state_dict", "global_step", "epoch")
    missing = [key for key in keys if key not in state] if isinstance(state, dict) else keys
    if missing:
        raise ValueError(f"{expected}, without {', '.join(missing)}")
    return state
