"""Convolutional encoder and decoder for images of any size."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fisherkernels.nets.layers import check_sizes, make_activation, make_output


def _check(channels: Sequence[int], strides: Sequence[int], kernel_size: int, norm_groups: int, **sizes) -> None:
    check_sizes(channels=channels, strides=strides, kernel_size=kernel_size, **sizes)
    if not channels or len(channels) != len(strides):
        raise ValueError(f"channels and strides must be of one length >= 1; got {list(channels)} and {list(strides)}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd; got {kernel_size}")
    if norm_groups < 0 or (norm_groups and any(count % norm_groups for count in channels)):
        raise ValueError(f"norm_groups must be 0 or divide all of channels {list(channels)}; got {norm_groups}")


def _block(convolution: nn.Module, norm_groups: int, activation: str) -> list[nn.Module]:
    norm = [nn.GroupNorm(norm_groups, convolution.out_channels)] if norm_groups else []
    return [convolution, *norm, make_activation(activation)]


def _sizes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Image sizes before and after each convolution: a stride s takes H to ceil(H / s)."""
    sizes = [(height, width)]
    for stride in strides:
        sizes.append(tuple(math.ceil(size / stride) for size in sizes[-1]))
    return sizes


class ConvEncoder(nn.Module):
    """Images [N, C, H, W] -> [N, 2 d] = (mean, log_std), or the mean [N, d] alone.

    Convolutions that keep H and W up to their stride, each followed by GroupNorm (if any) and the activation, then one
    Linear layer.

    Args:
        in_shape: (C, H, W).
        channels, strides: of the convolutions.
        latent_dim: d.
        kernel_size: odd.
        norm_groups: groups of GroupNorm; 0 leaves it out.
        activation: one of ``relu, leaky_relu, elu, silu, softplus, tanh``.
        mean_only: leave log_std out, as FisherNet does.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        latent_dim: int,
        kernel_size: int = 3,
        norm_groups: int = 0,
        activation: str = "relu",
        mean_only: bool = False,
    ):
        super().__init__()
        _check(channels, strides, kernel_size, norm_groups, in_shape=in_shape, latent_dim=latent_dim)
        count, height, width = in_shape
        layers: list[nn.Module] = []
        for out, stride in zip(channels, strides, strict=True):
            layers += _block(nn.Conv2d(count, out, kernel_size, stride, kernel_size // 2), norm_groups, activation)
            count = out
        features = count * math.prod(_sizes(height, width, strides)[-1])
        layers += [nn.Flatten(), nn.Linear(features, latent_dim if mean_only else 2 * latent_dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ConvDecoder(nn.Module):
    """z [N, d] -> images [N, C, H, W].

    One Linear layer to ``channels[0]`` maps, transposed convolutions that multiply their size by the strides (each
    followed by GroupNorm, if any, and the activation), then a transposed convolution of stride 1 to C channels.

    Args:
        latent_dim: d.
        out_shape: (C, H, W).
        channels, strides: of the transposed convolutions.
        kernel_size: odd.
        norm_groups: groups of GroupNorm; 0 leaves it out.
        activation: as for :class:`ConvEncoder`.
        output: ``sigmoid`` (values in [0, 1]), ``tanh`` or ``identity``.
    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_size: int = 3,
        norm_groups: int = 0,
        activation: str = "relu",
        output: str = "sigmoid",
    ):
        super().__init__()
        _check(channels, strides, kernel_size, norm_groups, out_shape=out_shape, latent_dim=latent_dim)
        out_channels, height, width = out_shape
        sizes = _sizes(height, width, strides[::-1])[::-1]
        start = (channels[0], *sizes[0])
        layers: list[nn.Module] = [nn.Linear(latent_dim, math.prod(start)), nn.Unflatten(1, start)]
        count, padding = channels[0], kernel_size // 2
        for i, (out, stride) in enumerate(zip(channels, strides, strict=True)):
            # A stride s reaches from (n - 1) s + 1 to n s; output_padding chooses among them.
            missing = [after - (before - 1) * stride - 1 for before, after in zip(*sizes[i : i + 2], strict=True)]
            convolution = nn.ConvTranspose2d(count, out, kernel_size, stride, padding, tuple(missing))
            layers += _block(convolution, norm_groups, activation)
            count = out
        layers += [nn.ConvTranspose2d(count, out_channels, kernel_size, 1, padding), make_output(output)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
