"""Padding: zeros, constants, and entries of the input repeated from its edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold


class Pad(Rule):
    """J t pads the tangent, with zeros for a constant; J^T c cuts the cotangent, and adds what was repeated."""

    traffic = 2

    def accepts(self, input, pad, mode="constant", value=None):
        return mode in ("constant", "reflect", "replicate", "circular")

    def forward(self, input: Tensor, pad, mode: str = "constant", value: float | None = None):
        pad = tuple(pad)
        return F.pad(input, pad, mode, value), (tuple(input.shape), pad, mode)

    def vjp(self, saved, cotangent, stacked, needs):
        return (pad_transpose(*saved, cotangent),)

    def jvp(self, saved, tangents, stacked):
        return fold(lambda t: F.pad(t, saved[1], saved[2]), tangents[0], stacked)

    def keeps_samples(self, saved, operands, value):
        return len(saved[1]) // 2 < len(value)

    def of_one_sample(self, saved, active):
        shape, *rest = saved
        return (1, *shape[1:]), *rest


def pad_transpose(shape: tuple, pad: tuple, mode: str, c: Tensor) -> Tensor:
    """Cotangent of what was padded, an input of the given shape (or a stack of them)."""
    if mode == "constant":
        return F.pad(c, [-size for size in pad])
    for i in range(len(pad) // 2):
        dim, size = c.dim() - 1 - i, shape[-1 - i]
        positions = torch.arange(size, dtype=torch.float32, device=c.device).view(1, 1, size)
        source = F.pad(positions, pad[2 * i : 2 * i + 2], mode).view(-1).long()
        c = c.new_zeros((*c.shape[:dim], size, *c.shape[dim + 1 :])).index_add(dim, source, c)
    return c


def _layer(mode: str) -> Layer:
    return Layer("pad", lambda module, read: (module.padding, mode, getattr(module, "value", None)))


_MODES = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect", "Replication": "replicate"}
_MODES["Circular"] = "circular"

RULES = {"pad": Pad()}
FUNCTIONS = {F.pad: "pad"}
METHODS: dict = {}
MODULES = {getattr(nn, f"{name}Pad{d}d"): _layer(mode) for name, mode in _MODES.items() for d in (1, 2, 3)}
