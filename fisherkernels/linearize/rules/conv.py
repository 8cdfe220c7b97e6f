"""Convolution and its transpose: each is the other's vector-Jacobian product, with the same weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _extra_output(full: int, size: int, stride: int, padding: int, dilation: int, kernel: int) -> int:
    """Rows at the far edge that the convolution never reached, which its transpose has to add."""
    return full - ((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)


class Convolution(Rule):
    """Convolutions of images [N, C, H, W]."""

    traffic = 0

    def keeps_samples(self, saved, operands, value):
        return len(operands[0]) == 4

    def of_one_sample(self, saved, active):
        return saved


class Conv2d(Convolution):
    """J t = conv(t, W),  J^T c = conv_transpose(c, W) cut to the input's size."""

    def accepts(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return not isinstance(padding, str)

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
    ):
        value = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
        output_padding = tuple(
            _extra_output(
                input.shape[2 + i],
                value.shape[2 + i],
                stride[i],
                padding[i],
                dilation[i],
                weight.shape[2 + i],
            )
            for i in (0, 1)
        )
        return value, (weight, stride, padding, dilation, groups, output_padding)

    def vjp(self, saved, cotangent, stacked, needs):
        weight, stride, padding, dilation, groups, output_padding = saved

        def transpose(c):
            return F.conv_transpose2d(c, weight, None, stride, padding, output_padding, groups, dilation)

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        weight, stride, padding, dilation, groups, _ = saved
        return fold(lambda t: F.conv2d(t, weight, None, stride, padding, dilation, groups), tangents[0], stacked)

    def flops(self, saved, operand, value):
        return 2.0 * value * saved[0][0].numel()


class ConvTranspose2d(Convolution):
    """J t = conv_transpose(t, W),  J^T c = conv(c, W)."""

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        dilation=1,
    ):
        value = F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
        return value, (
            weight,
            stride,
            padding,
            output_padding,
            groups,
            dilation,
            input.shape[2],
            input.shape[3],
        )

    def vjp(self, saved, cotangent, stacked, needs):
        weight, stride, padding, _, groups, dilation, height, width = saved

        def transpose(c):
            out = F.conv2d(c, weight, None, stride, padding, dilation, groups)
            if out.shape[2:] == (height, width):
                return out
            # An output padding as large as the stride (allowed when dilated) yields rows that no input made.
            return out[:, :, :height, :width]

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        weight, stride, padding, output_padding, groups, dilation, _, _ = saved

        def convolve(t):
            return F.conv_transpose2d(t, weight, None, stride, padding, output_padding, groups, dilation)

        return fold(convolve, tangents[0], stacked)

    def flops(self, saved, operand, value):
        return 2.0 * operand * saved[0][0].numel()


def _conv(module: nn.Conv2d, read):
    return read("weight"), read("bias"), module.stride, module.padding, module.dilation, module.groups


def _conv_transpose(module: nn.ConvTranspose2d, read):
    options = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    return read("weight"), read("bias"), *options


def _zero_padded(module: nn.Conv2d) -> bool:
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


RULES = {"conv2d": Conv2d(), "conv_transpose2d": ConvTranspose2d()}
FUNCTIONS = {F.conv2d: "conv2d", F.conv_transpose2d: "conv_transpose2d"}
METHODS: dict = {}
MODULES = {
    nn.Conv2d: Layer("conv2d", _conv, _zero_padded),
    nn.ConvTranspose2d: Layer("conv_transpose2d", _conv_transpose),
}
