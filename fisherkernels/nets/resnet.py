"""A ResNet-18 encoder (He et al., CVPR 2016) and the decoder that mirrors it."""

from collections.abc import Sequence

import torch
from torch import nn

from fisherkernels.nets.layers import check_sizes, make_output

STAGES = 4  # of two residual blocks each; all but the first change the size by 2


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution, BatchNorm."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]


class ResidualBlock(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H', W']: two 3x3 convolutions with BatchNorm around a ReLU, added to the input
    (or to its 1x1 convolution, where the shape changes), ReLU. H' = H / stride, or 2 H with ``upsample``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, upsample: bool = False):
        super().__init__()
        larger = [nn.Upsample(scale_factor=2, mode="nearest")] if upsample else []
        self.residual = nn.Sequential(
            *larger, *_convolution(inputs, outputs, stride), nn.ReLU(), *_convolution(outputs, outputs)
        )
        if inputs == outputs and stride == 1 and not upsample:
            self.shortcut = nn.Identity()
        else:
            one = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(*larger, one, nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


def _check(shape: Sequence[int], width: int, latent_dim: int) -> None:
    check_sizes(shape=shape, width=width, latent_dim=latent_dim)
    if len(shape) != 3 or any(side % 2 ** (STAGES - 1) for side in shape[1:]):
        raise ValueError(f"shape must be (C, H, W) with H and W multiples of 8; got {list(shape)}")


class ResNet18Encoder(nn.Module):
    """Images [N, C, H, W] -> [N, 2 d] = (mean, log_std), or the mean [N, d] alone.

    For small images: a 3x3 convolution without pooling first; then the eight blocks of ResNet-18, the mean over the
    last maps and one Linear layer.

    Args:
        in_shape: (C, H, W), H and W multiples of 8.
        latent_dim: d.
        width: channels of the first stage; 64 is ResNet-18's.
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
        _check(in_shape, width, latent_dim)
        layers: list[nn.Module] = [*_convolution(in_shape[0], width), nn.ReLU()]
        count = width
        for stage in range(STAGES):
            out = width << stage
            layers += [ResidualBlock(count, out, 2 if stage else 1), ResidualBlock(out, out)]
            count = out
        features = latent_dim if mean_only else 2 * latent_dim
        smallest = [side // 2 ** (STAGES - 1) for side in in_shape[1:]]
        layers += [nn.AvgPool2d(tuple(smallest)), nn.Flatten(), nn.Linear(count, features)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ResNet18Decoder(nn.Module):
    """z [N, d] -> images [N, C, H, W]: the encoder's stages in reverse, from one Linear layer to the smallest maps,
    with nearest-neighbour upsampling in front of the convolutions.

    Args:
        latent_dim: d.
        out_shape: (C, H, W), H and W multiples of 8.
        width: channels of the last stage.
        output: ``sigmoid`` (values in [0, 1]), ``tanh`` or ``identity``.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        out_shape: Sequence[int] = (1, 32, 32),
        width: int = 64,
        output: str = "sigmoid",
    ):
        super().__init__()
        _check(out_shape, width, latent_dim)
        channels, height, side = out_shape
        count, scale = width << (STAGES - 1), 2 ** (STAGES - 1)
        start = (count, height // scale, side // scale)
        layers: list[nn.Module] = [nn.Linear(latent_dim, start[0] * start[1] * start[2]), nn.Unflatten(1, start)]
        for stage in reversed(range(STAGES)):
            out = width << max(stage - 1, 0)
            layers += [ResidualBlock(count, count), ResidualBlock(count, out, upsample=stage > 0)]
            count = out
        layers += [nn.Conv2d(count, channels, 3, 1, 1), make_output(output)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
