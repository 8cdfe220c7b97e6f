"""The same numbers, elsewhere in memory."""

from __future__ import annotations

from torch import Tensor

from .activation import Identity


def sequence_first(input: Tensor) -> Tensor:
    """[N, L, E] that lies in memory as [L, N, E], in which order dropout draws; another rank as it is."""
    return input.transpose(0, 1).contiguous().transpose(0, 1) if input.dim() == 3 else input


class SequenceFirst(Identity):
    def forward(self, input: Tensor):
        return sequence_first(input), ()


RULES = {"sequence_first": SequenceFirst()}
FUNCTIONS = {sequence_first: "sequence_first"}
METHODS: dict = {}
MODULES: dict = {}
