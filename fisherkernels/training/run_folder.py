"""The folder of a run: what it holds, when a new run may take it, which checkpoint a name means."""

import shutil
from collections.abc import Sequence
from pathlib import Path

RUN_FILES = (
    "config.yaml",
    "metrics.csv",
    "tensorboard",
    "checkpoints",
    "predictions.npz",
    "validate.json",
    "test.json",
    "posterior_std.csv",
    "posterior_std.png",
    "samples",
)


def folder_of(arguments: Sequence[str]) -> str:
    """``runs/NAME``, NAME being the stem of the ``--config`` file (several: joined by ``-``)."""
    stems = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c"):
            path = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else "")
            stems.append(Path(path).stem)
    return str(Path("runs") / ("-".join(stems) or "default"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, ``best.ckpt`` before ``last.ckpt``."""
    return sorted((folder / "checkpoints").glob("*.ckpt"))


def clear(folder: Path, overwrite: bool) -> None:
    """Removes what an earlier run left in ``folder``. If that includes a checkpoint, only when ``overwrite``."""
    found = checkpoints(folder)
    if found and not overwrite:
        raise FileExistsError(
            f"{folder} holds a run ({', '.join(path.name for path in found)}): continue it with --ckpt_path last, "
            "replace it with --overwrite true, or choose another folder with --trainer.default_root_dir"
        )
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def resolve(folder: Path, ckpt_path: str | None) -> Path:
    """The checkpoint file that ``last``, ``best``, None (best, or last where there is no best) or a path means.

    Raises:
        FileNotFoundError: it does not exist; names the folder and what is there.
    """
    found = checkpoints(folder)
    if ckpt_path is None:
        if not found:
            raise FileNotFoundError(f"no checkpoint in {folder / 'checkpoints'}: fit first, or pass --ckpt_path")
        return found[0]
    path = folder / "checkpoints" / f"{ckpt_path}.ckpt" if ckpt_path in ("last", "best") else Path(ckpt_path)
    if not path.is_file():
        there = ", ".join(other.name for other in found) or "none"
        raise FileNotFoundError(
            f"--ckpt_path {ckpt_path}: {path} does not exist; checkpoints in {path.parent}: {there}"
        )
    return path
