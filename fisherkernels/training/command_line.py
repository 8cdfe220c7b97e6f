"""``fisherkernels fit|validate|test|predict``: LightningCLI with one fixed folder per config file.

``runs/<config name>/`` (``--trainer.default_root_dir`` names another) holds ``config.yaml``, ``metrics.csv``,
``tensorboard/``, ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt``.
"""

import argparse
import json
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fisherkernels.measures.callback import TestMeasures
from fisherkernels.training import run_folder
from fisherkernels.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from fisherkernels.training.loggers import CSVMetrics, TensorBoardEvents
from fisherkernels.training.predictions import PredictionWriter
from fisherkernels.training.progress import PlainProgress

LATENT_DIM = "model.init_args.latent_dim"


class Parser(LightningArgumentParser):
    """Raises instead of printing the usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise argparse.ArgumentError(None, message) from ex


class CommandLine(LightningCLI):
    """LightningCLI that keeps a run in its folder and finds its checkpoints there."""

    def __init__(self, arguments: Sequence[str]):
        fitting = arguments[0] == "fit"
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigCallback if fitting else None,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": run_folder.folder_of(arguments),
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            parser_class=Parser,
            parser_kwargs={"prog": "fisherkernels"},
            auto_configure_optimizers=False,
            args=list(arguments),
        )

    @property
    def folder(self) -> Path:
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=100,
            help="How often last.ckpt is written during an epoch.",
        )
        parser.add_lightning_class_args(TestMeasures, "measures")
        parser.add_argument("--overwrite", type=bool, default=False, help="Let fit replace the run in its folder.")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.link_arguments(LATENT_DIM, "model.init_args.encoder.init_args.latent_dim")
        parser.link_arguments(LATENT_DIM, "model.init_args.decoder.init_args.latent_dim")

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:
        self.config = parser.parse_args(args)
        # Neither belongs into the saved config: a run started from that would resume or replace another.
        options = self.config[self.config.subcommand]
        self._ckpt_path, options["ckpt_path"] = options.get("ckpt_path"), None
        self._overwrite, options["overwrite"] = options["overwrite"], False

    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit" or self._ckpt_path is not None:
            self._checkpoint = str(run_folder.resolve(self.folder, self._ckpt_path))
        else:
            self._checkpoint = None

    def after_instantiate_classes(self) -> None:
        self.config_init[self.subcommand]["ckpt_path"] = self._checkpoint
        nets = self._get(self.config, "model").get("init_args", {})
        for name in ("encoder", "decoder"):  # so that MODEL.load_from_checkpoint(path) can build them
            if name in nets:
                self.model.hparams[name] = nets[name].as_dict()
        if self._checkpoint:
            rank_zero_print(f"checkpoint: {self._checkpoint}")

    def instantiate_trainer(self, **kwargs) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        callbacks = list(config.get("callbacks") or [])
        if config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
            every = self._get(self.config, "checkpoint_every_n_steps")
            callbacks.append(RunCheckpoints(self.folder / "checkpoints", every))
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.folder))
        if config["enable_progress_bar"] is None and not sys.stderr.isatty():
            callbacks.append(PlainProgress())
        if config["logger"] in (None, True):
            loggers = [CSVMetrics(self.folder), TensorBoardEvents(self.folder)]
            kwargs["logger"] = loggers if self.subcommand == "fit" else False
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        return super().instantiate_trainer(callbacks=callbacks, plugins=[*plugins, AtomicCheckpointIO()], **kwargs)

    def before_fit(self) -> None:
        if self._checkpoint is None:
            rank_zero_only(run_folder.clear)(self.folder, self._overwrite)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        rank_zero_print(f"{type(self.model).__name__}, {parameters:,} parameters; run folder: {self.folder}")

    def after_fit(self) -> None:
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in self.trainer.callback_metrics.items())
        rank_zero_print(f"{self.trainer.global_step} steps; {values}")

    def after_validate(self) -> None:
        self._write_results("validate")

    def after_test(self) -> None:
        self._write_results("test")

    @rank_zero_only
    def _write_results(self, name: str) -> None:
        results = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"checkpoint": self._checkpoint, **results}, indent=2) + "\n")
        print(f"wrote {path}")


rank_zero_print = rank_zero_only(print)


def _first_cause(message: str) -> str:
    """jsonargparse lists what was wrong for each type an option may have; the first is the one that was meant."""
    return re.sub(r"Does not validate against any of the Union subtypes.*?Errors:\s*- (.*)\n\s*- Expected.*", r"\1",
                  message, flags=re.DOTALL)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``. Raises ValueError for arguments that do not parse, and
    for a checkpoint of another model.
    """
    if not {"--config", "-c", "--model", "-h", "--help"} & {argument.partition("=")[0] for argument in arguments}:
        raise ValueError(f"{arguments[0]}: expected --config FILE, for example --config configs/fisher_ae_digits.yaml")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for harmless in (".*LeafSpec.*", "Couldn't infer the batch indices"):
        warnings.filterwarnings("ignore", message=harmless, module="lightning")
    try:
        CommandLine(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(_first_cause(str(error))) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"the checkpoint does not belong to the model of this config: {error}") from error
