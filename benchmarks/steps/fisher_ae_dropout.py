"""Networks with dropout: fully connected ones, and convolutions with SiLU and max pooling."""

from torch import nn

from .contenders import Model, fisher_ae_case

PIXELS, HIDDEN, MLP_LATENT = 784, (512, 256), 8
CHANNELS, LATENT = 32, 16
P = 0.2


def _perceptron(widths):
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(P))]
    return nn.Sequential(*layers[:-2])


def _mlp():
    encoder = _perceptron((PIXELS, *HIDDEN, 2 * MLP_LATENT))
    return Model(encoder, _perceptron((MLP_LATENT, *HIDDEN[::-1], PIXELS)), MLP_LATENT)


def _encoder():
    narrow, wide = CHANNELS, 2 * CHANNELS
    maps = [
        layer
        for a, b in ((3, narrow), (narrow, wide), (wide, wide))
        for layer in (nn.Conv2d(a, b, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Dropout(P))
    ]
    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(wide * 16, 2 * LATENT))


def _decoder():
    narrow, wide = CHANNELS, 2 * CHANNELS
    maps = [
        layer
        for a, b in ((wide, wide), (wide, narrow))
        for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU(), nn.Dropout(P))
    ]
    first = [nn.Linear(LATENT, wide * 16), nn.Unflatten(1, (wide, 4, 4))]
    return nn.Sequential(*first, *maps, nn.ConvTranspose2d(narrow, 3, 4, 2, 1), nn.Sigmoid())


def _maps():
    return Model(_encoder(), _decoder(), LATENT)


CASES = (
    fisher_ae_case("fisher_ae_mlp_dropout", "MLP 784-512-256, ReLU, dropout", _mlp, (PIXELS,), MLP_LATENT, draws=True),
    fisher_ae_case("fisher_ae_pool", "SiLU, max pooling, dropout", _maps, (3, 32, 32), LATENT, draws=True),
)
