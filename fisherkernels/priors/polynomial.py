"""The factorable polynomial exponential family."""

import math

import torch
from torch import nn

from fisherkernels.priors.factorised import FactorisedPrior, check_size


class PolynomialExponentialFamily(FactorisedPrior):
    r"""Prior with a learnable polynomial log density per latent coordinate.

    .. math:: \log p_\eta(z) = \sum_{j=1}^d \sum_{k=1}^K \eta_{jk} z_j^k + \text{const}

    It can be normalised only if the leading coefficient of every coordinate has an even order and is
    negative. The paper's K = 5 is therefore improper: training needs the score alone and works, sampling
    truncates (see :meth:`truncation`).

    Args:
        d: latent width, >= 1.
        order: K, >= 1.
        constraint: ``"none"``: :math:`\eta` itself is the parameter, as in the paper; it starts at the
            standard normal (:math:`\eta_{j2} = -\tfrac12`, the rest 0; for K = 1 all 0). ``"normalizable"``
            (K even): the leading coefficient is :math:`\eta_{jK} = -\tfrac12 (\rho_j + \sqrt{\rho_j^2 +
            c^2})`, negative for every :math:`\rho_j`, the other coefficients are free. For K = 2 it starts at
            the standard normal. For K > 2 the standard normal, with :math:`\eta_{jK} = 0`, lies on the border
            of what can be represented; the start is :math:`\rho_j = 0`, :math:`\eta_{jK} = -c/2` with
            :math:`c = 2\cdot 10^{-3}/(K-1)!!`, which changes the standard normal's mean log density by
            :math:`10^{-3}` per coordinate and has the full slope there.

    Attributes:
        coefficients: :math:`\eta`, ``[d, K]``, column k - 1 belonging to :math:`z^k`; in the graph of
            `raw_coefficients`.
        raw_coefficients: the parameter, ``[d, K]``; its last column is :math:`\rho` under ``"normalizable"``.

    Raises:
        TypeError: d or order is no int.
        ValueError: d < 1, order < 1, an unknown constraint, an odd order with ``"normalizable"``.

    Source: Elkhalil et al., "Fisher Auto-Encoders", AISTATS 2021, eq. 13; Cobb et al., JASA 1983.

    >>> prior = PolynomialExponentialFamily(3, order=5)
    >>> z = torch.randn(4, 3)
    >>> torch.allclose(prior.score(z), -z)
    True
    """

    def __init__(self, d: int, order: int, constraint: str = "none"):
        super().__init__(d)
        check_size("order", order)
        if constraint not in ("none", "normalizable"):
            raise ValueError(f"constraint: expected 'none' or 'normalizable', received {constraint!r}")
        if constraint == "normalizable" and order % 2:
            raise ValueError(
                f"order: expected an even order with constraint='normalizable', received {order} "
                "(an odd leading power grows without end on one side)"
            )
        self.order = order
        self.constraint = constraint
        self._smoothing = 2e-3 / math.prod(range(order - 1, 0, -2))
        start = torch.zeros(d, order)
        if order > 1:
            start[:, 1] = -0.5
        if constraint == "normalizable" and order == 2:
            start[:, 1] = 0.5 - self._smoothing**2 / (4 * 0.5)  # inverse of the map below at -1/2
        self.raw_coefficients = nn.Parameter(start)

    @property
    def coefficients(self) -> torch.Tensor:
        raw = self.raw_coefficients
        if self.constraint == "none":
            return raw
        rho, squared = raw[:, -1:], self._smoothing**2
        root = (rho.square() + squared).sqrt()
        positive = rho > 0  # rho + root, for rho <= 0 rewritten so that nothing cancels
        total = torch.where(positive, rho + root, squared / (root - rho.where(~positive, 0.0)))
        return torch.cat([raw[:, :-1], -0.5 * total], dim=1)

    def extra_repr(self) -> str:
        return f"d={self.d}, order={self.order}, constraint={self.constraint!r}"
