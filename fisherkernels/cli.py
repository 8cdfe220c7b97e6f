"""The ``fisherkernels`` command: a table of subcommands, each imported when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence

TRAINING = "fisherkernels.training.command_line:main"
COMMANDS = {  # name -> (module:function taking the arguments after "fisherkernels", what it does)
    "fit": (TRAINING, "train a model: --config configs/NAME.yaml; --ckpt_path last continues a run"),
    "validate": (TRAINING, "the loss terms of a trained model on the validation set"),
    "test": (TRAINING, "loss terms, errors and measures on the test set: --measures.nll_samples 5000 and others"),
    "predict": (TRAINING, "write latent codes and reconstructions of the test set to a file"),
    "demo": ("fisherkernels.report.demo:main", "train a Fisher AE and a VAE on digits; a page compares them"),
    "report": ("fisherkernels.report.comparison:main", "that page for trained models: --fisher_ae CKPT --vae CKPT"),
    "sample": (
        "fisherkernels.sampling.command_line:main",
        "new images from densities fitted to the latent means: --ckpt_path CKPT --density gmm kde",
    ),
    "uncertainty": (
        "fisherkernels.report.uncertainty:main",
        "the latent posterior that a FisherNet's decoder implies: --ckpt_path CKPT --vae CKPT",
    ),
    "info": (
        "fisherkernels.cli:print_info",
        "versions, active backends, CUDA architectures, vector ISA, threads",
    ),
}
TRACEBACK = "FISHERKERNELS_TRACEBACK"
EXTRAS = {  # module -> the extra that brings it
    "lightning": "train",
    "jsonargparse": "train",
    "tensorboard": "train",
    "torchvision": "train",
    "sklearn": "train",
    "torchmetrics": "train",
    "matplotlib": "train",
    "tqdm": "train",
    "zuko": "flow",
    "nifty": "mkde",
    "ducc0": "mkde",
}
USER_ERRORS = (ValueError, TypeError, OSError)


def usage() -> str:
    lines = ["usage: fisherkernels COMMAND [options]", ""]
    lines += [f"  {name:<13}{description}" for name, (_, description) in COMMANDS.items()]
    lines += ["", "fisherkernels COMMAND --help lists the options of a command."]
    return "\n".join(lines)


def print_info(arguments: Sequence[str]) -> None:
    """``fisherkernels info``."""
    from fisherkernels.info import render

    if len(arguments) > 1:
        raise ValueError(f"info: expected no arguments, received {' '.join(arguments[1:])}")
    print(render())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns 0; after one line on stderr, 2 for a mistake in what the user gave and 1 for a run
    that ended in NaN or infinity.

    ``FISHERKERNELS_TRACEBACK=1`` lets the traceback through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        return _fail(f"unknown command {arguments[0]!r}: expected one of {', '.join(COMMANDS)}")
    module, function = COMMANDS[arguments[0]][0].split(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a config may name the user's own classes; last, so that nothing is shadowed
    try:
        return getattr(importlib.import_module(module), function)(arguments) or 0
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if _want_traceback() or extra is None:
            raise
        return _fail(f"{arguments[0]!r} needs {error.name}: pip install 'fisherkernels[{extra}]'")
    except (*USER_ERRORS, FloatingPointError) as error:
        if _want_traceback():
            raise
        status = 1 if isinstance(error, FloatingPointError) else 2
        return _fail(f"{' '.join(str(error).split())} ({TRACEBACK}=1 shows the traceback)", status)


def _want_traceback() -> bool:
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _fail(message: str, status: int = 2) -> int:
    print(f"fisherkernels: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
