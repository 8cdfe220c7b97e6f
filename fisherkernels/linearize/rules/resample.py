"""Average pooling and interpolation: linear maps whose transposes torch has as their backward operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold

aten = torch.ops.aten


class AvgPool(Rule):
    """J t = avg_pool(t)."""

    traffic = 2

    def __init__(self, operation, dims: int):
        self.operation, self.dims = operation, dims
        self.transpose = aten.avg_pool3d_backward if dims == 3 else aten.avg_pool2d_backward

    def forward(
        self,
        input: Tensor,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        options = (kernel_size, stride, padding, ceil_mode, count_include_pad)
        options += () if divisor_override is None else (divisor_override,)  # which pooling in one dimension has not
        return self.operation(input, *options), (tuple(input.shape[1:]), options)

    def vjp(self, saved, cotangent, stacked, needs):
        shape, (kernel_size, stride, padding, ceil_mode, count_include_pad, *divisor) = saved
        windows = [self._sizes(*each) for each in ((kernel_size, 1), (stride or kernel_size, 1), (padding, 0))]
        in_one = self.dims == 1  # seen as two, the first of size 1
        shape = (*shape[:-1], 1, shape[-1]) if in_one else shape

        def transpose(c):
            c = c.unsqueeze(-2) if in_one else c
            like = c.new_empty(()).expand(c.shape[0], *shape)  # only its shape is read
            out = self.transpose(c, like, *windows, ceil_mode, count_include_pad, *(divisor or [None]))
            return out.squeeze(-2) if in_one else out

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        _, options = saved
        return fold(lambda t: self.operation(t, *options), tangents[0], stacked)

    def keeps_samples(self, saved, operands, value):
        return len(value) == self.dims + 2

    def of_one_sample(self, saved, active):
        return saved

    def _sizes(self, given, first: int) -> list[int]:
        """One for each dimension; ``first``: of the one that is put in front of a single one."""
        sizes = [given] * self.dims if isinstance(given, int) else list(given)
        return [first, *sizes] if self.dims == 1 else sizes


_TRANSPOSES = {
    ("nearest", 1): aten.upsample_nearest1d_backward,
    ("nearest", 2): aten.upsample_nearest2d_backward,
    ("nearest", 3): aten.upsample_nearest3d_backward,
    ("linear", 1): aten.upsample_linear1d_backward,
    ("bilinear", 2): aten.upsample_bilinear2d_backward,
    ("trilinear", 3): aten.upsample_trilinear3d_backward,
}
_MODES = {mode for mode, _ in _TRANSPOSES}


class Interpolate(Rule):
    """J t = interpolate(t)."""

    traffic = 2

    def accepts(
        self,
        input,
        size=None,
        scale_factor=None,
        mode="nearest",
        align_corners=None,
        recompute_scale_factor=None,
        antialias=False,
    ):
        return mode in _MODES and not antialias

    def forward(
        self,
        input: Tensor,
        size=None,
        scale_factor=None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ):
        options = (size, scale_factor, mode, align_corners, recompute_scale_factor)
        value = F.interpolate(input, *options)
        return value, (tuple(input.shape[1:]), tuple(value.shape[2:]), options)

    def vjp(self, saved, cotangent, stacked, needs):
        in_shape, out_size, (size, scale_factor, mode, align_corners, recompute) = saved
        dims = len(out_size)
        if scale_factor is None or recompute:
            scales = [None] * dims
        else:
            scales = list(scale_factor) if isinstance(scale_factor, (tuple, list)) else [float(scale_factor)] * dims
        corners = [] if mode == "nearest" else [bool(align_corners)]

        def transpose(c):
            return _TRANSPOSES[mode, dims](c, list(out_size), [c.shape[0], *in_shape], *corners, *scales)

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        _, _, options = saved
        return fold(lambda t: F.interpolate(t, *options), tangents[0], stacked)

    def of_one_sample(self, saved, active):
        return saved


def _avg_pool(module, read):
    sizes = (module.kernel_size, module.stride, module.padding)
    return *sizes, module.ceil_mode, module.count_include_pad, getattr(module, "divisor_override", None)


def _upsample(module: nn.Upsample, read):
    return module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor


def _covered(module: nn.Upsample) -> bool:
    return module.mode in _MODES


_AVG = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)

RULES = {f"avg_pool{d}d": AvgPool(function, d) for d, function in enumerate(_AVG, 1)} | {"interpolate": Interpolate()}
FUNCTIONS = {function: f"avg_pool{d}d" for d, function in enumerate(_AVG, 1)} | {F.interpolate: "interpolate"}
METHODS: dict = {}
MODULES = {getattr(nn, f"AvgPool{d}d"): Layer(f"avg_pool{d}d", _avg_pool) for d in (1, 2, 3)}
MODULES |= {nn.Upsample: Layer("interpolate", _upsample, _covered)}
