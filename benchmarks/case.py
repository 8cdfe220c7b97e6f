"""What is measured: a case is one computation, its contenders are the ways to do it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch

Tensors = tuple  # of tensors, or of tuples of tensors
Runner = Callable[..., Tensors]
TF32_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Contender:
    """`build(device, dtype)` prepares it (modules, compilation) and gives the function that is timed.

    That function takes the case's inputs and returns values and gradients in the order of the case's outputs.
    """

    name: str
    build: Callable[[torch.device, torch.dtype], Runner]
    reference: Callable[[torch.device, torch.dtype], Runner] | None = None  # where it is not the case's own
    route: str | None = None  # which of the case's FLOP counts it is held against; None: the smallest
    requires: tuple[str, ...] = ()  # importable modules of optional packages
    install: str = ""  # what to install for them, where that has another name
    own_allocator: bool = False  # on GPUs torch does not see its memory, so that no peak is reported

    def missing(self):
        """The first of `requires` that is not installed, or None."""
        return next((name for name in self.requires if not _installed(name)), None)


@dataclass(frozen=True)
class Case:
    """`inputs(generator)` draws fresh float32 inputs; `reference` is built in float64 on the CPU.

    `exact_inputs(generator)` draws those of the float64 check instead, where the full size would take too long.

    `bytes_moved`: each input read once, each output written once, forward and backward; None where arithmetic
    is the limit. `flops()`: multiplications and additions that each route needs at least, by the route's name.
    `facts()`: what describes the inputs, by name. `tolerances`: the largest relative RMS error allowed, by dtype;
    float32 is timed, every dtype named is checked before that. `residual(*inputs, first output)`: in float64 the
    relative residual [N] of the equation it should solve; float32 passes when the median is at most `residual_limit`.
    """

    name: str
    title: str
    inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]]
    reference: Callable[[torch.device, torch.dtype], Runner]
    contenders: tuple[Contender, ...]
    outputs: tuple[str, ...]
    tolerances: dict[torch.dtype, float] = field(default_factory=lambda: {torch.float32: 1e-5})
    exact_inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]] | None = None
    bytes_moved: int | None = None
    traffic: str = ""  # how bytes_moved is counted, in words
    flops: Callable[[], dict[str, float]] | None = None
    facts: Callable[[], dict[str, float | str]] | None = None
    residual: Callable[..., torch.Tensor] | None = None
    residual_limit: float = 0.0
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self):
        if torch.float32 not in self.tolerances:
            raise ValueError(f"{self.name}: tolerances must name torch.float32, got {self.tolerances}")

    def contender(self, name):
        for contender in self.contenders:
            if contender.name == name:
                return contender
        names = [contender.name for contender in self.contenders]
        raise ValueError(f"{self.name}: contender must be one of {names}, got {name!r}")


def with_tf32(case):
    """The case as it is checked where products keep ten bits of their factors' mantissas."""
    tolerance = max(TF32_TOLERANCE, case.tolerances[torch.float32])
    return replace(case, tolerances=case.tolerances | {torch.float32: tolerance})


def draw(case, generator, device, dtype, check=False):
    small = check and dtype == torch.float64 and case.exact_inputs
    return tuple(t.to(device=device, dtype=dtype) for t in (small or case.inputs)(generator))


def _installed(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that should hold it
        return False
