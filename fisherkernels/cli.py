"""The ``fisherkernels`` command: a table of subcommands, each imported when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence

TRAINING = "fisherkernels.training.command_line:main"
COMMANDS = {  # name -> (module:function taking the arguments after "fisherkernels", what it does)
    "fit": (TRAINING, "train a model: --config configs/NAME.yaml; --ckpt_path last continues a run"),
    "validate": (TRAINING, "the loss terms of a trained model on the validation set"),
    "test": (TRAINING, "loss terms and reconstruction errors of a trained model on the test set"),
    "predict": (TRAINING, "write latent codes and reconstructions of the test set to a file"),
    "info": ("fisherkernels.info:main", "versions, active backends, CUDA architectures, vector ISA, threads"),
}
TRACEBACK = "FISHERKERNELS_TRACEBACK"
EXTRA_MODULES = ("lightning", "jsonargparse", "tensorboard", "torchvision", "sklearn", "torchmetrics", "matplotlib")
USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError)


def usage() -> str:
    lines = ["usage: fisherkernels COMMAND [options]", ""]
    lines += [f"  {name:<10}{description}" for name, (_, description) in COMMANDS.items()]
    lines += ["", "fisherkernels COMMAND --help lists the options of a command."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns 0, or 2 after one line on stderr for a mistake in what the user gave.

    ``FISHERKERNELS_TRACEBACK=1`` lets the traceback through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        return _fail(f"unknown command {arguments[0]!r}: expected one of {', '.join(COMMANDS)}")
    module, function = COMMANDS[arguments[0]][0].split(":")
    try:
        return getattr(importlib.import_module(module), function)(arguments) or 0
    except ModuleNotFoundError as error:
        if _want_traceback() or (error.name or "").partition(".")[0] not in EXTRA_MODULES:
            raise
        return _fail(f"{arguments[0]!r} needs {error.name}: pip install 'fisherkernels[train]'")
    except USER_ERRORS as error:
        if _want_traceback():
            raise
        return _fail(f"{' '.join(str(error).split())} ({TRACEBACK}=1 shows the traceback)")


def _want_traceback() -> bool:
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _fail(message: str) -> int:
    print(f"fisherkernels: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
