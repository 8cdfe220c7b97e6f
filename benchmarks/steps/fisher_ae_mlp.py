"""Fully connected encoder and decoder."""

from fisherkernels.nets import MLPDecoder, MLPEncoder

from .contenders import Model, fisher_ae_case

PIXELS, HIDDEN, LATENT = 784, (512, 256), 8


def _model():
    encoder = MLPEncoder(PIXELS, HIDDEN, LATENT)
    decoder = MLPDecoder(LATENT, HIDDEN[::-1], (PIXELS,))
    return Model(encoder, decoder, LATENT)


CASES = (fisher_ae_case("fisher_ae_mlp", "MLP 784-512-256, ReLU", _model, (PIXELS,), LATENT),)
