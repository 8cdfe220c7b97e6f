"""The inference objectives of variational score matching: they train the encoder."""

import math

import torch

from fisherkernels import checks, networks, ops
from fisherkernels.losses.constant import call_constant, check_module, constant_prior, linearize_constant
from fisherkernels.losses.elbo import negative_log_likelihood, standard_normal_kl
from fisherkernels.losses.fisher_ae import prior_coefficients, prior_score
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms, sample_mean
from fisherkernels.losses.scores import decoder_vjp, residual_of
from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal

TERMS = {"kl": ("reconstruction", "kl"), "fisher": ("posterior",)}
SCORED_BY_KERNEL = (type(None), StandardNormal, PolynomialExponentialFamily)


def inference_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    divergence: str = "kl",
    reparametrize: bool | None = None,
    prior=None,
    variance=1.0,
    num_samples: int = 1,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Divergence from the approximate posterior to the posterior of a Gaussian decoder, which is held constant.

    Per data point, averaged over L samples :math:`z = \mu + \sigma\epsilon`, :math:`\epsilon \sim N(0, I)`:
    ``"kl"``, the negative evidence lower bound, which is :math:`KL(q(z|x) \| p(z|x)) - \log p(x)`,

    .. math::
        \underbrace{\tfrac12 \textstyle\sum_j (x_j - f_j(z))^2/\gamma_j + \tfrac12 \sum_j \log 2\pi\gamma_j}_{
        reconstruction} + \underbrace{KL(q(z|x) \| p(z))}_{kl}

    or ``"fisher"``, the Fisher divergence between the same two,

    .. math::
        \underbrace{\tfrac12 \|-(z - \mu)/\sigma^2 - \nabla\log p(z) - J_f(z)^T (x - f(z))/\gamma\|^2}_{posterior}

    Gradients reach the encoder only: the parameters of decoder and prior and the variance are held constant. Where
    ``"fisher"`` is not reparametrised, z is constant too, and they flow through :math:`-(z - \mu)/\sigma^2` alone.
    That gradient is biased, but resembles the one of the KL divergence; the reparametrised one shrinks q onto points
    where only the shape of the posterior fits, such as the saddle between two modes.

    **Scaling.** reconstruction is a sum over the D pixels, kl and posterior are sums over the d latent coordinates;
    then comes the reduction over the batch. Nothing is divided by D or d.

    Args:
        encoder: callable taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``.
        decoder: module taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; all samples go through it as one batch.
        x: floating-point data ``[N, ...]``.
        divergence: ``"kl"`` or ``"fisher"``.
        reparametrize: whether the gradient flows through z; None for True with ``"kl"``, False with
            ``"fisher"``.
        prior: None for the standard normal (kl is then its closed form), or an object with ``score(z)``,
            ``[R, d] -> [R, d]``, for ``"fisher"`` or ``log_density(z)``, ``[R, d] -> [R]``, for ``"kl"``, then
            estimated by the L samples, less the logarithm of the density's integral where that is not 1. The
            parameters of a prior that is a module are held constant.
        variance: :math:`\gamma`, the decoder's variance: a float, a 0-d tensor, ``[D]`` or x's trailing shape.
        num_samples: L.
        noise: :math:`\epsilon` ``[L, N, d]``, or ``[N, d]`` for L = 1; drawn from the global generator when
            None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0,
            ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms reconstruction and kl, or posterior.

    Raises:
        TypeError: integer data, an encoder output that is no tensor or pair, a decoder that is no module, mixed
            dtypes, a prior without the method needed, a DDP, FSDP or DataParallel wrapper (compute the loss
            inside the wrapped module).
        ValueError: wrong shapes or widths, mixed devices, an unknown option, ``"kl"`` without
            reparametrisation (its gradient would be 0 in expectation), num_samples < 1, variance <= 0 (the
            values of tensors are looked at on the CPU in eager mode only).

    Source: Wenliang, "On the failure of variational score matching for VAE models", 2022, Algorithm 1, section
    3.3 and appendix A.5.1.

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> loss, terms = inference_loss(encoder, decoder, torch.rand(3, 6), divergence="fisher", num_samples=5)
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}, decoder.weight.grad
    ({'posterior': [3]}, None)
    """
    checks.check_choice("divergence", divergence, tuple(TERMS))
    reparametrize = check_reparametrize(divergence, reparametrize)
    variance = checks.check_common(encoder, decoder, x, variance, num_samples, reduction).detach()
    check_module("decoder", decoder)
    if x.shape[0] == 0:
        return empty_output(TERMS[divergence], reduction, x, encoder)

    mean, log_std = networks.split_posterior(networks.run_network("encoder", networks.call, encoder, x), x)
    eps = checks.as_noise(noise, num_samples, mean)  # [L, N, d]
    if divergence == "kl":
        checks.check_prior(prior, mean, "log_density")
        terms = kl_terms(decoder, x, mean, log_std, eps, prior, variance)
    else:
        checks.check_prior(prior, mean)
        posterior = posterior_mismatch(decoder, x, mean, log_std, eps, prior, variance, reparametrize)
        terms = {"posterior": sample_mean(posterior, num_samples)}
    return reduce_terms(terms, reduction)


def kl_terms(decoder, x, mean, log_std, eps, prior, variance) -> dict[str, torch.Tensor]:
    """The terms of the negative evidence lower bound, each [N]; eps [L, N, d]."""
    z = (mean + log_std.exp() * eps).flatten(0, 1)  # [L*N, d]
    output = networks.run_network("decoder", call_constant, decoder, z)
    output = networks.as_reconstruction(output, x, z.shape[0]).view(eps.shape[0], *x.shape)
    dtype = checks.working_dtype(x.dtype)
    output, data = output.flatten(2).to(dtype), x.flatten(1).to(dtype)  # [L, N, D], [N, D]
    reconstruction = negative_log_likelihood(output, data, "gaussian", variance)  # [L, N]
    mean, log_std, eps = mean.to(dtype), log_std.to(dtype), eps.to(dtype)
    if prior is None or type(prior) is StandardNormal:
        divergence = standard_normal_kl(mean, log_std)
    else:
        log_q = -(0.5 * eps.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)  # [L, N]
        divergence = (log_q - prior_log_density(prior, z).to(dtype).view(log_q.shape)).mean(0)
    return {"reconstruction": reconstruction.mean(0), "kl": divergence}


def posterior_mismatch(decoder, x, mean, log_std, eps, prior, variance, reparametrize: bool) -> torch.Tensor:
    """Half the squared difference of the two posteriors' scores, [L*N]; eps [L, N, d]."""
    coefficients = prior_coefficients(prior, x)  # perhaps the parameter itself
    if coefficients is not None:
        coefficients = coefficients.detach()
    with torch.set_grad_enabled(reparametrize and torch.is_grad_enabled()):
        z = (mean + log_std.exp() * eps).flatten(0, 1)  # [L*N, d]
        decoded = networks.run_network("decoder", linearize_constant, decoder, z)
        _, residual = residual_of(x, decoded, z.shape[0], variance)
        likelihood_score = decoder_vjp(decoded, residual)  # [L*N, d]
        score = prior_score(prior if type(prior) in SCORED_BY_KERNEL else constant_prior(prior), z)
    if not reparametrize:  # grad mode alone does not stop torch.func.jvp
        z, likelihood_score = z.detach(), likelihood_score.detach()
        score = None if score is None else score.detach()
        eps = standardized(mean, log_std, eps)
    return ops.posterior_residual(eps.flatten(0, 1), log_std, z, coefficients, likelihood_score, score)


