"""Residual networks with GroupNorm and SiLU in front of each convolution, on images of 32 x 32 in colour."""

from torch import nn

from .contenders import Model, fisher_ae_case

CHANNELS, LATENT, GROUPS = 32, 16, 8


def _before(channels):
    return [nn.GroupNorm(GROUPS, channels), nn.SiLU()]


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers = [[*_before(channels), nn.Conv2d(channels, channels, 3, padding=1)] for _ in range(2)]
        self.inner = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x):
        return x + self.inner(x)


def _encoder():
    narrow, wide = CHANNELS, 2 * CHANNELS
    return nn.Sequential(
        nn.Conv2d(3, narrow, 3, padding=1),
        Block(narrow),
        nn.Conv2d(narrow, wide, 3, 2, 1),  # 16 x 16
        Block(wide),
        nn.Conv2d(wide, wide, 3, 2, 1),  # 8 x 8
        Block(wide),
        *_before(wide),
        nn.Flatten(),
        nn.Linear(wide * 64, 2 * LATENT),
    )


def _decoder():
    narrow, wide = CHANNELS, 2 * CHANNELS
    return nn.Sequential(
        nn.Linear(LATENT, wide * 64),
        nn.Unflatten(1, (wide, 8, 8)),
        Block(wide),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(wide, narrow, 3, padding=1),
        Block(narrow),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(narrow, narrow, 3, padding=1),
        *_before(narrow),
        nn.Conv2d(narrow, 3, 3, padding=1),
        nn.Sigmoid(),
    )


def _model():
    return Model(_encoder(), _decoder(), LATENT)


CASES = (fisher_ae_case("fisher_ae_residual", "residual nets, GroupNorm and SiLU", _model, (3, 32, 32), LATENT),)
