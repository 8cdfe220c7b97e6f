"""The loss of the Fisher auto-encoder that controls Fisher information in the encoder and in the decoder."""

import torch

from fisherkernels import checks, ops
from fisherkernels.losses.autoencode import Autoencoded, autoencode
from fisherkernels.losses.elbo import check_elbo, negative_log_likelihood
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms

TERMS = ("reconstruction", "kl", "information_z", "information_x")


def fisher_shannon_loss(
    encoder,
    decoder,
    x: torch.Tensor,
    *,
    lambda_z=1.0,
    f_z=0.0,
    lambda_x=0.0,
    f_x=0.0,
    estimator: str = "analytic",
    per_dimension: bool = True,
    likelihood: str = "gaussian",
    variance=1.0,
    num_samples: int = 1,
    noise: torch.Tensor | None = None,
    reduction: str = "mean",
) -> LossOutput:
    r"""Negative evidence lower bound with the Fisher information of encoder and decoder held to wanted values.

    Per data point, averaged over L samples :math:`z = \mu + \sigma\epsilon`, :math:`\epsilon \sim N(0, I)`:

    .. math::
        \underbrace{-\log p(x|z)}_{reconstruction}
        + \underbrace{\tfrac12 \textstyle\sum_j (\mu_j^2 + \sigma_j^2 - 1 - 2\log\sigma_j)}_{kl}
        + \underbrace{\lambda_z |\mathrm{tr} J(z|x) - F_z|}_{information\_z}
        + \underbrace{\lambda_x |\mathrm{tr} J(x|z) - F_x|}_{information\_x}

    with :math:`\mathrm{tr} J(z|x) = \sum_j 1/\sigma_j^2` and :math:`\mathrm{tr} J(x|z) = \sum_j 1/\gamma_j`, each
    divided by its number of coordinates unless ``per_dimension=False``. A large :math:`F_z` asks for an informative
    code, a small one for entropy; the absolute value is taken per data point.

    **Scaling.** reconstruction is a sum over the D pixels and a mean over L samples, kl a sum over the d latent
    coordinates; the information terms are means over coordinates (``per_dimension=True``, so that :math:`F_z = 20`
    means :math:`1/\sigma^2 = 20`, as in the authors' code) or sums (eq. 7 as printed, where the prior itself has
    d); then comes the reduction over the batch. The authors' code averages over the batch before the absolute value
    and clamps the logarithm of :math:`1/\sigma^2` at 88: neither is done here, and :math:`1/\sigma^2` overflows in
    float32 where :math:`\log\sigma < -44`.

    Args:
        encoder: callable taking `x` to ``[N, 2d]`` (mean, then log_std) or to the pair ``([N, d], [N, d])``.
        decoder: callable taking ``[L*N, d]`` to ``[L*N, *x.shape[1:]]``; all samples go through it as one batch.
        x: floating-point data ``[N, ...]``; within [0, 1] for the Bernoulli likelihoods.
        lambda_z, lambda_x: weights, >= 0: floats or 0-d tensors. The float 0 leaves its term out (it is then 0).
        f_z: :math:`F_z` >= 0, in units of :math:`1/z^2`: a float, a 0-d tensor, or ``[d]``: one value for every latent
            coordinate, which makes the term :math:`\lambda_z \sum_j |1/\sigma_j^2 - F_j|` (or the mean over j).
        f_x: :math:`F_x` >= 0, in units of :math:`1/x^2`: a float or a 0-d tensor.
        estimator: ``"analytic"``: the traces above. ``"sampled"``: squared scores at the samples,
            :math:`\sum_j ((z_j - \mu_j)/\sigma_j^2)^2 = \sum_j \epsilon_j^2/\sigma_j^2` (z reparametrised) and
            :math:`\sum_j ((x_j - f_j(z))/\gamma_j)^2`, averaged over L before the absolute value. The second is taken
            at the data, so that it also moves the decoder's mean; it is tr J(x|z) in expectation where the decoder's
            :math:`\gamma` is right.
        per_dimension: divide each trace by its number of coordinates, d or D.
        likelihood: ``"gaussian"``, ``"bernoulli"`` or ``"bernoulli_logits"``, as in :func:`elbo_loss`. Binary data has
            no Fisher information in x: the last two need ``lambda_x=0``.
        variance: :math:`\gamma`, of the Gaussian likelihood only: a float, a 0-d tensor, ``[D]`` or x's trailing
            shape. The analytic information_x has a gradient only with respect to it.
        num_samples: L.
        noise: :math:`\epsilon` ``[L, N, d]``, or ``[N, d]`` for L = 1; drawn from the global generator when None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0, ``[]``.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms reconstruction, kl, information_z and information_x
        (weights included).

    Raises:
        TypeError: integer data, an encoder output that is no tensor or pair, mixed dtypes, a DDP, FSDP or DataParallel
            wrapper (compute the loss inside the wrapped module).
        ValueError: wrong shapes (an f_z whose length is not d), mixed devices, an unknown option, num_samples < 1,
            variance <= 0 or given with a Bernoulli likelihood, a weight or an information < 0, lambda_x with a
            Bernoulli likelihood, data or probabilities outside [0, 1] (the values of tensors are looked at on the CPU
            in eager mode only).

    Source: Zheng et al., "Understanding VAEs in Fisher-Shannon Plane", 2018, eq. 7-11 (eq. 9 misplaces a bracket).

    >>> encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    >>> x = torch.rand(3, 6)
    >>> loss, terms = fisher_shannon_loss(encoder, decoder, x, f_z=20.0, likelihood="bernoulli_logits")
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}
    {'reconstruction': [3], 'kl': [3], 'information_z': [3], 'information_x': [3]}
    """
    checks.check_choice("estimator", estimator, ("analytic", "sampled"))
    variance = check_elbo(encoder, decoder, x, likelihood, variance, num_samples, reduction)
    for name, value in (("lambda_z", lambda_z), ("lambda_x", lambda_x), ("f_x", f_x)):
        checks.check_weight(name, value)
    if likelihood != "gaussian" and not left_out(lambda_x):
        raise ValueError(f"lambda_x: expected 0 with likelihood={likelihood!r}, received {lambda_x}")
    if x.shape[0] == 0:
        return empty_output(TERMS, reduction, x, encoder, decoder, variance, lambda_z, f_z, lambda_x, f_x)

    passed = autoencode(encoder, decoder, x, num_samples, noise)
    check_wanted("f_z", f_z, passed.mean)
    kl, trace, _ = ops.gaussian_information(passed.mean, passed.log_std)
    terms = {
        "reconstruction": negative_log_likelihood(passed.output, passed.data, likelihood, variance).mean(0),
        "kl": kl,
        "information_z": torch.zeros_like(kl),
        "information_x": torch.zeros_like(kl),
    }
    if not left_out(lambda_z):
        terms["information_z"] = lambda_z * encoder_gap(passed, trace, f_z, estimator, per_dimension)
    if not left_out(lambda_x):
        terms["information_x"] = lambda_x * decoder_gap(passed, variance, f_x, estimator, per_dimension)
    return reduce_terms(terms, reduction)


