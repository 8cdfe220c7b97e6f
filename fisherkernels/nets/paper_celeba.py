"""The convolutional CelebA nets of Elkhalil et al., "Fisher Auto-Encoders" (AISTATS 2021), supplement, Tables 3 and 4.

As printed they do not fit together. Departures: a fourth average pooling, without which the encoder flattens to 32,768
values where its last layer takes 8,192; twice the outputs where the posterior has a log_std; the decoder's first
interpolation enlarges four times instead of two, so that it ends at 64 x 64; LeakyReLU of slope 0.2, which is not
printed; a sigmoid in place of tanh, for images in [0, 1].
"""

import torch
from torch import nn

from fisherkernels.nets.layers import make_output


class PaperCelebAEncoder(nn.Module):
    """Images [N, 3, 64, 64] -> [N, 2 d] = (mean, log_std), or, as in WAE-GAN, the code [N, d] alone; the paper has
    d = 64.
    """

    def __init__(self, latent_dim: int = 64, negative_slope: float = 0.2, mean_only: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)):
            norm = [nn.BatchNorm2d(outputs)] if layers else []
            layers += [nn.Conv2d(inputs, outputs, 5, 1, 2), *norm, nn.LeakyReLU(negative_slope), nn.AvgPool2d(2, 2, 0)]
        layers += [nn.Flatten(), nn.Linear(512 * 4 * 4, latent_dim if mean_only else 2 * latent_dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class PaperCelebADecoder(nn.Module):
    """z [N, d] -> images [N, 3, 64, 64]; the paper has d = 64 and ``output="tanh"``."""

    def __init__(self, latent_dim: int = 64, output: str = "sigmoid"):
        super().__init__()
        layers: list[nn.Module] = [nn.Unflatten(1, (latent_dim, 1, 1))]
        count, scale = latent_dim, 4
        for outputs in (512, 256, 128, 64):
            layers += [
                nn.Upsample(scale_factor=scale, mode="bilinear"),
                nn.Conv2d(count, outputs, 5, 1, 2),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            count, scale = outputs, 2
        layers += [nn.Upsample(scale_factor=scale, mode="bilinear"), nn.Conv2d(count, 3, 5, 1, 2), make_output(output)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
