"""The convolutional MNIST nets of Elkhalil et al., "Fisher Auto-Encoders" (AISTATS 2021), supplement, Tables 1, 2."""

import torch
from torch import nn


class PaperMNISTEncoder(nn.Module):
    """Images [N, 1, 28, 28] -> [N, 2 d] = (mean, log_std), or, as in WAE-GAN, the code [N, d] alone; the paper: d = 8.

    The supplement ends the net at (16, 1, 1), or (8, 1, 1); here that is flattened to columns. It does not print the
    slope of LeakyReLU: ``negative_slope`` = 0.2 is our choice. The last stride is 2 in its Table 1 and 1 in Table 2: on
    the 3x3 maps there it makes no difference.
    """

    def __init__(self, latent_dim: int = 8, negative_slope: float = 0.2, mean_only: bool = False):
        super().__init__()
        outputs = latent_dim if mean_only else 2 * latent_dim
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 3, 2, 2),  # [N, 64, 15, 15]
            nn.LeakyReLU(negative_slope),
            nn.Conv2d(64, 128, 3, 2, 2),  # [N, 128, 9, 9]
            nn.BatchNorm2d(128),
            nn.LeakyReLU(negative_slope),
            nn.Conv2d(128, 256, 3, 2, 2),  # [N, 256, 6, 6]
            nn.BatchNorm2d(256),
            nn.LeakyReLU(negative_slope),
            nn.Conv2d(256, 512, 3, 2, 1),  # [N, 512, 3, 3]
            nn.BatchNorm2d(512),
            nn.LeakyReLU(negative_slope),
            nn.Conv2d(512, outputs, 3, 2, 0),  # [N, outputs, 1, 1]
            nn.Flatten(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class PaperMNISTDecoder(nn.Module):
    """z [N, d] -> images [N, 1, 28, 28] in [0, 1]; the paper has d = 8."""

    def __init__(self, latent_dim: int = 8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, 512, 5, 1, 1),  # [N, 512, 3, 3]
            nn.BatchNorm2d(512),
            nn.ReLU(),
            nn.ConvTranspose2d(512, 256, 5, 1, 1),  # [N, 256, 5, 5]
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.ConvTranspose2d(256, 128, 5, 2, 1),  # [N, 128, 11, 11]
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 5, 1, 1),  # [N, 64, 13, 13]
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 0),  # [N, 1, 28, 28]
            nn.Sigmoid(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