def encoder_gap(passed: Autoencoded, trace, f_z, estimator: str, per_dimension: bool) -> torch.Tensor:
    """|tr J(z|x) - F_z|, [N]; `trace` is the analytic tr J(z|x)."""
    coordinates = passed.mean.shape[1] if per_dimension else 1
    per_coordinate = isinstance(f_z, torch.Tensor) and f_z.dim() == 1
    if estimator == "analytic" and not per_coordinate:
        return (trace / coordinates - f_z).abs()
    precision = (-2 * passed.log_std).exp()  # [N, d]
    if estimator == "sampled":
        precision = precision * passed.eps.square().mean(0)
    if per_coordinate:
        return (precision - f_z).abs().sum(1) / coordinates
    return (precision.sum(1) / coordinates - f_z).abs()


def decoder_gap(passed: Autoencoded, variance, f_x, estimator: str, per_dimension: bool) -> torch.Tensor:
    """|tr J(x|z) - F_x|, [N]."""
    pixels = passed.data.shape[1]
    if estimator == "analytic":
        trace = (1 / variance).expand(pixels).sum()
    else:
        trace = ((passed.data - passed.output) / variance).square().sum(-1).mean(0)  # [N]
    return (trace / (pixels if per_dimension else 1) - f_x).abs().expand(passed.data.shape[0])


def left_out(weight) -> bool:
    """Whether a term is not wanted: its weight is the number 0."""
    return not isinstance(weight, torch.Tensor) and weight == 0


def check_wanted(name: str, value, mean: torch.Tensor) -> None:
    """A number >= 0, or one for each of the d latent coordinates."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return checks.check_weight(name, value)
    checks.check_same(name, value, "the posterior's mean", mean)
    if value.shape != mean.shape[1:]:
        raise ValueError(
            f"{name}: expected a float or a tensor of shape [] or [{mean.shape[1]}], one value per latent "
            f"coordinate, received shape {list(value.shape)}"
        )
    if checks.may_read_values(value) and not bool((value >= 0).all()):
        raise ValueError(f"{name}: expected values >= 0, received a smallest value of {value.min().item()}")
