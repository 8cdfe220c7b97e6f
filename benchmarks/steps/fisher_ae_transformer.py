"""Transformer encoders over patches of images of 32 x 32 in colour, on both sides."""

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .contenders import Model, fisher_ae_case

WIDTH, HEADS, BLOCKS, PATCH, PATCHES, LATENT = 64, 4, 2, 4, 64, 16


class Transformers(Model):
    def double_backward_as_printed(self, x, noise, encoder_passes=2):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return super().double_backward_as_printed(x, noise, encoder_passes)


def _blocks():
    block = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)


class Patches(nn.Module):
    """[N, 3, 32, 32] -> [N, patches, width]"""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x):
        return self.embed(x).flatten(2).transpose(1, 2)


def _model():
    encoder = nn.Sequential(Patches(), _blocks(), nn.Flatten(), nn.Linear(PATCHES * WIDTH, 2 * LATENT))
    decoder = nn.Sequential(
        nn.Linear(LATENT, PATCHES * WIDTH),
        nn.Unflatten(1, (PATCHES, WIDTH)),
        _blocks(),
        nn.Linear(WIDTH, 3 * PATCH**2),
        nn.Flatten(),
        nn.Unflatten(1, (3, 32, 32)),
    )
    return Transformers(encoder, decoder, LATENT)


CASES = (fisher_ae_case("fisher_ae_transformer", "transformer encoders, GELU", _model, (3, 32, 32), LATENT),)
