"""How far the approximate posterior is from the model's own, locally."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from fisherkernels.checks import check_count
from fisherkernels.linearize import linearize
from fisherkernels.losses.scores import decoder_score
from fisherkernels.measures.gaussian import draw, score
from fisherkernels.measures.likelihood import density


@torch.no_grad()
def posterior_fisher_divergence(
    model,
    x: Tensor,
    *,
    num_samples: int = 5,
    posterior: Distribution | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fisher divergence from the approximate posterior q(z|x) to the model's p(z|x).

    .. math:: \tfrac12 \mathbb{E}_q \|\nabla_z \log q(z|x) - \nabla_z \log p(z) - \nabla_z \log p(x|z)\|^2

    by L samples; p(x) drops out of the difference.

    Args:
        model: an :class:`~fisherkernels.training.AutoEncoder` with a posterior density, in ``eval()``.
        x: data ``[N, ...]``.
        num_samples: L.
        posterior: ``model.posterior(x)`` where it is there already.
        generator: a CPU generator; the global one when None.

    Returns:
        ``[N]``, a sum over latent coordinates, in units of 1/z^2.

    Raises:
        TypeError: a model without a posterior density.
        ValueError: num_samples < 1.

    Source: Wenliang, "On the failure of variational score matching for VAE models", sections 3.1 and B.2.
    """
    check_count("num_samples", num_samples)
    posterior = density(model, x) if posterior is None else posterior
    z = draw(posterior, num_samples, generator)
    difference = score(posterior, z) - model.prior_score(z) - likelihood_score(model, x, z)
    return 0.5 * difference.square().sum(-1).mean(0)


def likelihood_score(model, x: Tensor, z: Tensor) -> Tensor:
    """Gradient of log p(x|z) with respect to z, [L, N, d]."""
    if model.likelihood == "gaussian":
        return decoder_score(model.decoder, x, z, model.variance)
    decoded = linearize(model.decoder, z.flatten(0, 1))
    output = decoded.value.view(len(z), *x.shape)
    if model.likelihood == "bernoulli_logits":
        cotangent = x - output.sigmoid()
    else:
        smallest = torch.finfo(output.dtype).eps
        probability = output.clamp(smallest, 1 - smallest)  # a saturated sigmoid's slope is zero there
        cotangent = (x - probability) / (probability * (1 - probability))
    return decoded.vjp(cotangent.flatten(0, 1)).view_as(z)
