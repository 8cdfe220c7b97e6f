"""Auto-encoders whose encoder gives the mean and the standard deviation of a diagonal Gaussian."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from fisherkernels import ops
from fisherkernels.networks import split_posterior
from fisherkernels.training.autoencoder import AutoEncoder


class DiagonalAutoEncoder(AutoEncoder):
    """Base of :class:`FisherAE`, :class:`VAE` and others: q(z|x) = N(mean, diag(exp(log_std))^2).

    The encoder takes x to [N, 2 d] = (mean, log_std), or to that pair. Noise is [L, N, d].

    Validation and test log where the posterior lies in the Fisher-Shannon plane (Zheng et al., "Understanding VAEs in
    Fisher-Shannon Plane"), means over the images: ``fisher_information`` = sum_j 1 / sigma_j^2, and ``entropy_power`` =
    (prod_j sigma_j^2)^(1/d).
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std of q(z|x), each [N, d]."""
        return split_posterior(self.encoder(x), x)

    def encode_mean(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(self.num_samples, len(x), self.latent_dim, generator=generator).to(x)

    def sample_posterior(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.encode(x)
        return mean + log_std.exp() * noise  # [L, N, d]

    def posterior(self, x: Tensor) -> Independent:
        mean, log_std = self.encode(x)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def predictions(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_std = self.encode(x)
        return {"mean": mean, "log_std": log_std, "reconstruction": self.decode(mean)}

    def _codes(self, name: str, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.encode(x)
        _, information, entropy_power = ops.gaussian_information(mean, log_std)
        plane = {
            f"{name}/fisher_information": information.mean(),
            f"{name}/entropy_power": entropy_power.mean(),
        }
        self.log_dict(plane, batch_size=len(x), sync_dist=True)
        return mean, mean + log_std.exp() * noise
