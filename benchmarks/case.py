"""What is measured: a case is one computation, its contenders are the ways to do it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Tensors = tuple  # of tensors, or of tuples of tensors
Runner = Callable[..., Tensors]


@dataclass(frozen=True)
class Contender:
    """`build(device, dtype)` prepares it (modules, compilation) and gives the function that is timed.

    That function takes the case's inputs and returns values and gradients in the order of the case's outputs.
    """

    name: str
    build: Callable[[torch.device, torch.dtype], Runner]
    reference: Callable[[torch.device, torch.dtype], Runner] | None = None  # where it is not the case's own


@dataclass(frozen=True)
class Case:
    """`inputs(generator)` draws fresh float32 inputs; `reference` is built in float64 on the CPU.

    `exact_inputs(generator)` draws those of the float64 check instead, where the full size would take too long.

    `bytes_moved`: each input read once, each output written once, forward and backward; None where arithmetic
    is the limit. `tolerances`: the largest relative RMS error allowed, by dtype; float32 is timed, every dtype
    named is checked before that.
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

    def __post_init__(self):
        if torch.float32 not in self.tolerances:
            raise ValueError(f"{self.name}: tolerances must name torch.float32, got {self.tolerances}")

    def contender(self, name):
        for contender in self.contenders:
            if contender.name == name:
                return contender
        names = [contender.name for contender in self.contenders]
        raise ValueError(f"{self.name}: contender must be one of {names}, got {name!r}")


def draw(case, generator, device, dtype, check=False):
    small = check and dtype == torch.float64 and case.exact_inputs
    return tuple(t.to(device=device, dtype=dtype) for t in (small or case.inputs)(generator))
