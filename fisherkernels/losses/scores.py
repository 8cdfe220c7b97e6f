"""Scores of the decoder and of the encoder, from derivatives computed forward."""

import torch

from fisherkernels import checks, networks, ops
from fisherkernels.linearize import linearize
from fisherkernels.linearize.walk import value_size
from fisherkernels.losses.output import sample_mean


def decoder_score(decoder, x: torch.Tensor, z: torch.Tensor, variance=1.0) -> torch.Tensor:
    r"""Score of a Gaussian decoder with respect to the latent variable.

    .. math:: \nabla_z \log p(x|z) = J_f(z)^T \gamma^{-1} (x - f(z)), \qquad p(x|z) = N(f(z), \gamma I)

    Args:
        decoder: module taking ``[R, d]`` to ``[R, *x.shape[1:]]``.
        x: data ``[N, ...]``.
        z: latent points ``[N, d]``, or ``[L, N, d]``: L samples, sent through the decoder as one batch of
            L*N.
        variance: :math:`\gamma`: a float, a 0-d tensor, ``[D]`` or x's trailing shape; may require grad.

    Returns:
        The score, of the shape of `z`, a sum over pixels; differentiable by one ordinary backward.

    Raises:
        TypeError: integer data, mixed dtypes, a data-parallel wrapper.
        ValueError: wrong shapes, variance <= 0.

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 11.

    >>> decoder = torch.nn.Linear(2, 3).double()
    >>> x, z = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    >>> expected = (x - decoder(z)) / 0.5 @ decoder.weight
    >>> torch.allclose(decoder_score(decoder, x, z, variance=0.5), expected)
    True
    """
    checks.check_data(x)
    checks.check_network("decoder", decoder)
    checks.check_data(z, "z")
    checks.check_same("z", z, "x", x)
    if z.dim() not in (2, 3) or z.shape[-2] != x.shape[0]:
        raise ValueError(
            f"z: expected shape [{x.shape[0]}, d] or [L, {x.shape[0]}, d], received {list(z.shape)}"
        )
    variance = checks.as_variance(variance, x)
    if z.numel() == 0:
        return torch.zeros_like(z)
    latent = z.flatten(0, -2)  # [L*N, d]
    decoded = networks.run_network("decoder", linearize, decoder, latent)
    _, residual = residual_of(x, decoded, latent.shape[0], variance)
    return decoder_vjp(decoded, residual).view(z.shape)


def stability(encoder, x: torch.Tensor, eps: torch.Tensor, kind: str = "posterior") -> torch.Tensor:
    r"""Sensitivity of the approximate posterior to the data, term 3 of the Fisher auto-encoder loss.

    ``kind="posterior"``: :math:`\frac12 \|\nabla_x \log q(z|x)\|^2` with :math:`z = \mu + \sigma\epsilon`
    held fixed, which is one vector-Jacobian product of the encoder with :math:`\epsilon/\sigma` for the mean
    and :math:`\epsilon^2 - 1` for log_std. ``kind="log_std"``: :math:`\frac12 \|\nabla_x \sum_j
    \log\sigma_j\|^2`, what the authors' released code trains.

    Args:
        encoder: module taking `x` to ``[N, 2d]`` (mean, then log_std) or to that pair.
        x: data ``[N, ...]``.
        eps: standard normal draws ``[N, d]``, or ``[L, N, d]`` to average over L.
        kind: ``"posterior"`` or ``"log_std"`` (which does not depend on the values of `eps`).

    Returns:
        ``[N]``: a sum over pixels, a mean over L; differentiable by one ordinary backward.

    Raises:
        TypeError: integer data, mixed dtypes, a data-parallel wrapper, an encoder output that is no pair or
            tensor.
        ValueError: wrong shapes, an unknown kind.

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 10-11.

    >>> encoder = torch.nn.Linear(3, 4).double()
    >>> x, eps = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    >>> gradient = encoder.weight[2:].sum(0)
    >>> torch.allclose(stability(encoder, x, eps, "log_std"), 0.5 * gradient.square().sum())
    True
    """
    checks.check_choice("kind", kind, ("posterior", "log_std"))
    checks.check_data(x)
    checks.check_network("encoder", encoder)
    checks.check_data(eps, "eps")
    if x.shape[0] == 0:
        return x.new_zeros(0)
    encoded = networks.run_network("encoder", linearize, encoder, x)
    mean, log_std = networks.split_posterior(encoded.value, x)
    if eps.dim() not in (2, 3) or eps.shape[-2:] != mean.shape:
        shape = f"{mean.shape[0]}, {mean.shape[1]}]"
        raise ValueError(f"eps: expected shape [{shape} or [L, {shape}, received {list(eps.shape)}")
    checks.check_same("eps", eps, "x", x)
    return stability_term(encoded, log_std, eps.view(-1, *mean.shape), kind)


def residual_of(x, decoded, rows: int, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a linearised decoder: 1/2 ||s||^2 - sum_j 1/variance_j, [R], and s = (x - f)/variance, [R, D]."""
    output = networks.as_reconstruction(decoded.value, x, rows)
    return ops.gaussian_score(x.flatten(1), output.flatten(1), variance)


def decoder_vjp(decoded, residual: torch.Tensor) -> torch.Tensor:
    """J_f^T residual, [R, d], from a linearised decoder."""
    return decoded.vjp(residual.view(decoded.value.shape).to(decoded.value.dtype)).to(residual.dtype)


def stability_first(encoded, num_samples: int) -> bool:
    """Whether the stability term is better made before the decoder runs.

    Backward then comes to it after the decoder, and until then holds what its product keeps, otherwise the gradients
    of the encoder's parameters: the smaller of the two is held. torch.compile orders backward by itself.
    """
    if torch.compiler.is_compiling():
        return False
    return num_samples * value_size(encoded._folded) < encoded._plan.size


def stability_term(encoded, log_std: torch.Tensor, eps: torch.Tensor, kind: str) -> torch.Tensor:
    """The stability term [N] of a linearised encoder; eps [L, N, d]."""
    if kind == "log_std":
        ones = torch.ones_like(log_std)
        cotangent = torch.cat([torch.zeros_like(log_std), ones], dim=1).unsqueeze(0)  # [1, N, 2d]
    else:
        cotangent = posterior_cotangent(log_std, eps)
    values = ops.half_squared_norm(encoder_vjp(encoded, cotangent))
    return sample_mean(values, cotangent.shape[0])


def posterior_cotangent(log_std: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """What the encoder's J^T turns into grad_x log q(z|x), z held fixed: [L, N, 2d]; eps [L, N, d]."""
    return ops.stability_cotangent(eps.flatten(0, 1), log_std).view(*eps.shape[:2], -1)


def encoder_vjp(encoded, cotangent: torch.Tensor) -> torch.Tensor:
    """J^T cotangent, [L*N, D], of a linearised encoder for a stack [L, N, 2d]."""
    rows = cotangent.shape[0] * cotangent.shape[1]
    if cotangent.shape[0] == 1:
        cotangent = cotangent.squeeze(0)
    if isinstance(encoded.value, torch.Tensor):
        gradient = encoded.vjp(cotangent.to(encoded.value.dtype))
    else:
        mean_part, log_std_part = cotangent.chunk(2, dim=-1)
        gradient = encoded.vjp(
            (mean_part.to(encoded.value[0].dtype), log_std_part.to(encoded.value[1].dtype))
        )
    return gradient.reshape(rows, -1)
