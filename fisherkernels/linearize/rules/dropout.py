"""Dropout, of numbers and of channels: the mask drawn for the value is the Jacobian's diagonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, SymmetricRule

_ALPHA = 1.7580993408473766  # minus the lower limit of SELU, which stands in for what is dropped


class Dropout(SymmetricRule):
    """y = x m / (1 - p)."""

    def forward(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False):
        if not training or p == 0.0:
            return input, (None,)
        mask = self.mask(input, p)
        return input * mask, (mask,)

    def mask(self, input: Tensor, p: float) -> Tensor:
        """m / (1 - p): the same draw that F.dropout(input) makes."""
        return F.dropout(torch.ones_like(input), p, True)

    def apply(self, saved, t, stacked):
        (mask,) = saved
        return t if mask is None else t * mask

    def of_one_sample(self, saved, active):
        return saved if saved[0] is None else None


class ChannelDropout(Dropout):
    """The same with one number for each channel, m [N, C, 1, ...]; ``batched``: the rank of an input with N, others
    are [C, ...] to ``operation``; None where every input has N.
    """

    def __init__(self, operation, batched: int | None):
        self.operation, self.batched = operation, batched

    def mask(self, input, p):
        kept = 2 if self.batched in (None, input.dim()) else 1
        return self.operation(_one_per_channel(input, kept, 1), p, True)


class AlphaDropout(Dropout):
    """y = a (x m - alpha (1 - m)) + b: keeps mean and variance of what SELU gives; J = a m."""

    def forward(self, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False):
        if not training or p == 0.0:
            return input, (None,)
        offset = self.offset(input, p)  # b = a alpha p where m = 1, else b - a alpha < 0
        scale = offset.clamp(min=0) / (_ALPHA * p)
        return input * scale + offset, (scale,)

    def offset(self, input: Tensor, p: float) -> Tensor:
        """What becomes of zeros, by the same draw that F.alpha_dropout(input) makes."""
        return F.alpha_dropout(torch.zeros_like(input), p, True)


class FeatureAlphaDropout(AlphaDropout):
    """The same with one number for each channel, m [N, C, 1, ...]."""

    def offset(self, input, p):
        return F.feature_alpha_dropout(_one_per_channel(input, 2, 0), p, True)


def _one_per_channel(input: Tensor, kept: int, value: int) -> Tensor:
    """The value once for each channel, behind ``kept`` dimensions; an empty input gives an empty one."""
    return input.new_full([*input.shape[:kept], *(min(size, 1) for size in input.shape[kept:])], value)


def _layer(rule: str) -> Layer:
    return Layer(rule, lambda module, read: (module.p, module.training))


RULES = {
    "dropout": Dropout(),
    "dropout1d": ChannelDropout(F.dropout1d, 3),
    "dropout2d": ChannelDropout(F.dropout2d, None),
    "dropout3d": ChannelDropout(F.dropout3d, 5),
    "alpha_dropout": AlphaDropout(),
    "feature_alpha_dropout": FeatureAlphaDropout(),
}
FUNCTIONS = {getattr(F, name): name for name in RULES}
FUNCTIONS |= {getattr(torch, name): name for name in ("dropout", "alpha_dropout", "feature_alpha_dropout")}
METHODS: dict = {}
MODULES = {
    nn.Dropout: _layer("dropout"),
    nn.Dropout1d: _layer("dropout1d"),
    nn.Dropout2d: _layer("dropout2d"),
    nn.Dropout3d: _layer("dropout3d"),
    nn.AlphaDropout: _layer("alpha_dropout"),
    nn.FeatureAlphaDropout: _layer("feature_alpha_dropout"),
}
