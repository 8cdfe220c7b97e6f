"""One pass of a batch through encoder, posterior samples and decoder."""

from typing import NamedTuple

import torch

from fisherkernels import checks, networks


class Autoencoded(NamedTuple):
    """Sums are to be kept in its dtype: float32 for half precision data.

    Attributes:
        data: x flattened, ``[N, D]``.
        mean, log_std: of the posterior, ``[N, d]``.
        eps: the standard normal draws, ``[L, N, d]``.
        output: the decoder's outputs flattened, ``[L, N, D]``.
    """

    data: torch.Tensor
    mean: torch.Tensor
    log_std: torch.Tensor
    eps: torch.Tensor
    output: torch.Tensor


def autoencode(encoder, decoder, x: torch.Tensor, num_samples: int, noise) -> Autoencoded:
    """Decodes z = mean + exp(log_std) eps; `noise` is eps, or None to draw it."""
    mean, log_std = networks.split_posterior(networks.run_network("encoder", networks.call, encoder, x), x)
    eps = checks.as_noise(noise, num_samples, mean)  # [L, N, d]
    output = decode(decoder, mean + log_std.exp() * eps, x)
    dtype = output.dtype
    return Autoencoded(x.flatten(1).to(dtype), mean.to(dtype), log_std.to(dtype), eps.to(dtype), output)


def decode(decoder, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The decoder's outputs for z [L, N, d], as one batch; flattened, [L, N, D]."""
    output = networks.run_network("decoder", networks.call, decoder, z.flatten(0, 1))
    output = networks.as_reconstruction(output, x, z.shape[0] * z.shape[1])
    return output.view(*z.shape[:2], *x.shape[1:]).flatten(2).to(checks.working_dtype(x.dtype))
