"""Convolution and its transpose: each is the other's vector-Jacobian product, with the same weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, fold
from .pad import pad_transpose

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _of_each(value, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _extra_output(full: int, size: int, stride: int, padding: int, dilation: int, kernel: int) -> int:
    """Rows at the far edge that the convolution never reached, which its transpose has to add."""
    return full - ((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)


def _same(weight: Tensor, dilation: tuple[int, ...]) -> tuple[int, ...]:
    """What padding="same" adds before and after each dimension, the last one first, as F.pad takes it."""
    pad: list[int] = []
    for step, kernel in zip(reversed(dilation), reversed(weight.shape[2:]), strict=True):
        total = step * (kernel - 1)
        pad += [total // 2, total - total // 2]
    return tuple(pad)


class Convolution(Rule):
    """Convolutions of [N, C, ...] with one, two or three dimensions behind the channels."""

    traffic = 0

    def __init__(self, dims: int):
        self.dims = dims

    def keeps_samples(self, saved, operands, value):
        return len(operands[0]) == self.dims + 2

    def of_one_sample(self, saved, active):
        return saved


class Conv(Convolution):
    """J t = conv(pad(t), W),  J^T c = pad^T(conv_transpose(c, W), cut to the padded input's size)."""

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        padding_mode: str = "zeros",
    ):
        if input.dim() == self.dims + 1:
            raise ValueError(f"Conv{self.dims}d: expected a batch [N, C, ...], got one sample {list(input.shape)}")
        stride, dilation = _of_each(stride, self.dims), _of_each(dilation, self.dims)
        pad, shape = None, tuple(input.shape[1:])
        if padding == "valid":
            padding = 0
        if padding == "same" or padding_mode != "zeros":
            sides = _of_each(padding, self.dims) if padding != "same" else ()
            amounts = tuple(side for size in reversed(sides) for side in (size, size)) or _same(weight, dilation)
            pad, padding = (amounts, "constant" if padding_mode == "zeros" else padding_mode), 0
            input = F.pad(input, *pad)
        value = _CONV[self.dims](input, weight, bias, stride, padding, dilation, groups)
        padding = _of_each(padding, self.dims)
        sizes = zip(input.shape[2:], value.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
        output_padding = tuple(_extra_output(*size) for size in sizes)
        return value, (weight, stride, padding, dilation, groups, output_padding, pad, shape)

    def vjp(self, saved, cotangent, stacked, needs):
        weight, stride, padding, dilation, groups, output_padding, pad, shape = saved

        def transpose(c):
            c = _CONV_TRANSPOSE[self.dims](c, weight, None, stride, padding, output_padding, groups, dilation)
            return c if pad is None else pad_transpose(shape, *pad, c)

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        weight, stride, padding, dilation, groups, _, pad, _ = saved

        def convolve(t):
            t = t if pad is None else F.pad(t, *pad)
            return _CONV[self.dims](t, weight, None, stride, padding, dilation, groups)

        return fold(convolve, tangents[0], stacked)

    def flops(self, saved, operand, value):
        return 2.0 * value * saved[0][0].numel()


class ConvTranspose(Convolution):
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
        options = (stride, padding, output_padding, groups, dilation)
        return _CONV_TRANSPOSE[self.dims](input, weight, bias, *options), (weight, *options, tuple(input.shape[2:]))

    def vjp(self, saved, cotangent, stacked, needs):
        weight, stride, padding, _, groups, dilation, sizes = saved

        def transpose(c):
            out = _CONV[self.dims](c, weight, None, stride, padding, dilation, groups)
            # An output padding as large as the stride (allowed when dilated) yields rows that no input made.
            for dim, size in enumerate(sizes, 2):
                out = out if out.shape[dim] == size else out.narrow(dim, 0, size)
            return out

        return (fold(transpose, cotangent, stacked),)

    def jvp(self, saved, tangents, stacked):
        weight, *options, _ = saved
        return fold(lambda t: _CONV_TRANSPOSE[self.dims](t, weight, None, *options), tangents[0], stacked)

    def flops(self, saved, operand, value):
        return 2.0 * operand * saved[0][0].numel()


def _conv(module, read):
    options = (module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return read("weight"), read("bias"), *options


def _conv_transpose(module, read):
    options = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    return read("weight"), read("bias"), *options


_DIMS = (1, 2, 3)

RULES = {f"conv{d}d": Conv(d) for d in _DIMS} | {f"conv_transpose{d}d": ConvTranspose(d) for d in _DIMS}
FUNCTIONS = {_CONV[d]: f"conv{d}d" for d in _DIMS} | {_CONV_TRANSPOSE[d]: f"conv_transpose{d}d" for d in _DIMS}
METHODS: dict = {}
MODULES = {getattr(nn, f"Conv{d}d"): Layer(f"conv{d}d", _conv) for d in _DIMS}
MODULES |= {getattr(nn, f"ConvTranspose{d}d"): Layer(f"conv_transpose{d}d", _conv_transpose) for d in _DIMS}
