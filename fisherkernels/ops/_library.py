"""The operator library `fisherkernels`: schemas, twins, fakes, autograd, and the native libraries on top.

Schemas are defined here, in Python, so that every operator exists without any compiled code. A native library
only adds kernels for its device; the dispatcher prefers them to the twin, a CompositeExplicitAutograd kernel.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

_LIBRARY = torch.library.Library("fisherkernels", "DEF")
_TWINS: dict[str, Callable] = {}
_STATUS: dict[str, "BackendStatus"] = {}


class BackendStatus(NamedTuple):
    """Whether a native library is in use, where it was looked for, and why it is not in use."""

    active: bool
    path: str
    reason: str


def define(name: str, schema: str, *, twin: Callable, fake: Callable, autograd: Callable | None = None) -> None:
    """Defines `fisherkernels::name` with its PyTorch twin, its fake and, if given, its Autograd kernel.

    An operator that changes arguments in place gets them from compiled code with the strides they have in eager mode.
    """
    layout = torch.Tag.needs_exact_strides if "!" in schema else torch.Tag.flexible_layout
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, layout))
    _LIBRARY.impl(name, twin, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fisherkernels::{name}", fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, autograd, "Autograd")
    _TWINS[name] = twin


def twin(op: torch._ops.OpOverload) -> Callable:
    """The PyTorch twin of an operator."""
    return _TWINS[op._opname]


def backends() -> dict[str, BackendStatus]:
    """Status of the native backends, by name: "cpu" and "cuda"."""
    return dict(_STATUS)


def load_libraries() -> None:
    """Loads the native libraries from `fisherkernels/lib`, or from $FISHERKERNELS_LIBRARY_DIR where set.

    FISHERKERNELS_BACKEND=torch loads none, so that the PyTorch twins run everywhere.
    """
    directory = Path(os.environ.get("FISHERKERNELS_LIBRARY_DIR") or Path(__file__).parents[1] / "lib")
    for backend in ("cpu", "cuda"):
        _STATUS[backend] = _load(backend, directory / f"libfisherkernels_{backend}.so")


def _load(backend: str, path: Path) -> BackendStatus:
    choice = os.environ.get("FISHERKERNELS_BACKEND", "")
    if choice not in ("", "torch", "native"):
        raise ValueError(f"FISHERKERNELS_BACKEND: expected 'torch' or 'native', got {choice!r}")
    if choice == "torch":
        return BackendStatus(False, str(path), "FISHERKERNELS_BACKEND=torch")
    if backend == "cuda" and not torch.backends.cuda.is_built():
        return BackendStatus(False, str(path), "this torch is built without CUDA")
    if not path.is_file():
        return BackendStatus(False, str(path), "no such file")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return BackendStatus(False, str(path), f"cannot be loaded: {error}")
    return BackendStatus(True, str(path), "")


@contextlib.contextmanager
def use_twins() -> Iterator[None]:
    """Runs the PyTorch twins instead of the native kernels inside the `with` block, in every thread."""
    override = torch.library.Library("fisherkernels", "IMPL")
    keys = [backend.upper() for backend, status in _STATUS.items() if status.active]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel.*")
        for name, twin in _TWINS.items():
            for key in keys:
                override.impl(name, twin, key, allow_override=True)
    try:
        yield
    finally:
        override._destroy()


def on_native_cpu(t: torch.Tensor) -> bool:
    """Whether the native CPU library has kernels in full precision for this tensor's device and dtype."""
    return t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) and backends()["cpu"].active
