"""Channels of several groups, interleaved."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, behind


class ChannelShuffle(Rule):
    """Channels [G, C / G] in the order of [C / G, G]; J^T puts them back."""

    traffic = 2

    def forward(self, input: Tensor, groups: int):
        return F.channel_shuffle(input, groups), (groups, input.shape[1] // groups)

    def vjp(self, saved, cotangent, stacked, needs):
        groups, members = saved
        return (_transposed(cotangent, members, groups, stacked),)

    def jvp(self, saved, tangents, stacked):
        return _transposed(tangents[0], *saved, stacked)

    def of_one_sample(self, saved, active):
        return saved


def _transposed(t: Tensor, rows: int, columns: int, stacked: bool) -> Tensor:
    dim = behind(1, stacked)
    return t.unflatten(dim, (rows, columns)).transpose(dim, dim + 1).flatten(dim, dim + 1)


RULES = {"channel_shuffle": ChannelShuffle()}
FUNCTIONS = {F.channel_shuffle: "channel_shuffle"}
METHODS: dict = {}
MODULES = {nn.ChannelShuffle: Layer("channel_shuffle", lambda module, read: (module.groups,))}
