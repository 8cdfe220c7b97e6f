"""Hyvärinen scores: what score matching minimises, of any density with a network in it."""

from torch import Tensor, nn

from fisherkernels.checks import check_count
from fisherkernels.second_order import laplacian
from fisherkernels.second_order.directions import random_signs


def hyvarinen_score(
    log_density: nn.Module, x: Tensor, *, batch_statistics: str = "batch", memory_budget: float = 2**30
) -> Tensor:
    r"""The Hyvärinen score of a density at every data point, exact, in one sweep forward.

    .. math:: \tfrac12 \|\nabla_x \log p(x)\|^2 + \Delta_x \log p(x)

    Its mean over data is, up to a constant of the data's own density, the Fisher divergence
    :math:`\tfrac12 \mathbb{E} \|\nabla \log p_{data} - \nabla \log p\|^2`. A constant in log p, such as the
    normalisation, does not enter. One ``backward()`` trains the network: no double backward, see :func:`fk.laplacian`.
    The score alone, to sample by it, is ``lin.vjp(torch.ones_like(lin.value))`` with
    ``lin = fk.linearize(log_density, x)``.

    Mixtures with components much narrower than 1 are for float64: terms of the size of 1/variance² cancel.

    Args:
        log_density: module taking ``[N, ...]`` to log p ``[N]`` or ``[N, 1]``, unnormalised.
        x: data ``[N, ...]``, float32 or float64; n numbers per data point. The cost is that of min(n, h) + 2 forward
            passes, h the units of a first Linear layer.
        batch_statistics, memory_budget: see :func:`fk.laplacian`.

    Returns:
        ``[N]``, sums over the n coordinates; nothing is divided by n.

    Raises:
        TypeError, ValueError: as :func:`fk.laplacian`; ValueError for a value that is neither ``[N]`` nor ``[N, 1]``.

    Source: Hyvärinen, "Estimation of non-normalized statistical models by score matching", JMLR 2005, eq. 4.

    >>> log_density = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> loss = hyvarinen_score(log_density, torch.rand(5, 3)).mean()
    >>> loss.backward()
    """
    options = {"batch_statistics": batch_statistics, "memory_budget": memory_budget}
    score, divergence = _score(log_density, x, **options)
    return 0.5 * score.square().sum(1) + divergence


def sliced_hyvarinen_score(
    log_density: nn.Module,
    x: Tensor,
    num_slices: int = 1,
    *,
    variance_reduction: bool = True,
    noise: Tensor | None = None,
    batch_statistics: str = "batch",
    memory_budget: float = 2**30,
) -> Tensor:
    r"""An unbiased estimate of :func:`hyvarinen_score` by random directions, for inputs where exact is out of reach.

    .. math::
        \frac1M \sum_{m=1}^M v_m^T \nabla^2 \log p(x)\, v_m + \tfrac12 \|\nabla \log p(x)\|^2
        \quad\text{or, without variance reduction,}\quad \frac1M \sum_m \tfrac12 (v_m^T \nabla \log p(x))^2

    for the last term.

    Args:
        log_density, x, batch_statistics, memory_budget: see :func:`hyvarinen_score`; the cost is that of M + 2 forward
            passes.
        num_slices: M.
        variance_reduction: take the norm of the score exactly.
        noise: directions v ``[M, *x.shape]`` of mean 0 and covariance I; random signs from the global generator when
            None.

    Returns:
        ``[N]``.

    Raises:
        TypeError, ValueError: as :func:`hyvarinen_score`; ValueError for num_slices < 1 and noise of another shape.

    Source: Song et al., "Sliced score matching: a scalable approach to density and score estimation", UAI 2019, eq. 8;
    with variance reduction eq. 9.

    >>> log_density = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> list(sliced_hyvarinen_score(log_density, torch.rand(5, 3), num_slices=2).shape)
    [5]
    """
    check_count("num_slices", num_slices)
    if noise is None and isinstance(x, Tensor):
        noise = random_signs(x, num_slices)
    score, divergence = _score(
        log_density, x, estimator="hutchinson", num_samples=num_slices, noise=noise,
        batch_statistics=batch_statistics, memory_budget=memory_budget,
    )  # fmt: skip
    if variance_reduction:
        return 0.5 * score.square().sum(1) + divergence
    along = (noise.flatten(2) * score).sum(2)  # [M, N]
    return 0.5 * along.square().mean(0) + divergence


def _score(log_density: nn.Module, x: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The gradient of log p by x [N, n], and the sum of second derivatives [N]."""
    if not isinstance(log_density, nn.Module):
        raise TypeError(
            f"log_density: expected a torch.nn.Module, got {type(log_density).__name__}; a function can be the forward "
            "of one"
        )
    value, jacobian, divergence = laplacian(log_density, x, **options)
    if value.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"log_density: expected a value of shape {[len(x)]} or {[len(x), 1]}, got {list(value.shape)}"
        )
    return jacobian.squeeze(1), divergence.reshape(len(x))
