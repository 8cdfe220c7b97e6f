"""One network per rule, in its module and functional forms, with the shape of an input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Function(nn.Module):
    """A function of the input, with the parameters it wants, as a module's forward."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = [function]
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.function[0](self, x)


def hooked(layer):
    """The same layer; with a hook it has no rule."""
    layer.register_forward_hook(lambda module, args, value: None)
    return layer


class FunctionalBatchNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def _settle(net):
    """Running statistics and affine parameters away from their start."""
    for module in net.modules():
        if isinstance(module, _NORMS):
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            for name, parameter in module.named_parameters():
                parameter.data.uniform_(*((0.5, 1.5) if name == "weight" else (-1.5, 1.5)))
    return net


def _conv_bn():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def _scaled(factor, layer):
    """With a Linear in front, so that the layer meets all its pieces."""
    first = nn.Linear(5, 5)
    first.weight.data.mul_(factor)
    return nn.Sequential(first, layer)


def _per_channel(count):
    layer = nn.PReLU(count)
    layer.weight.data.uniform_(-0.5, 0.5)
    return layer


MODULES = {
    "Linear": (lambda: nn.Linear(3, 5), (4, 3)),
    "Linear without bias, 3-d": (lambda: nn.Linear(3, 5, bias=False), (4, 2, 3)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 6, 5)),
    "Conv2d strided, padded": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=2), (3, 2, 7, 8)),
    "Conv2d dilated, grouped": (
        lambda: nn.Conv2d(4, 2, (2, 3), stride=(3, 2), padding=1, dilation=2, groups=2),
        (3, 4, 9, 8),
    ),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), (3, 2, 3, 4)),
    "ConvTranspose2d output padding": (
        lambda: nn.ConvTranspose2d(4, 2, 3, stride=3, padding=1, output_padding=2, groups=2),
        (3, 4, 3, 2),
    ),
    "ConvTranspose2d dilated": (
        lambda: nn.ConvTranspose2d(2, 3, 2, stride=1, padding=1, output_padding=1, dilation=2),
        (3, 2, 3, 4),
    ),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (3, 2, 6)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 1)), (2, 1, 3, 4, 2)),
    "Conv2d same": (lambda: nn.Conv2d(2, 3, (2, 4), dilation=(1, 2), padding="same"), (3, 2, 4, 5)),
    "Conv1d valid": (lambda: nn.Conv1d(2, 3, 2, padding="valid"), (3, 2, 4)),
    "Conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, 2, padding=(1, 2), padding_mode="reflect"), (3, 2, 4, 5)),
    "Conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (3, 2, 4, 5)),
    "Conv1d replicate, same": (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="replicate"), (3, 2, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (3, 2, 4)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 1, 2, stride=(1, 2, 1)), (2, 2, 2, 1, 3)),
    "BatchNorm1d train": (lambda: _settle(nn.BatchNorm1d(4)), (5, 4)),
    "BatchNorm1d train, 3-d": (lambda: _settle(nn.BatchNorm1d(4)), (5, 4, 3)),
    "BatchNorm1d eval": (lambda: _settle(nn.BatchNorm1d(4)).eval(), (5, 4)),
    "BatchNorm1d plain": (lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False), (5, 4)),
    "BatchNorm1d cumulative": (lambda: _settle(nn.BatchNorm1d(4, momentum=None)), (5, 4)),
    "BatchNorm2d train": (lambda: _settle(_conv_bn()), (4, 2, 5, 4)),
    "BatchNorm2d eval": (lambda: _settle(_conv_bn()).eval(), (4, 2, 5, 4)),
    "BatchNorm3d eval": (lambda: _settle(nn.BatchNorm3d(2)).eval(), (3, 2, 2, 1, 3)),
    "GroupNorm": (lambda: _settle(nn.GroupNorm(2, 6)), (3, 6, 5, 3)),
    "GroupNorm of vectors": (lambda: _settle(nn.GroupNorm(1, 7)), (4, 7)),
    "GroupNorm per channel": (lambda: _settle(nn.GroupNorm(4, 4)), (2, 4, 7)),
    "GroupNorm plain, one sample": (lambda: nn.GroupNorm(3, 6, eps=0.1, affine=False), (1, 6, 3, 2, 2)),
    "LayerNorm": (lambda: _settle(nn.LayerNorm(5)), (4, 5)),
    "LayerNorm of images": (lambda: _settle(nn.LayerNorm((2, 5), bias=False)), (4, 3, 2, 5)),
    "LayerNorm plain": (lambda: nn.LayerNorm(4, eps=0.1, elementwise_affine=False), (3, 2, 4)),
    "InstanceNorm1d": (lambda: _settle(nn.InstanceNorm1d(3, affine=True)), (2, 3, 4)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2), (3, 2, 3, 2)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2, eps=0.1).eval(), (2, 2, 2, 1, 3)),
    "RMSNorm": (lambda: _settle(nn.RMSNorm(5)), (4, 5)),
    "RMSNorm of images": (lambda: nn.RMSNorm((2, 5), eps=0.1, elementwise_affine=False), (4, 3, 2, 5)),
    "ReLU": (nn.ReLU, (4, 3)),
    "ReLU in place": (lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), (4, 3)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), (4, 3)),
    "ELU": (lambda: nn.ELU(0.7), (4, 3)),
    "SiLU": (nn.SiLU, (4, 3)),
    "Softplus": (lambda: nn.Softplus(2.0, 1.0), (4, 3)),
    "Sigmoid": (nn.Sigmoid, (4, 3)),
    "Tanh": (nn.Tanh, (4, 3)),
    "GELU": (nn.GELU, (4, 3)),
    "GELU tanh": (lambda: nn.GELU("tanh"), (4, 3)),
    "Hardtanh": (lambda: nn.Hardtanh(-0.5, 0.7), (4, 3)),
    "ReLU6": (nn.ReLU6, (4, 3)),
    "SELU": (nn.SELU, (4, 3)),
    "CELU": (lambda: nn.CELU(0.5), (4, 3)),
    "Mish": (nn.Mish, (4, 3)),
    "Hardswish": (nn.Hardswish, (5, 7)),
    "Softsign": (nn.Softsign, (4, 3)),
    "LogSigmoid": (nn.LogSigmoid, (4, 3)),
    "Tanhshrink": (nn.Tanhshrink, (4, 3)),
    "Hardsigmoid": (lambda: _scaled(4.0, nn.Hardsigmoid()), (4, 5)),
    "Threshold": (lambda: nn.Threshold(0.2, -1.5), (4, 3)),
    "Softshrink": (lambda: nn.Softshrink(0.4), (4, 3)),
    "Hardshrink": (lambda: nn.Hardshrink(0.6), (4, 3)),
    "PReLU": (nn.PReLU, (4, 3)),
    "PReLU per channel": (lambda: _per_channel(3), (4, 3, 2, 1)),
    "PReLU per unit": (lambda: _per_channel(5), (3, 5)),
    "RReLU eval": (lambda: nn.RReLU(0.1, 0.5).eval(), (4, 3)),
    "GLU": (nn.GLU, (4, 6)),
    "GLU of channels": (lambda: nn.GLU(1), (2, 4, 3)),
    "Softmax": (lambda: nn.Softmax(-1), (4, 5)),
    "Softmax2d": (nn.Softmax2d, (2, 3, 2, 2)),
    "Softmin": (lambda: nn.Softmin(1), (4, 5)),
    "Softmax over channels": (lambda: nn.Softmax(1), (3, 4, 2)),
    "LogSoftmax": (lambda: nn.LogSoftmax(1), (4, 5)),
    "Identity": (nn.Identity, (4, 3)),
    "Dropout train": (lambda: nn.Dropout(0.4), (6, 5)),
    "Dropout eval": (lambda: nn.Dropout(0.4).eval(), (6, 5)),
    "GLU of the batch": (lambda: nn.GLU(0), (4, 3)),
    "Dropout1d train": (lambda: nn.Dropout1d(0.4), (4, 5, 3)),
    "Dropout2d train": (lambda: nn.Dropout2d(0.4), (3, 4, 2, 2)),
    "Dropout3d train": (lambda: nn.Dropout3d(0.4), (3, 4, 1, 2, 2)),
    "Dropout2d eval": (lambda: nn.Dropout2d(0.4).eval(), (3, 4, 2, 2)),
    "AlphaDropout train": (lambda: nn.AlphaDropout(0.4), (6, 5)),
    "AlphaDropout eval": (lambda: nn.AlphaDropout(0.4).eval(), (6, 5)),
    "FeatureAlphaDropout train": (lambda: nn.FeatureAlphaDropout(0.4), (3, 4, 2, 2)),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (3, 2, 5)),
    "AvgPool1d overlapping": (lambda: nn.AvgPool1d((3,), 2, 1, ceil_mode=True, count_include_pad=False), (3, 2, 6)),
    "AvgPool3d": (lambda: nn.AvgPool3d((1, 2, 2), divisor_override=3), (2, 2, 2, 3, 4)),
    "AvgPool3d overlapping": (
        lambda: nn.AvgPool3d(2, (1, 2, 1), (0, 1, 1), ceil_mode=True, count_include_pad=False),
        (2, 1, 2, 3, 4),
    ),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (3, 2, 5, 6)),
    "AvgPool2d overlapping": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (3, 2, 6, 7)),
    "AvgPool2d divisor": (lambda: nn.AvgPool2d((2, 3), divisor_override=5), (3, 2, 5, 6)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (3, 2, 5)),
    "MaxPool2d overlapping": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (3, 2, 6, 7)),
    "MaxPool3d": (lambda: nn.MaxPool3d((1, 2, 2)), (2, 1, 2, 4, 3)),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(3), (3, 2, 5)),
    "AdaptiveMaxPool1d of one sample": (lambda: nn.AdaptiveMaxPool1d(2), (3, 4)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d((3, None)), (3, 2, 5, 4)),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), (2, 2, 2, 3, 3)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), (3, 2, 5)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, None)), (3, 2, 5, 4)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(1), (2, 2, 2, 3, 2)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 2, 0, -1)), (3, 2, 3, 4)),
    "ConstantPad1d": (lambda: nn.ConstantPad1d(2, 0.5), (3, 2, 3)),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d((2, 1, 0, 2)), (3, 2, 4, 3)),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d((1, 0, 2, 1, 0, 1)), (2, 1, 2, 3, 2)),
    "CircularPad2d": (lambda: nn.CircularPad2d((2, 1, 3, 0)), (3, 2, 3, 4)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (3, 8, 2, 3)),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), (3, 6, 2, 1)),
    "Unfold of one sample": (lambda: nn.Unfold(2), (2, 3, 4)),
    "Fold of one sample": (lambda: nn.Fold((3, 4), 2), (8, 6)),
    "Unfold": (lambda: nn.Unfold((2, 3), dilation=(2, 1), padding=(1, 0), stride=2), (3, 2, 4, 5)),
    "Fold": (lambda: nn.Fold((4, 5), (2, 3), dilation=(2, 1), padding=(1, 0), stride=(1, 2)), (3, 12, 8)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), (3, 2, 4, 6)),
    "Upsample nearest": (lambda: nn.Upsample(scale_factor=2), (3, 2, 3, 4)),
    "Upsample nearest, fraction": (lambda: nn.Upsample(scale_factor=(1.7, 2.3)), (3, 2, 3, 4)),
    "Upsample bilinear": (lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"), (3, 2, 3, 4)),
    "Upsample bilinear, corners": (lambda: nn.Upsample((7, 5), mode="bilinear", align_corners=True), (3, 2, 3, 4)),
    "Upsample linear": (lambda: nn.Upsample(scale_factor=2.0, mode="linear"), (3, 2, 5)),
    "Upsample trilinear": (lambda: nn.Upsample(scale_factor=2.0, mode="trilinear"), (2, 1, 2, 3, 2)),
    "Flatten": (nn.Flatten, (3, 2, 4, 2)),
    "Flatten middle": (lambda: nn.Flatten(1, -2), (3, 2, 4, 2)),
    "Unflatten": (lambda: nn.Unflatten(1, (2, -1)), (3, 8)),
}

