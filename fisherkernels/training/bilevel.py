"""Score matching as a function of the decoder through further steps of the encoder (bi-level optimisation).

The gradient goes through gradients of the encoder's loss: ``torch.func`` differentiates these, in plain operations.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from fisherkernels import networks, ops
from fisherkernels.losses.elbo import standard_normal_kl
from fisherkernels.losses.output import LossOutput, reduce_terms

OBJECTIVES = ("m1", "m2", "m3")

Parameters = dict[str, Tensor]
Call = Callable[[Parameters, Tensor], Tensor]


def bilevel_loss(
    encoder: nn.Module,
    decoder: nn.Module,
    x: Tensor,
    noise: Tensor,
    *,
    step_size: float,
    objective: str,
    unbiased: bool,
    divergence: str,
    reparametrize: bool,
    variance: Tensor,
) -> LossOutput:
    r"""M1, M2 or M3 at the encoder's parameters after K gradient steps, as a function of the decoder and its variance.

    .. math:: \phi_0 = \phi, \qquad \phi_{k+1} = \phi_k - \tau \nabla_\phi \mathcal{D}(\phi_k, \theta, \gamma), \qquad
        \text{loss} = M(\phi_K(\theta, \gamma), \theta, \gamma)

    with D the batch mean of :func:`fk.inference_loss` and M that of :func:`fk.score_matching_loss`, both in the
    same terms and scaling as there. z = mean + sigma eps depends on the decoder through :math:`\phi_K`; where D is
    estimated without reparametrisation, its z is a constant. Nothing reaches :math:`\phi` itself, and statistics of
    BatchNorm layers are left as they are.

    Args:
        noise: standard normal draws ``[K + 1, L, N, d]``, of the steps and then of the loss.
        step_size: :math:`\tau`.
        objective, unbiased: see :func:`fk.score_matching_loss`.
        divergence, reparametrize: see :func:`fk.inference_loss`.
        variance: :math:`\gamma`, 0-d.

    Source: Bao et al., "Bi-level score matching for learning energy-based latent variable models", NeurIPS 2020;
    Wenliang, "On the failure of variational score matching for VAE models", section B.1.
    """
    encode, decode = _pure(encoder), _pure(decoder)
    phi = {name: parameter.detach() for name, parameter in encoder.named_parameters()}
    theta = dict(decoder.named_parameters())
    for eps in noise[:-1]:
        gradient = grad(_inference)(phi, encode, decode, theta, x, eps, divergence, reparametrize, variance)
        phi = {name: parameter - step_size * gradient[name] for name, parameter in phi.items()}

    eps = noise[-1]  # [L, N, d]
    (mean, log_std), encoder_vjp = vjp(lambda data: networks.split_posterior(encode(phi, data), data), x)
    z = mean + log_std.exp() * eps
    residual = (x - decode(theta, z.flatten(0, 1)).view(len(eps), *x.shape)).flatten(2)  # [L, N, D]
    score = -residual / variance
    mean_square, square_mean = ops.score_moments(score)  # each [N]
    constant = x[0].numel() / variance
    if objective == "m1":
        return reduce_terms({"score": 0.5 * mean_square - constant}, "mean")
    if unbiased:
        square_mean = (len(eps) * square_mean - mean_square) / (len(eps) - 1)
    if objective == "m2":
        terms = {"second_moment": mean_square - constant, "mean_score": -0.5 * square_mean}
        return reduce_terms(terms, "mean")
    (posterior_score,) = vmap(encoder_vjp)((eps / log_std.exp(), eps.square() - 1))  # [L, *x.shape]
    cross = (posterior_score.flatten(2) * score).sum(2).mean(0)
    return reduce_terms({"cross": cross - constant, "mean_score": 0.5 * square_mean}, "mean")


def _pure(module: nn.Module) -> Call:
    """The module as a function of its parameters; what it writes into its buffers is lost."""

    def call(parameters: Parameters, tensor: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return functional_call(module, {**parameters, **buffers}, (tensor,))

    return call


def _inference(
    phi: Parameters,
    encode: Call,
    decode: Call,
    theta: Parameters,
    x: Tensor,
    eps: Tensor,
    divergence: str,
    reparametrize: bool,
    variance: Tensor,
) -> Tensor:
    """The encoder's loss, up to what does not depend on phi: 0-d."""
    mean, log_std = networks.split_posterior(encode(phi, x), x)
    z = mean + log_std.exp() * eps  # [L, N, d]
    if divergence == "kl":
        residual = (x - decode(theta, z.flatten(0, 1)).view(len(eps), *x.shape)).flatten(2)
        reconstruction = 0.5 * residual.square().sum(2).mean(0) / variance
        return (reconstruction + standard_normal_kl(mean, log_std)).mean()
    if not reparametrize:
        z = z.detach()
    decoded, decoder_vjp = vjp(lambda latent: decode(theta, latent), z.flatten(0, 1))
    residual = (x.expand(len(eps), *x.shape).flatten(0, 1) - decoded) / variance
    likelihood_score = decoder_vjp(residual)[0].view_as(z)
    difference = -(z - mean) / (2 * log_std).exp() + z - likelihood_score
    return 0.5 * difference.square().sum(2).mean()
