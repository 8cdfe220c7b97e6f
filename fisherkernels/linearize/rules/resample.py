"""Average pooling and interpolation: linear maps whose transposes torch has as their backward operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold

aten = torch.ops.aten


class AvgPool2d(Rule):
    """J t = avg_pool(t)."""

    traffic = 2

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
        options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(input, *options), (input.shape[1:], options)

    def vjp(self, saved, cotangent, stacked, needs):
        shape, (kernel_size, stride, padding, *rest) = saved
        kernel_size, padding = _list(kernel_size), _list(padding)
        stride = kernel_size if stride is None else _list(stride)

        def transpose(c):
            like = c.new_empty(()).expand(c.shape[0], *shape)  # only its shape is read
            return aten.avg_pool2d_backward(c, like, kernel_size, stride, padding, *rest)

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        _, options = saved
        return fold(lambda t: F.avg_pool2d(t, *options), tangents[0], stacked)

    def keeps_samples(self, saved, operands, value):
        return len(value) == 4

    def of_one_sample(self, saved, active):
        return saved


def _list(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


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


def _avg_pool(module: nn.AvgPool2d, read):
    sizes = (module.kernel_size, module.stride, module.padding)
    return *sizes, module.ceil_mode, module.count_include_pad, module.divisor_override


def _upsample(module: nn.Upsample, read):
    return module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor


def _covered(module: nn.Upsample) -> bool:
    return module.mode in _MODES


RULES = {"avg_pool2d": AvgPool2d(), "interpolate": Interpolate()}
FUNCTIONS = {F.avg_pool2d: "avg_pool2d", F.interpolate: "interpolate"}
METHODS: dict = {}
MODULES = {
    nn.AvgPool2d: Layer("avg_pool2d", _avg_pool),
    nn.Upsample: Layer("interpolate", _upsample, _covered),
}