FUNCTIONS = {
    "F.linear": (lambda: Function(lambda m, x: F.linear(x, m.w, m.b), w=(5, 3), b=(5,)), (4, 3)),
    "F.conv2d": (
        lambda: Function(lambda m, x: F.conv2d(x, m.w, m.b, stride=2, padding=1), w=(3, 2, 3, 3), b=(3,)),
        (3, 2, 6, 5),
    ),
    "F.conv_transpose2d": (
        lambda: Function(lambda m, x: F.conv_transpose2d(x, m.w, stride=2, output_padding=1), w=(2, 3, 3, 3)),
        (3, 2, 3, 4),
    ),
    "F.batch_norm train": (lambda: FunctionalBatchNorm(4), (5, 4)),
    "F.batch_norm eval": (lambda: FunctionalBatchNorm(4).eval(), (5, 4, 3)),
    "F.group_norm": (
        lambda: Function(lambda m, x: F.group_norm(x, 2, weight=m.w, bias=m.b), w=(4,), b=(4,)),
        (3, 4, 3, 2),
    ),
    "F.group_norm without bias": (lambda: Function(lambda m, x: F.group_norm(x, 1, m.w), w=(4,)), (3, 4, 5)),
    "F.layer_norm": (lambda: Function(lambda m, x: F.layer_norm(x, (3,), m.w, m.b), w=(3,), b=(3,)), (4, 3)),
    "F.relu": (lambda: Function(lambda m, x: F.relu(x)), (4, 3)),
    "torch.relu": (lambda: Function(lambda m, x: torch.relu(x)), (4, 3)),
    "Tensor.relu": (lambda: Function(lambda m, x: x.relu()), (4, 3)),
    "F.leaky_relu": (lambda: Function(lambda m, x: F.leaky_relu(x, 0.3)), (4, 3)),
    "F.leaky_relu, falling": (lambda: Function(lambda m, x: F.leaky_relu(x, -0.3)), (4, 3)),
    "F.elu": (lambda: Function(lambda m, x: F.elu(x, alpha=1.3)), (4, 3)),
    "F.silu": (lambda: Function(lambda m, x: F.silu(x)), (4, 3)),
    "F.softplus": (lambda: Function(lambda m, x: F.softplus(x, beta=0.5)), (4, 3)),
    "torch.sigmoid": (lambda: Function(lambda m, x: torch.sigmoid(x)), (4, 3)),
    "F.sigmoid": (lambda: Function(lambda m, x: F.sigmoid(x)), (4, 3)),
    "Tensor.sigmoid": (lambda: Function(lambda m, x: x.sigmoid()), (4, 3)),
    "torch.tanh": (lambda: Function(lambda m, x: torch.tanh(x)), (4, 3)),
    "F.tanh": (lambda: Function(lambda m, x: F.tanh(x)), (4, 3)),
    "Tensor.tanh": (lambda: Function(lambda m, x: x.tanh()), (4, 3)),
    "torch.exp": (lambda: Function(lambda m, x: torch.exp(x) + x.exp()), (4, 3)),
    "negation": (lambda: Function(lambda m, x: -torch.exp(-x)), (4, 3)),
    "F.selu": (lambda: Function(lambda m, x: F.selu(2 * x, inplace=True) * torch.selu(x)), (4, 3)),
    "F.celu": (lambda: Function(lambda m, x: F.celu(x, alpha=2.0) * torch.celu(x, 0.5)), (4, 3)),
    "F.mish": (lambda: Function(lambda m, x: F.mish(x)), (4, 3)),
    "F.hardswish": (lambda: Function(lambda m, x: F.hardswish(2 * x)), (4, 3)),
    "F.softsign": (lambda: Function(lambda m, x: F.softsign(x) * F.tanhshrink(x)), (4, 3)),
    "F.logsigmoid": (lambda: Function(lambda m, x: F.logsigmoid(x)), (4, 3)),
    "F.hardsigmoid": (lambda: Function(lambda m, x: F.hardsigmoid(4 * x) * x), (4, 3)),
    "F.threshold": (lambda: Function(lambda m, x: F.threshold(x, 0.1, 2.0) * torch.threshold(x, -0.3, 0)), (4, 3)),
    "shrinkage": (lambda: Function(lambda m, x: F.softshrink(x) * F.hardshrink(x, 0.3) + x.hardshrink()), (4, 3)),
    "F.prelu": (lambda: Function(lambda m, x: F.prelu(x, m.w) * x.prelu(m.v), w=(3,), v=(1,)), (4, 3)),
    "F.rrelu": (lambda: Function(lambda m, x: F.rrelu(x, 0.2, 0.3) * torch.rrelu(x, training=False)), (4, 3)),
    "F.glu": (lambda: Function(lambda m, x: F.glu(x, dim=1)), (4, 6, 1)),
    "F.softmin": (lambda: Function(lambda m, x: F.softmin(x, dim=-1)), (4, 3)),
    "F.dropout2d": (
        lambda: Function(lambda m, x: F.dropout2d(x, 0.3, m.training) * F.dropout1d(x[..., 0], 0.5)[..., None]),
        (3, 4, 2, 2),
    ),
    "F.dropout3d": (lambda: Function(lambda m, x: F.dropout3d(x, 0.3, training=m.training)), (3, 4, 2, 1, 1)),
    "F.alpha_dropout": (
        lambda: Function(lambda m, x: F.alpha_dropout(x, 0.3, m.training) * torch.alpha_dropout(x, 0.2, True)),
        (4, 3),
    ),
    "F.feature_alpha_dropout": (
        lambda: Function(
            lambda m, x: F.feature_alpha_dropout(x, training=True) * torch.feature_alpha_dropout(x, 0.2, True)
        ),
        (3, 4, 2),
    ),
    "F.dropout": (lambda: Function(lambda m, x: F.dropout(x, 0.3, m.training)), (6, 5)),
    "F.avg_pool2d": (lambda: Function(lambda m, x: F.avg_pool2d(x, (2, 3), stride=1)), (3, 2, 5, 6)),
    "F.avg_pool1d": (lambda: Function(lambda m, x: F.avg_pool1d(x, 3, stride=1, padding=1)), (3, 2, 4)),
    "F.avg_pool3d": (lambda: Function(lambda m, x: F.avg_pool3d(x, (1, 2, 1), padding=(0, 1, 0))), (2, 1, 2, 3, 2)),
    "F.interpolate nearest": (lambda: Function(lambda m, x: F.interpolate(x, scale_factor=2)), (3, 2, 3, 4)),
    "F.interpolate bilinear": (
        lambda: Function(lambda m, x: F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False)),
        (3, 2, 3, 4),
    ),
    "F.interpolate recomputed": (
        lambda: Function(lambda m, x: F.interpolate(x, scale_factor=1.6, mode="bilinear", recompute_scale_factor=True)),
        (3, 2, 3, 4),
    ),
    "torch.flatten": (lambda: Function(lambda m, x: torch.flatten(x, 1)), (3, 2, 4)),
    "Tensor.flatten": (lambda: Function(lambda m, x: x.flatten(start_dim=1)), (3, 2, 4)),
    "Tensor.unflatten": (lambda: Function(lambda m, x: x.unflatten(1, (2, 4))), (3, 8)),
    "torch.reshape": (lambda: Function(lambda m, x: torch.reshape(x, (x.shape[0], -1))), (3, 2, 4)),
    "Tensor.reshape": (lambda: Function(lambda m, x: x.reshape(-1, 4, 2)), (3, 2, 4)),
    "size arithmetic": (
        lambda: Function(lambda m, x: x.view(x.shape[0] * (x.size(1) // 2), -1) + torch.zeros_like(x).view(6, -1)),
        (3, 4, 2),
    ),
    "Tensor.view": (lambda: Function(lambda m, x: x.view(x.size(0), -1)), (3, 2, 4)),
    "squeeze, unsqueeze": (lambda: Function(lambda m, x: x.unsqueeze(1).unsqueeze(-1).squeeze(-1)), (3, 4)),
    "Tensor.chunk": (lambda: Function(lambda m, x: x.chunk(2, dim=1)), (3, 5)),
    "torch.chunk, one piece used": (lambda: Function(lambda m, x: torch.chunk(x, 3, -1)[1] * 2), (3, 7)),
    "torch.split": (lambda: Function(lambda m, x: torch.split(x, (2, 3), dim=1)), (3, 5)),
    "slices": (lambda: Function(lambda m, x: (x[:, :2], x[..., 2:], x[:, 1], x[:, None, ::2])), (3, 5)),
    "squares": (lambda: Function(lambda m, x: torch.square(x) + x.square() * x), (4, 3)),
    "powers": (lambda: Function(lambda m, x: x**3 + (1 + x * x).pow(-1.5) + torch.pow(x, 2)), (4, 3)),
    "low powers": (lambda: Function(lambda m, x: (x.clamp(min=0) ** 1 + x**0) * x), (4, 3)),
    "roots": (lambda: Function(lambda m, x: torch.sqrt(1 + x * x) + (2 + x * x).rsqrt()), (4, 3)),
    "logarithms": (lambda: Function(lambda m, x: torch.log(1 + x * x) + (x * x).log1p()), (4, 3)),
    "reciprocal": (lambda: Function(lambda m, x: (1 + x.exp()).reciprocal()), (4, 3)),
    "sine and cosine": (lambda: Function(lambda m, x: torch.sin(x) * x.cos()), (4, 3)),
    "abs": (lambda: Function(lambda m, x: abs(x) + torch.abs(x) * x.abs()), (4, 3)),
    "clamp": (lambda: Function(lambda m, x: x.clamp(-0.5, 0.5) + torch.clamp(x, max=0.2) * x.clamp_min(0)), (4, 3)),
    "F.hardtanh": (lambda: Function(lambda m, x: F.hardtanh(x) * F.relu6(x)), (4, 3)),
    "F.gelu": (lambda: Function(lambda m, x: F.gelu(x, approximate="tanh")), (4, 3)),
    "F.rms_norm": (lambda: Function(lambda m, x: F.rms_norm(x, (3,), m.w), w=(3,)), (4, 3)),
    "F.instance_norm": (lambda: Function(lambda m, x: F.instance_norm(x, weight=m.w), w=(3,)), (2, 3, 4)),
    "sums": (lambda: Function(lambda m, x: x.sum(-1) + torch.sum(x, (1, 2), keepdim=True)[:, 0]), (4, 3, 2)),
    "means": (lambda: Function(lambda m, x: x.mean((-1, 1)) + torch.mean(x, dim=1)[:, 0]), (4, 3, 2)),
    "sum of everything": (lambda: Function(lambda m, x: x.sum() + x.mean()), (4, 3)),
    "energy": (lambda: Function(lambda m, x: -0.5 * (x @ m.w).square().sum(-1) - x.abs().mean(1), w=(3, 5)), (4, 3)),
    "F.softmax": (lambda: Function(lambda m, x: F.softmax(x, dim=1) * x.softmax(-1)), (4, 3, 2)),
    "F.log_softmax": (lambda: Function(lambda m, x: F.log_softmax(x, -1) + torch.log_softmax(x, 1)), (4, 3, 2)),
    "logsumexp": (
        lambda: Function(lambda m, x: torch.logsumexp(x, (1, 2), keepdim=True)[:, 0] * x.logsumexp(1)),
        (4, 3, 2),
    ),
    "mixture": (
        lambda: Function(lambda m, x: torch.logsumexp(-0.5 * (x[:, None] - m.w).square().sum(2), 1), w=(4, 3)),
        (5, 3),
    ),
    "matmul by a constant": (lambda: Function(lambda m, x: x @ m.w + torch.matmul(x, m.v), w=(3, 3), v=(3, 3)), (4, 3)),
    "matmul, constant first": (lambda: Function(lambda m, x: m.w @ x, w=(5, 3)), (4, 3, 2)),
    "matmul with a vector": (lambda: Function(lambda m, x: x @ m.w, w=(3,)), (4, 2, 3)),
    "matmul of activations": (lambda: Function(lambda m, x: torch.matmul(x.tanh(), x.mT)), (4, 3, 2)),
    "matmul, broadcast": (
        lambda: Function(lambda m, x: x[:, None] @ m.w @ x.transpose(1, 2)[:, None], w=(3, 2, 2)),
        (2, 3, 2),
    ),
    "torch.bmm": (lambda: Function(lambda m, x: torch.bmm(x, x.permute(0, 2, 1).exp())), (4, 3, 2)),
    "torch.einsum": (lambda: Function(lambda m, x: torch.einsum("ni,ij,nj->n", x, m.w, x.tanh()), w=(3, 3)), (4, 3)),
    "torch.einsum, implicit": (lambda: Function(lambda m, x: torch.einsum("bij, bjk", x, x.mT)), (4, 3, 2)),
    "torch.einsum, summed index": (
        lambda: Function(lambda m, x: torch.einsum("nij,nk->kn", x, x[:, :, 0]).t()),
        (4, 3, 2),
    ),
    "torch.einsum, repeated entry": (
        lambda: Function(lambda m, x: torch.einsum("nij,nkj->ni", x[:, :, :1], x)),
        (4, 3, 2),
    ),
    "attention": (lambda: Function(lambda m, x: F.scaled_dot_product_attention(x, x.tanh(), x.sin())), (2, 3, 4)),
    "attention, causal": (
        lambda: Function(lambda m, x: F.scaled_dot_product_attention(x, m.w, x, is_causal=True), w=(2, 3, 4)),
        (2, 3, 4),
    ),
    "attention, masked": (
        lambda: Function(
            lambda m, x: F.scaled_dot_product_attention(x, x, m.w, attn_mask=m.mask, scale=0.3), w=(2, 4), mask=(2, 2)
        ),
        (3, 2, 2, 4),
    ),
    "attention, dropout": (
        lambda: Function(
            lambda m, x: F.scaled_dot_product_attention(
                x, x.tanh(), x.sin(), dropout_p=0.4 if m.training else 0.0, is_causal=True
            )
        ),
        (2, 3, 4),
    ),
    "attention, values alone": (
        lambda: Function(lambda m, x: F.scaled_dot_product_attention(m.w, m.w, x), w=(2, 3, 4)),
        (2, 3, 4),
    ),
    "F.max_pool2d": (lambda: Function(lambda m, x: F.max_pool2d(x, 2, stride=1)), (3, 2, 4, 3)),
    "F.adaptive_max_pool2d": (lambda: Function(lambda m, x: F.adaptive_max_pool2d(x, (2, 3))), (3, 2, 5, 3)),
    "F.adaptive_avg_pool2d": (lambda: Function(lambda m, x: F.adaptive_avg_pool2d(x, 2)), (3, 2, 5, 3)),
    "F.pad": (lambda: Function(lambda m, x: F.pad(x, (1, 0), value=2.0) * F.pad(x, (0, 1), "replicate")), (3, 2, 4)),
    "F.conv1d": (lambda: Function(lambda m, x: F.conv1d(x, m.w, padding="same"), w=(3, 2, 2)), (3, 2, 4)),
    "F.channel_shuffle": (lambda: Function(lambda m, x: F.channel_shuffle(x, 3)), (2, 6, 2)),
    "F.unfold": (lambda: Function(lambda m, x: F.unfold(x, (1, 2), padding=1)), (3, 2, 2, 3)),
    "F.fold": (lambda: Function(lambda m, x: F.fold(x, (2, 3), kernel_size=2, padding=(1, 0))), (2, 4, 6)),
    "F.pixel_shuffle": (lambda: Function(lambda m, x: F.pixel_shuffle(x, 2)), (3, 4, 2, 1)),
    "permutations": (
        lambda: Function(lambda m, x: x.permute(0, 2, 1).transpose(-1, 1) * torch.movedim(x, 2, 1).mT),
        (4, 3, 2),
    ),
    "torch.stack": (lambda: Function(lambda m, x: torch.stack([x, m.w, x * x], dim=1), w=(3, 2)), (3, 2)),
    "Tensor.unbind": (lambda: Function(lambda m, x: x.unbind(1)[0] * x.unbind(-1)[1]), (4, 3, 3)),
    "torch.cat": (lambda: Function(lambda m, x: torch.cat([x, m.w, x * 2], dim=0), w=(2, 3)), (3, 3)),
    "torch.cat, last dim": (lambda: Function(lambda m, x: torch.cat((x, x.tanh()), -1)), (3, 3)),
    "residual add": (lambda: Function(lambda m, x: x + torch.tanh(F.linear(x, m.w)), w=(3, 3)), (4, 3)),
    "add, broadcast": (lambda: Function(lambda m, x: torch.add(x[:, :1] + m.w, x), w=(3,)), (4, 3)),
    "add in place": (lambda: Function(lambda m, x: x.mul(2).add_(1.0).relu_()), (4, 3)),
    "sub": (lambda: Function(lambda m, x: 1 - x.sub(m.w) - x[:, :1], w=(4, 3)), (4, 3)),
    "mul": (lambda: Function(lambda m, x: x * torch.sigmoid(x) * m.w, w=(3,)), (4, 3)),
    "mul, broadcast": (lambda: Function(lambda m, x: x[:, :1].mul(x) * 3.0), (4, 3)),
    "square": (lambda: Function(lambda m, x: x * x), (4, 3)),
    "div": (lambda: Function(lambda m, x: x / (2 + torch.sigmoid(x[:, :1])) / 3.0 + 1 / (m.w + x * x), w=(3,)), (4, 3)),
}


def _attention(call, batch_first=True, shapes=None, **options):
    """Multi-head attention of width 4 in a module with masks, and parameters of these shapes."""
    net = _with_masks(Function(call, **(shapes or {})))
    net.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
    return _biased(net)


def _with_masks(net):
    net.register_buffer("future", torch.ones(7, 7, dtype=torch.bool).triu(1))
    net.register_buffer("padding", torch.tensor([[False, False, True], [False, True, True]]))
    return net


def _biased(net):
    """Biases of attention away from 0, where they start."""
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-1, 1)
    return net


def _encoder(call, layers, **options):
    """An encoder that takes [L, N, E]."""
    net = _with_masks(Function(call))
    layer = nn.TransformerEncoderLayer(4, 2, 5, **options)
    net.encoder = layer if not layers else nn.TransformerEncoder(layer, layers, nn.LayerNorm(4), False)
    return _biased(net)


def _swapped(attend):
    """[N, L, E] for what takes [L, N, E]."""
    return lambda m, x: attend(m, x.transpose(0, 1)).transpose(0, 1)


ATTENTION = {
    "MultiheadAttention": (lambda: _attention(lambda m, x: m.attention(x, x, x)[0]), (2, 3, 4)),
    "MultiheadAttention, sequence first": (
        lambda: _attention(_swapped(lambda m, x: m.attention(x, x, x, need_weights=False)[0]), False, bias=False),
        (2, 3, 4),
    ),
    "MultiheadAttention, one sequence": (
        lambda: _attention(lambda m, x: m.attention(x, x, x.tanh(), need_weights=False)[0]),
        (3, 4),
    ),
    "MultiheadAttention and its weights": (lambda: _attention(lambda m, x: m.attention(x, x.sin(), x)), (2, 3, 4)),
    "MultiheadAttention and each head's weights": (
        lambda: _attention(
            lambda m, x: m.attention(x, x, x, attn_mask=m.scores, average_attn_weights=False),
            shapes={"scores": (2 * 2, 3, 3)},
            dropout=0.4,
        ),
        (2, 3, 4),
    ),
    "MultiheadAttention to constants": (
        lambda: _attention(
            lambda m, x: m.attention(x, m.keys, m.contents)[0],
            shapes={"keys": (2, 5, 3), "contents": (2, 5, 6)},
            kdim=3,
            vdim=6,
        ),
        (2, 3, 4),
    ),
    "MultiheadAttention from constants": (
        lambda: _attention(
            lambda m, x: m.attention(m.queries, x, x.sin(), need_weights=False)[0],
            shapes={"queries": (2, 5, 4)},
            bias=False,
        ),
        (2, 3, 4),
    ),
    "MultiheadAttention, causal": (
        lambda: _attention(
            lambda m, x: m.attention(x, x, x, attn_mask=m.padding, is_causal=True, need_weights=False)[
                0
            ]  # not looked at
        ),
        (2, 3, 4),
    ),
    "MultiheadAttention, padded": (
        lambda: _attention(
            lambda m, x: m.attention(
                x, x, x, attn_mask=m.future[:3, : x.shape[1]], is_causal=True, key_padding_mask=m.padding
            )[0]
        ),
        (2, 3, 4),
    ),
    "MultiheadAttention, penalised": (
        lambda: _attention(
            lambda m, x: m.attention(x, x, x, attn_mask=m.scores, key_padding_mask=m.penalty, need_weights=False)[0],
            shapes={"scores": (3, 3), "penalty": (2, 3)},
            dropout=0.4,
        ),
        (2, 3, 4),
    ),
    "TransformerEncoderLayer": (
        lambda: _encoder(_swapped(lambda m, x: m.encoder(x)), 0, dropout=0.3),
        (2, 3, 4),
    ),
    "TransformerEncoderLayer, norm first": (
        lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True, norm_first=True),
        (2, 3, 4),
    ),
    "TransformerEncoder": (
        lambda: _encoder(_swapped(lambda m, x: m.encoder(x, m.future[:3, :3], m.padding)), 2, dropout=0.3),
        (2, 3, 4),
    ),
}

ALL = {**MODULES, **FUNCTIONS, **ATTENTION}
EAGER_ONLY = {"BatchNorm1d cumulative"}  # torch itself reads its counter as a number, which breaks the graph
