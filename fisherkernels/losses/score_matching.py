"""The learning objectives of variational score matching: they train the decoder and its variance."""

import warnings

import torch

from fisherkernels import checks, networks, ops
from fisherkernels.losses.constant import call_constant, check_module, linearize_constant
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms, sample_mean
from fisherkernels.losses.scores import encoder_vjp, posterior_cotangent

TERMS = {"m1": ("score",), "m2": ("second_moment", "mean_score"), "m3": ("cross", "mean_score")}


def score_matching_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    objective: str = "m1",
    unbiased: bool = False,
    variance=1.0,
    num_samples: int = 1,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Score matching of a Gaussian decoder under an approximate posterior; the encoder is held constant.

    With :math:`s = \nabla_x \log p(x|z) = -(x - f(z))/\gamma`, :math:`s_q = \nabla_x \log q(z|x)` at fixed z and
    expectations over q(z|x), per data point:

    .. math::
        M_1 &= \underbrace{\mathbb{E}\,\tfrac12\|s\|^2 - \textstyle\sum_j 1/\gamma_j}_{score} \\
        M_2 &= \underbrace{\mathbb{E}\,\|s\|^2 - \textstyle\sum_j 1/\gamma_j}_{second\_moment}
            \underbrace{{} - \tfrac12 \|\mathbb{E}\,s\|^2}_{mean\_score} \\
        M_3 &= \underbrace{\mathbb{E}\,s_q \cdot s - \textstyle\sum_j 1/\gamma_j}_{cross}
            + \underbrace{\tfrac12 \|\mathbb{E}\,s\|^2}_{mean\_score}

    :math:`-\sum_j 1/\gamma_j` is the divergence :math:`\nabla_x \cdot s`. M1 is what the Fisher auto-encoder's loss
    has for the decoder once its encoder is trained apart; M2 and M3 are marginal Fisher divergences with q in the
    place of the model's posterior. Gradients reach the decoder and the variance only (and x, through s): train the
    encoder by :func:`~fisherkernels.inference_loss`, J updates of it for each of these (Algorithm 1).

    **Estimates.** The expectations are means over L samples, so :math:`\|\mathbb{E}\,s\|^2` comes out too large by
    the trace of the covariance of s, divided by L. At L = 1 it is :math:`\mathbb{E}\,\|s\|^2`: M2 is then M1, and M3 is
    M1 plus :math:`\mathbb{E}\,s_q \cdot s`; a RuntimeWarning says so. ``unbiased=True`` leaves out the pairs of a
    sample with itself, :math:`\frac{1}{L(L-1)} \sum_{l \neq m} s_l \cdot s_m`, which may be negative.

    **Scaling.** Every term is a sum over the D pixels; then comes the reduction over the batch. Nothing is divided
    by D.

    Args:
        encoder: callable taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``; a
            module for ``"m3"``, where its Jacobian is needed (one vector-Jacobian product for each sample).
        decoder: callable taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; all samples go through it as one
            batch.
        x: floating-point data ``[N, ...]``.
        objective: ``"m1"``, ``"m2"`` or ``"m3"``.
        unbiased: estimate :math:`\|\mathbb{E}\,s\|^2` without bias; needs num_samples >= 2. M1 does not have it.
        variance: :math:`\gamma`, the decoder's variance: a float, a 0-d tensor, ``[D]`` or x's trailing
            shape. A tensor may require grad; give it a learning rate of its own (about 1e-2).
        num_samples: L.
        noise: :math:`\epsilon` ``[L, N, d]``, or ``[N, d]`` for L = 1; drawn from the global generator when
            None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0,
            ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the objective's terms, as named above.

    Raises:
        TypeError: integer data, an encoder output that is no tensor or pair, mixed dtypes, a DDP, FSDP or
            DataParallel wrapper (compute the loss inside the wrapped module), an encoder that is no module with
            ``"m3"``.
        ValueError: wrong shapes, mixed devices, an unknown option, num_samples < 1, or < 2 with unbiased,
            variance <= 0 (the values of tensors are looked at on the CPU in eager mode only).

    Source: Wenliang, "On the failure of variational score matching for VAE models", 2022: M1 eq. 8 without its
    last term, M2 eq. 13 (Swersky et al., ICML 2011), M3 eq. 15 (Bao et al., NeurIPS 2020), Algorithm 1.

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> loss, terms = score_matching_loss(encoder, decoder, torch.rand(3, 6), objective="m3", num_samples=5)
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}, encoder.weight.grad
    ({'cross': [3], 'mean_score': [3]}, None)
    """
    checks.check_choice("objective", objective, tuple(TERMS))
    variance = checks.check_common(encoder, decoder, x, variance, num_samples, reduction)
    if objective == "m3":
        check_module("encoder", encoder)
    check_samples(objective, unbiased, num_samples)
    if x.shape[0] == 0:
        return empty_output(TERMS[objective], reduction, x, decoder, variance)

    # Constant parameters beside no_grad: older autocasts would keep casts without a graph for the encoder's own step.
    with torch.no_grad():
        run = linearize_constant if objective == "m3" else call_constant
        encoded = networks.run_network("encoder", run, encoder, x)
        mean, log_std = networks.split_posterior(encoded.value if objective == "m3" else encoded, x)
        eps = checks.as_noise(noise, num_samples, mean)  # [L, N, d]
        z = (mean + log_std.exp() * eps).flatten(0, 1)  # [L*N, d]

    output = networks.run_network("decoder", networks.call, decoder, z)
    output = networks.as_reconstruction(output, x, z.shape[0])
    value, residual = ops.gaussian_score(x.flatten(1), output.flatten(1), variance)  # [L*N], -s: [L*N, D]
    if objective == "m1":
        return reduce_terms({"score": sample_mean(value, num_samples)}, reduction)

    mean_square, square_mean = ops.score_moments(residual.view(num_samples, x.shape[0], -1))  # E||s||^2, ||E s||^2: [N]
    if unbiased:
        square_mean = (num_samples * square_mean - mean_square) / (num_samples - 1)
    divergence = -(1 / variance).expand(residual.shape[1]).sum()
    if objective == "m2":
        terms = {"second_moment": mean_square + divergence, "mean_score": -0.5 * square_mean}
    else:
        with torch.no_grad():
            posterior_score = encoder_vjp(encoded, posterior_cotangent(log_std, eps))  # [L*N, D]
        product = -(posterior_score.to(value.dtype) * residual).sum(1)
        terms = {"cross": sample_mean(product, num_samples) + divergence, "mean_score": 0.5 * square_mean}
    return reduce_terms(terms, reduction)


def check_samples(objective: str, unbiased: bool, num_samples: int) -> None:
    """What the estimate of ||E s||^2 asks of the number of samples."""
    if objective == "m1" or num_samples > 1:
        return
    if unbiased:
        raise ValueError(f"num_samples: expected an int >= 2 with unbiased=True, received {num_samples}")
    if not torch.compiler.is_compiling():
        without = "m2 is then m1" if objective == "m2" else "m3 is then m1 plus E[s_q . s]"
        warnings.warn(
            f"score_matching_loss: one sample cannot tell the mean of the score from the score; {without}. "
            "Raise num_samples",
            RuntimeWarning,
            stacklevel=3,
        )
