"""The convolutional MNIST nets of Elkhalil et al. (AISTATS 2021)."""

from fisherkernels.nets import PaperMNISTDecoder, PaperMNISTEncoder

from .contenders import Model, fisher_ae_case

LATENT = 8


def _model():
    return Model(PaperMNISTEncoder(LATENT), PaperMNISTDecoder(LATENT), LATENT)


CASES = (fisher_ae_case("fisher_ae_conv", "the paper's MNIST nets", _model, (1, 28, 28), LATENT),)
