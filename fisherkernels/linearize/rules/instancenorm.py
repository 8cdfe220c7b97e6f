"""Instance normalisation: GroupNorm with a group for every channel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer
from .groupnorm import GroupNorm


class InstanceNorm(GroupNorm):
    """Of each sample's own statistics; running ones have no rule."""

    def accepts(
        self,
        input,
        running_mean=None,
        running_var=None,
        weight=None,
        bias=None,
        use_input_stats=True,
        momentum=0.1,
        eps=1e-5,
        rank=None,
    ):
        return use_input_stats is True and running_mean is None and running_var is None

    def forward(
        self,
        input: Tensor,
        running_mean=None,
        running_var=None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        rank: int | None = None,
    ):
        if input.dim() < 3 or input.dim() != (rank or input.dim()):
            wanted = "[N, C, L, ...]" if rank is None else f"[N, C, ...] of {rank} dimensions"
            raise ValueError(f"InstanceNorm: expected an input {wanted}, got shape {list(input.shape)}")
        return super().forward(input, input.shape[1], weight, bias, eps)


def _instance_norm(module, read):
    return None, None, read("weight"), read("bias"), True, module.momentum, module.eps, _RANKS[type(module)]


def _own_statistics(module) -> bool:
    return not module.track_running_stats


_RANKS = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}

RULES = {"instance_norm": InstanceNorm()}
FUNCTIONS = {F.instance_norm: "instance_norm"}
METHODS: dict = {}
MODULES = {kind: Layer("instance_norm", _instance_norm, _own_statistics) for kind in _RANKS}
