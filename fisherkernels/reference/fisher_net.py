"""The FisherNet and its metric with dense Jacobians and matrices (Zacherl et al., Entropy 2021, eq. 20-31).

The Jacobian comes from ``torch.func``, one item at a time, and everything after it is dense linear algebra that
autograd differentiates as it stands: gradients with respect to the encoder, the decoder and the noise are exact.
For any decoder that does not couple the items of a batch.
"""

import torch

from fisherkernels.losses.output import LossOutput, reduce_terms


def jacobian(decoder, mean):
    """J = d decoder / d mean of each item, [N, D, d]."""

    def flat(item):  # [d] -> [D]
        return decoder(item.unsqueeze(0)).flatten()

    return torch.func.vmap(torch.func.jacrev(flat))(mean)


def precision(noise_variance, mean, output_shape):
    """The diagonal of N^-1, [N, D]: of a variance that is a number, of one item's shape, or of each item."""
    features, count = output_shape.numel(), mean.shape[0]
    variance = torch.as_tensor(noise_variance, dtype=mean.dtype, device=mean.device)
    if variance.dim() > 0:
        per_item = variance.dim() > 1 and variance.shape != output_shape
        variance = variance.reshape(count if per_item else 1, -1)
    return 1 / variance.expand(count, features)


def fisher_metric(decoder, mean, noise_variance=1.0):
    """Eq. 20: M = J^T N^-1 J + 1, [N, d, d]."""
    return metric_of(*jacobian_and_precision(decoder, mean, noise_variance))


def fisher_metric_sample(decoder, mean, noise_variance, noise, mirrored=False):
    """Eq. 28-31: z = mean + M^-1 (J^T n + eta), [S, N, d].

    `noise` is the pair of standard normal draws ([S, N, D], [S, N, d]) behind n ~ N(0, N^-1) and eta. With
    ``mirrored``, the same number of samples on the other side of the mean follows.
    """
    J, inverse_variance = jacobian_and_precision(decoder, mean, noise_variance)
    return sample_of(J, inverse_variance, mean, noise, mirrored)


def fisher_net_loss(
    mean_encoder,
    decoder,
    x,
    *,
    log_noise_variance,
    dataset_size,
    logdet=False,
    num_samples=1,
    mirrored=False,
    gradient="full",
    noise=None,
    reduction="mean",
) -> LossOutput:
    """`fisherkernels.fisher_net_loss` from the dense metric; same arguments, but for those of the solver."""
    count, shape = x.shape[0], x.shape[1:]
    xi = torch.as_tensor(log_noise_variance, dtype=x.dtype, device=x.device)
    mean = mean_encoder(x)
    if noise is None:
        drawn = num_samples // 2 if mirrored else num_samples
        noise = tuple(
            torch.randn(drawn, count, width, dtype=x.dtype, device=x.device)
            for width in (shape.numel(), mean.shape[1])
        )
    J, inverse_variance = jacobian_and_precision(decoder, mean, xi.exp())
    if gradient == "full":
        z = sample_of(J, inverse_variance, mean, noise, mirrored)
    else:
        z = mean + (sample_of(J, inverse_variance, mean, noise, mirrored) - mean).detach()
    output = decoder(z.flatten(0, 1)).view(num_samples, count, -1)
    xi_per_pixel = xi.expand(shape) if xi.dim() == 0 else xi
    squared_error = (x.flatten(1) - output) ** 2 / torch.exp(xi_per_pixel.reshape(-1))  # [S, N, D]
    terms = {
        "prior": 0.5 * (z**2).sum(-1).mean(0),
        "reconstruction": 0.5 * squared_error.sum(-1).mean(0),
        "noise": 0.5 * xi_per_pixel.sum().expand(count),
        "noise_prior": 0.5 * (xi**2).sum().expand(count) / dataset_size,
    }
    if logdet:
        terms["logdet"] = 0.5 * torch.linalg.slogdet(metric_of(J, inverse_variance)).logabsdet
    return reduce_terms(terms, reduction)


def jacobian_and_precision(decoder, mean, noise_variance):
    """[N, D, d] and [N, D]."""
    output_shape = decoder(mean).shape[1:]
    return jacobian(decoder, mean), precision(noise_variance, mean, output_shape)


def metric_of(J, inverse_variance):
    return J.mT @ (inverse_variance.unsqueeze(-1) * J) + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)


def sample_of(J, inverse_variance, mean, noise, mirrored):
    data, latent = noise
    n = inverse_variance.sqrt() * data  # [S, N, D]
    theta = torch.einsum("nij,sni->snj", J, n) + latent  # [S, N, d]
    offset = torch.linalg.solve(metric_of(J, inverse_variance), theta.movedim(0, -1)).movedim(-1, 0)
    return mean + (torch.cat([offset, -offset]) if mirrored else offset)
