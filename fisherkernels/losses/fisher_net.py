"""The FisherNet loss."""

import math

import torch

from fisherkernels import checks, networks, ops
from fisherkernels.losses.output import LossOutput, empty_output, reduce_terms, sample_mean
from fisherkernels.metric import FisherMetric

LOGDET = {False: None, True: "exact", "exact": "exact", "lanczos": "lanczos"}
TERMS = ("prior", "reconstruction", "noise", "noise_prior")


def fisher_net_loss(
    mean_encoder,
    decoder,
    x: torch.Tensor,
    *,
    log_noise_variance,
    dataset_size: int,
    logdet: bool | str = False,
    num_samples: int = 1,
    mirrored: bool = False,
    gradient: str = "full",
    method: str = "auto",
    tol: float = 1e-3,
    max_iter: int | None = None,
    noise: tuple[torch.Tensor, torch.Tensor] | None = None,
    reduction: str = "mean",
    batch_statistics: str = "batch",
) -> LossOutput:
    r"""KL divergence from a Gaussian with the Fisher metric as precision to the posterior, by Monte Carlo.

    The encoder gives only the mean :math:`\mu(x)`; the posterior's precision is the metric of the decoder
    there, :math:`M = J(\mu)^T N^{-1} J(\mu) + 1` with the noise covariance :math:`N = e^{\xi}`. Per data
    point, averaged over S samples :math:`z = \mu + M^{-1} (J^T n + \eta)`, :math:`n \sim N(0, N^{-1})`,
    :math:`\eta \sim N(0, 1)`, of covariance :math:`M^{-1}`:

    .. math::
        \underbrace{\tfrac12 \|z\|^2}_{prior}
        + \underbrace{\tfrac12 \textstyle\sum_j (x_j - f_j(z))^2 e^{-\xi_j}}_{reconstruction}
        + \underbrace{\tfrac12 \textstyle\sum_j \xi_j}_{noise}
        + \underbrace{\tfrac1{2p} \xi^2}_{noise\_prior}
        \; \Big[ + \underbrace{\tfrac12 \ln|M|}_{logdet} \Big]

    The paper's eq. 25 is this with S = 1 and without logdet, which its eq. 24 still has. The standard normal
    prior of :math:`\xi` counts once in the whole data set of p points, so each of them bears :math:`1/p` of
    it. Dropped are the constants :math:`\tfrac12 D \ln 2\pi` of the likelihood and :math:`-\tfrac12 d` of the
    divergence.

    One ordinary ``backward()`` trains everything: the metric's solves are differentiated implicitly.

    **Scaling.** prior is a sum over the d latent coordinates, reconstruction and noise are sums over the D
    pixels; all are means over S samples; then comes the reduction over the batch. Nothing is divided by D or
    d.

    Args:
        mean_encoder: callable taking `x` to :math:`\mu` ``[N, d]``.
        decoder: module taking ``[R, d]`` to ``[R, *x.shape[1:]]``, linearised at :math:`\mu` (R = N), then
            called with all samples as one batch (R = S*N).
        x: float32 or float64 data ``[N, ...]``.
        log_noise_variance: :math:`\xi`, the logarithm of the noise variance: a float or a 0-d tensor (the
            paper's), ``[D]`` or x's trailing shape (one per pixel, each with its own prior). A tensor may
            require grad; give it a learning rate of its own (about 1e-2), as at the networks' it lags
            behind.
        dataset_size: p, the number of points in the training set.
        logdet: whether to keep :math:`\tfrac12 \ln|M|`: False, True or ``"exact"``, or ``"lanczos"``, a
            stochastic estimate for large d.
        num_samples: S.
        mirrored: draw S/2 samples and mirror them at :math:`\mu`.
        gradient: ``"full"`` differentiates the samples through :math:`M` and :math:`J`; ``"mean"`` only
            through :math:`\mu` (logdet, where kept, has its full gradient).
        method: how to solve with M: ``"cg"``, ``"cholesky"`` or ``"auto"``, see
            :class:`~fisherkernels.FisherMetric`.
        tol: relative residual at which CG stops; 1e-3 leaves an error of 0.1 to 0.3% in a sample.
        max_iter: iterations CG may take; None for the metric's own limit. A warning tells how many samples
            did not converge.
        noise: the pair of standard normal draws behind :math:`n` ``[S, N, D]`` and :math:`\eta` ``[S, N, d]``
            (``[N, D]`` and ``[N, d]`` for one draw; S/2 when mirrored); drawn from the global generator
            when None.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``: ``[N]``. An empty batch gives 0, 0,
            ``[]``.
        batch_statistics: ``"frozen"`` takes the statistics of train-mode BatchNorm layers in the decoder as
            constants of the metric; ``"batch"`` refuses such layers. The decoder runs twice, so running
            statistics are updated twice.

    Returns:
        :class:`~fisherkernels.losses.LossOutput` with the terms prior, reconstruction, noise, noise_prior
        and, where kept, logdet.

    Raises:
        TypeError: integer data, half precision (under autocast the networks run in it, the metric never
            does), an encoder output that is no tensor, mixed dtypes, a DDP, FSDP or DataParallel wrapper
            (compute the loss inside the wrapped module).
        ValueError: wrong shapes, mixed devices, an unknown option, dataset_size < 1, num_samples < 1 or odd
            with mirrored, tol outside (0, 1), max_iter < 1, a log_noise_variance that is not finite (tensors are looked
            at on the CPU in eager mode only), train-mode BatchNorm in the decoder unless frozen.

    Source: Zacherl, Frank and Enßlin, "Probabilistic Autoencoder Using Fisher Information", Entropy 2021,
    eq. 20-31.

    >>> encoder, decoder = torch.nn.Linear(6, 2), torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh())
    >>> xi = torch.tensor(0.0, requires_grad=True)
    >>> x = torch.rand(3, 6)
    >>> loss, terms = fisher_net_loss(encoder, decoder, x, log_noise_variance=xi, dataset_size=60_000)
    >>> loss.backward()
    >>> {name: list(term.shape) for name, term in terms.items()}
    {'prior': [3], 'reconstruction': [3], 'noise': [3], 'noise_prior': [3]}
    """
    check_options(gradient, method, tol, max_iter, reduction, batch_statistics)
    check_samples(num_samples, mirrored)
    checks.check_count("dataset_size", dataset_size)
    logdet = logdet_method(logdet)
    check_full_precision(x)
    checks.check_network("mean_encoder", mean_encoder)
    checks.check_network("decoder", decoder)
    xi = as_log_noise_variance(log_noise_variance, x)
    if x.shape[0] == 0:
        names = TERMS if logdet is None else (*TERMS, "logdet")
        return empty_output(names, reduction, x, mean_encoder, decoder, xi)

    mean = networks.as_mean(networks.run_network("mean_encoder", networks.call, mean_encoder, x), x)
    with torch.autocast(x.device.type, enabled=False):
        metric = networks.run_network("decoder", metric_at(xi.exp(), batch_statistics), decoder, mean)
        networks.as_reconstruction(metric.value, x, x.shape[0])
        z = metric.sample(
            num_samples,
            noise=as_draws(noise),
            mirrored=mirrored,
            method=method,
            tol=tol,
            max_iter=max_iter,
            gradient=gradient,
        )  # [S, N, d]
        terms = {} if logdet is None else {"logdet": 0.5 * metric.logdet(logdet)}
    output = networks.run_network("decoder", networks.call, decoder, z.flatten(0, 1))
    output = networks.as_reconstruction(output, x, z.shape[0] * z.shape[1])

    terms = {
        "prior": sample_mean(ops.half_squared_norm(z.flatten(0, 1)), num_samples),
        "reconstruction": sample_mean(half_weighted_error(x, output, xi), num_samples),
        "noise": (0.5 * xi.expand(x.shape[1:].numel()).sum()).expand(x.shape[0]),
        "noise_prior": (0.5 * xi.square().sum() / dataset_size).expand(x.shape[0]),
        **terms,
    }
    return reduce_terms(terms, reduction)