def standardized(mean: torch.Tensor, log_std: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """(z - mean)/std as a function of mean and log_std, z = mean + std eps held fixed.

    Its value is eps itself, which the difference of z and mean would have lost digits of, and its gradient
    -1/std for the mean and -eps for log_std.
    """
    from_mean = (mean - mean.detach()) * torch.exp(-log_std.detach())  # zero
    return eps - from_mean - eps * (log_std - log_std.detach())


def prior_log_density(prior, z: torch.Tensor) -> torch.Tensor:
    """The log density of a prior, its parameters held constant: [L*N]."""
    density = constant_prior(prior).log_density(z)
    if not isinstance(density, torch.Tensor) or density.shape != z.shape[:1]:
        received = list(density.shape) if isinstance(density, torch.Tensor) else checks.type_name(density)
        raise ValueError(
            f"prior: expected log_density(z) of shape {list(z.shape[:1])}, received {received}"
        )
    return density


def check_reparametrize(divergence: str, reparametrize: bool | None) -> bool:
    """Whether the gradient flows through z."""
    checks.check_choice("reparametrize", reparametrize, (None, True, False))
    if reparametrize is None:
        return divergence == "kl"
    if divergence == "kl" and not reparametrize:
        raise ValueError(
            "reparametrize: expected None or True with divergence='kl', received False; with z held constant "
            "its gradient is that of log q(z|x) alone, which is 0 in expectation"
        )
    return reparametrize
