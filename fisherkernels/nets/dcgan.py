"""The convolutional pair of DCGAN (Radford et al., ICLR 2016)."""

from collections.abc import Sequence

import torch
from torch import nn

from fisherkernels.nets.layers import check_sizes, make_output

SMALLEST = 4  # side of the last feature maps


def _stages(shape: Sequence[int], width: int, **sizes) -> int:
    """How often the side of the images is halved down to 4."""
    check_sizes(shape=shape, width=width, **sizes)
    _, height, side = shape
    stages = (side // SMALLEST).bit_length() - 1
    if height != side or side != SMALLEST << stages or stages < 1:
        raise ValueError(f"shape must be (C, S, S) with S = 8, 16, 32, ...; got {list(shape)}")
    return stages


class DCGANEncoder(nn.Module):
    """Images [N, C, S, S] -> [N, 2 d] = (mean, log_std), or the mean [N, d] alone.

    The discriminator's layers: 4x4 convolutions of stride 2 down to 4x4 maps, twice the channels each time, BatchNorm
    except after the first, LeakyReLU of slope 0.2; then a 4x4 convolution to 1x1.

    Args:
        in_shape: (C, S, S), S = 8, 16, 32, ...
        latent_dim: d.
        width: channels after the first convolution.
        mean_only: leave log_std out.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 32, 32),
        latent_dim: int = 100,
        width: int = 64,
        mean_only: bool = False,
    ):
        super().__init__()
        count = in_shape[0]
        layers: list[nn.Module] = []
        for stage in range(_stages(in_shape, width, latent_dim=latent_dim)):
            out = width << stage
            norm = [nn.BatchNorm2d(out)] if stage else []
            layers += [nn.Conv2d(count, out, 4, 2, 1, bias=not stage), *norm, nn.LeakyReLU(0.2)]
            count = out
        layers += [nn.Conv2d(count, latent_dim if mean_only else 2 * latent_dim, SMALLEST, 1, 0), nn.Flatten()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class DCGANDecoder(nn.Module):
    """z [N, d] -> images [N, C, S, S].

    The generator's layers: 4x4 transposed convolutions, the first to 4x4 maps, the others of stride 2, half the
    channels each time, BatchNorm and ReLU between them.

    Args:
        latent_dim: d.
        out_shape: (C, S, S), S = 8, 16, 32, ...
        width: channels before the last layer.
        output: ``sigmoid`` (values in [0, 1]), ``tanh`` (the paper's, for images in [-1, 1]) or ``identity``.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        out_shape: Sequence[int] = (1, 32, 32),
        width: int = 64,
        output: str = "sigmoid",
    ):
        super().__init__()
        stages = _stages(out_shape, width, latent_dim=latent_dim)
        count, step = latent_dim, (SMALLEST, 1, 0)  # kernel size, stride, padding
        layers: list[nn.Module] = [nn.Unflatten(1, (latent_dim, 1, 1))]
        for stage in reversed(range(stages)):
            out = width << stage
            layers += [nn.ConvTranspose2d(count, out, *step, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            count, step = out, (4, 2, 1)
        layers += [nn.ConvTranspose2d(count, out_shape[0], *step), make_output(output)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