def half_weighted_error(x: torch.Tensor, output: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    """1/2 sum_j (x_j - output_j)^2 exp(-xi_j) of each row of the output, [S*N]."""
    error = x.flatten(1) - output.view(-1, x.shape[0], x.shape[1:].numel())  # [S, N, D]
    if xi.dim() == 0:
        return ops.half_squared_norm(error.flatten(0, 1)) * torch.exp(-xi)
    return ops.half_squared_norm((error * torch.exp(-0.5 * xi)).flatten(0, 1))


def metric_at(noise_variance: torch.Tensor, batch_statistics: str):
    """The metric of a network at a point, as a function of the two."""
    return lambda network, mean: FisherMetric(network, mean, noise_variance, batch_statistics=batch_statistics)


def check_options(gradient, method, tol, max_iter, reduction, batch_statistics) -> None:
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    checks.check_choice("gradient", gradient, ("full", "mean"))
    checks.check_choice("method", method, ("auto", "cg", "cholesky"))
    checks.check_choice("batch_statistics", batch_statistics, ("batch", "frozen"))
    checks.check_number("tol", tol, positive=True)
    if max_iter is not None:
        checks.check_count("max_iter", max_iter)


def check_samples(num_samples, mirrored) -> None:
    checks.check_count("num_samples", num_samples)
    if mirrored and num_samples % 2:
        raise ValueError(f"num_samples: expected an even number with mirrored=True, received {num_samples}")


def logdet_method(logdet) -> str | None:
    if not isinstance(logdet, (bool, str)) or logdet not in LOGDET:
        raise ValueError(
            f"logdet: expected one of {', '.join(map(repr, LOGDET))}, received {logdet!r}"
        )
    return LOGDET[logdet]


def check_full_precision(x) -> None:
    checks.check_data(x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"x: expected float32 or float64, received {x.dtype}, whose rounding the condition number of the "
            "metric exceeds; pass float32 data and let torch.autocast run the networks in half precision"
        )


def as_log_noise_variance(log_variance, x: torch.Tensor) -> torch.Tensor:
    """xi as a tensor, 0-d or [D]."""
    name, features = "log_noise_variance", x.shape[1:].numel()
    if not isinstance(log_variance, torch.Tensor):
        check_finite(name, log_variance)
        return torch.full((), log_variance, dtype=x.dtype, device=x.device)
    checks.check_same(name, log_variance, "x", x)
    if log_variance.dim() > 0 and log_variance.shape not in ((features,), x.shape[1:]):
        raise ValueError(
            f"{name}: expected a float or a tensor of shape [], [{features}] or {list(x.shape[1:])}, "
            f"received shape {list(log_variance.shape)}"
        )
    if checks.may_read_values(log_variance) and not bool(log_variance.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, received NaN or infinity")
    return log_variance if log_variance.dim() == 0 else log_variance.reshape(-1)


def check_finite(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: expected a float or a tensor, received {checks.type_name(value)}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: expected a finite number, received {value}")


def as_draws(noise):
    """A pair without a dimension of samples gets it."""
    if not isinstance(noise, (tuple, list)):
        return noise
    return tuple(n.unsqueeze(0) if isinstance(n, torch.Tensor) and n.dim() == 2 else n for n in noise)
