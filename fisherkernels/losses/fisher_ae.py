"""The Fisher auto-encoder loss."""

import torch

from fisherkernels import checks, networks, ops
from fisherkernels.linearize import linearize
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms, sample_mean
from fisherkernels.losses.scores import decoder_vjp, residual_of, stability_first, stability_term
from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal


def fisher_ae_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    prior=None,
    decoder_gradient: str = "full",
    stability: str = "posterior",
    variance=1.0,
    num_samples: int = 1,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Fisher divergence between data times posterior and the model's joint density, by Monte Carlo.

    Per data point, averaged over L samples :math:`z = \mu + \sigma\epsilon`, :math:`\epsilon \sim N(0, I)`:

    .. math::
        \underbrace{\tfrac12 \|-\epsilon/\sigma - \nabla\log p_\eta(z)
        - J_f(z)^T (x - f(z))/\gamma\|^2}_{posterior}
        + \underbrace{\tfrac12 \|x - f(z)\|^2/\gamma^2 - \textstyle\sum_j 1/\gamma_j}_{reconstruction}
        + \underbrace{\tfrac12 \|\nabla_x \log q(z|x)\|^2}_{stability}

    The paper's eq. 11 is :math:`\gamma = 1` without the constant :math:`-D`. Minimising the batch mean over
    encoder, decoder and prior by SGD is Algorithm 1 of the paper. The derivatives inside are computed
    forward, so that one ordinary ``backward()`` trains everything: it works under
    ``torch.compile(fullgraph=True)`` and, inside the wrapped module, under DDP.

    **Scaling.** posterior is a sum over the d latent coordinates, reconstruction and stability are sums over
    the D pixels; all are means over L samples; then comes the reduction over the batch. Nothing is divided by
    D or d: a learning rate tuned for a mean over pixels has to be rescaled.

    Args:
        encoder: module taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``.
            log_std is not clamped.
        decoder: module taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; all samples go through it as one
            batch.
        x: floating-point data ``[N, ...]``.
        prior: None for the standard normal, or an object with ``score(z)``, ``[R, d] -> [R, d]``, such as
            :class:`~fisherkernels.priors.PolynomialExponentialFamily` (whose coefficients then learn).
        decoder_gradient: ``"full"`` differentiates :math:`J_f(z)^T (x - f(z))/\gamma` as eq. 11 is printed;
            ``"stopped"`` holds it constant, as the authors' released code does (the variance then learns from
            the reconstruction alone).
        stability: ``"posterior"`` is the term of eq. 11; ``"log_std"`` is :math:`\tfrac12 \|\nabla_x \sum_j
            \log\sigma_j\|^2`, which the released code trains; ``"none"`` leaves it out (no key
            ``"stability"`` in the terms, and the encoder is then simply called).
        variance: :math:`\gamma`, the decoder's variance: a float, a 0-d tensor, ``[D]`` or x's trailing
            shape. A tensor may require grad; give it a learning rate of its own (about 1e-2).
        num_samples: L.
        noise: :math:`\epsilon` ``[L, N, d]``, or ``[N, d]`` for L = 1; drawn from the global generator when
            None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0,
            ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms posterior, reconstruction, stability. A NaN
        in one sample of `x` makes that sample's terms NaN and no other's (train-mode BatchNorm, which couples
        samples, aside).

    Raises:
        TypeError: integer data, an encoder output that is no tensor or pair, mixed dtypes, a prior without
            ``score``, a DDP, FSDP or DataParallel wrapper (compute the loss inside the wrapped module).
        ValueError: wrong shapes or widths, mixed devices, an unknown option, num_samples < 1, variance <= 0
            (the values of tensors are looked at on the CPU in eager mode only).

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 10-11 and Algorithm 1.

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> loss, terms = fisher_ae_loss(encoder, decoder, torch.rand(3, 6), variance=0.5)
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}
    {'posterior': [3], 'reconstruction': [3], 'stability': [3]}
    """
    checks.check_choice("decoder_gradient", decoder_gradient, ("full", "stopped"))
    checks.check_choice("stability", stability, ("posterior", "log_std", "none"))
    variance = checks.check_common(encoder, decoder, x, variance, num_samples, reduction)
    if x.shape[0] == 0:
        names = ("posterior", "reconstruction") + (("stability",) if stability != "none" else ())
        return empty_output(names, reduction, x, encoder, decoder, prior, variance)

    if stability == "none":
        encoded, output = None, networks.run_network("encoder", networks.call, encoder, x)
    else:
        encoded = networks.run_network("encoder", linearize, encoder, x)
        output = encoded.value
    mean, log_std = networks.split_posterior(output, x)
    checks.check_prior(prior, mean)
    eps = checks.as_noise(noise, num_samples, mean)  # [L, N, d]
    z = (mean + log_std.exp() * eps).flatten(0, 1)  # [L*N, d]
    sensitivity = None  # [N]
    if encoded is not None and stability_first(encoded, num_samples):
        sensitivity = stability_term(encoded, log_std, eps, stability)

    decoded = networks.run_network("decoder", linearize, decoder, z)
    value, residual = residual_of(x, decoded, z.shape[0], variance)  # [L*N], [L*N, D]
    if decoder_gradient == "full":
        likelihood_score = decoder_vjp(decoded, residual)  # [L*N, d]
    else:
        with torch.no_grad():
            likelihood_score = decoder_vjp(decoded, residual.detach()).detach()  # no_grad does not stop torch.func.jvp
    posterior = ops.posterior_residual(
        eps.flatten(0, 1), log_std, z, prior_coefficients(prior, x), likelihood_score, prior_score(prior, z)
    )
    terms = {
        "posterior": sample_mean(posterior, num_samples),
        "reconstruction": sample_mean(value, num_samples),
    }
    if encoded is not None:
        late = sensitivity is None
        terms["stability"] = stability_term(encoded, log_std, eps, stability) if late else sensitivity
    return reduce_terms(terms, reduction)


def prior_coefficients(prior, x: torch.Tensor) -> torch.Tensor | None:
    """[d, K] where the prior's score is the polynomial one that the kernel evaluates itself."""
    if type(prior) is not PolynomialExponentialFamily:
        return None
    coefficients = prior.coefficients
    checks.check_beside("prior", coefficients, x)
    return coefficients


def prior_score(prior, z: torch.Tensor) -> torch.Tensor | None:
    """The score of any other prior; None where the kernel evaluates it."""
    if prior is None or type(prior) in (StandardNormal, PolynomialExponentialFamily):
        return None
    score = prior.score(z)
    if not isinstance(score, torch.Tensor) or score.shape != z.shape:
        received = list(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
        raise ValueError(f"prior: expected score(z) of the shape of z, {list(z.shape)}, received {received}")
    return score
