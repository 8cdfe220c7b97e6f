"""The decoder's Jacobian J and the noise precision as linear maps on [N, d] and [N, D], or on stacks of them."""

import torch
from torch import Tensor

from fisherkernels import ops
from fisherkernels.linearize import Linearization, ReluChain
from fisherkernels.metric import cost_model

_WORKING_BYTES = 2**28  # of the tangents at all layers, at once
_SAMPLES_COUNTED = 16


class MetricOperator:
    """v -> J^T N^-1 J v + v, with J from a linearisation at ``mean`` [N, d] and N^-1 [1 or N, 1 or D].

    Where the network ends in a linear layer W [D, h] and the precision is shared by the samples, J = W T and the last
    layer enters only through W^T N^-1 W [h, h]: ``weight_gram`` is formed once, and every later product costs h²
    instead of 2 h D multiply-adds at that layer. ``chain`` is there where M is best made from active units alone.
    """

    def __init__(self, linearization: Linearization, mean: Tensor, precision: Tensor):
        self.linearization, self.mean, self.precision = linearization, mean, precision
        self.trailing = tuple(linearization.value.shape[1:])
        self.columns = linearization.value.shape[1:].numel()
        self.last = linearization.last_linear() if precision.shape[0] == 1 else None
        self._weight_gram: Tensor | None = None
        self.chain = self._active_chain()

    def push(self, v: Tensor) -> Tensor:
        """J v: [..., N, d] -> [..., N, D]."""
        return self.linearization.jvp(v).reshape(*v.shape[:-1], self.columns)

    def pull(self, c: Tensor) -> Tensor:
        """J^T c: [..., N, D] -> [..., N, d]."""
        return self.linearization.vjp(c.reshape(*c.shape[:-1], *self.trailing))

    def tangents(self) -> Tensor:
        """J's columns [d, N, D]; what leads to them is made in chunks of bounded memory."""
        rows, width = self.mean.shape
        if width <= self.columns:  # the side that jacobian takes then
            return self.linearization.jacobian(memory_budget=_WORKING_BYTES).permute(2, 0, 1)
        return self.linearization.tangents().reshape(width, rows, self.columns)

    def matvec(self, v: Tensor) -> Tensor:
        """M v: [..., N, d] -> [..., N, d]."""
        return v + self.pull(self.precision * self.push(v))

    def reduction_saves(self, products: int) -> bool:
        """Whether forming W^T N^-1 W saves multiply-adds over this many products with J^T N^-1 J, per batch."""
        if self.last is None:
            return False
        columns, width = self.last.weight.shape
        return products * self.mean.shape[0] * (2 * columns - width) > columns * width

    def weight_gram(self) -> Tensor:
        """W^T N^-1 W [h, h], outside the graph."""
        if self._weight_gram is None:
            weight = self.last.weight.detach()
            scaled = weight * self.precision.detach().reshape(-1, 1)  # [D, h]
            self._weight_gram = weight.t() @ scaled
        return self._weight_gram

    def _active_chain(self) -> ReluChain | None:
        """Weights and units of a ReLU network, outside the graph, where the kernel for active units is the fastest way
        to M: on a CPU, and with enough tangents to pay for ``weight_gram``.
        """
        if self.last is None or self.mean.device.type != "cpu" or not ops.backends()["cpu"].active:
            return None
        if self.mean.numel() < self.last.weight.shape[1]:
            return None
        chain = self.linearization.relu_chain()
        if chain is None:
            return None
        first, weights, values = chain
        return ReluChain(first.detach(), tuple(w.detach() for w in weights), tuple(v.detach() for v in values))

    def active_work(self) -> cost_model.Active | None:
        """What ``relu_metric_factor`` has to do, by the units that are on in some of the samples."""
        if self.chain is None:
            return None
        some = [value[:_SAMPLES_COUNTED] for value in self.chain.values]
        on = [int(value.count_nonzero()) / max(1, len(value)) for value in some]
        rows, width = self.mean.shape
        products = sum(a * b for a, b in zip(on, on[1:], strict=False)) + on[-1] ** 2
        units = rows * (2.0 * width * products + width**2 * on[-1])
        formed = self._weight_gram is not None
        return cost_model.Active(units, 0.0 if formed else 2.0 * self.columns * self.last.weight.shape[1] ** 2)

    def reduced_matvec(self, v: Tensor) -> Tensor:
        """M v by way of ``weight_gram``, outside the graph."""
        return v + self.last.pull(self.last.push(v) @ self.weight_gram())

    def dense(self, memory_budget: int) -> Tensor:
        """M [N, d, d] in the graph: from J where it fits the budget, else column by column."""
        rows, width = self.mean.shape
        size = rows * self.columns * self.mean.element_size()  # of one tangent
        if width * size <= memory_budget or width == 0:
            tangents = self.tangents().transpose(0, 1)  # [N, d, D]
            gram = (tangents * self.precision[:, None]) @ tangents.transpose(1, 2)
            return gram + torch.eye(width, dtype=gram.dtype, device=gram.device)
        basis = torch.eye(width, dtype=self.mean.dtype, device=self.mean.device)[:, None].expand(-1, rows, -1)
        step = max(1, memory_budget // max(1, size))
        chunks = [self.matvec(basis[k : k + step]) for k in range(0, width, step)]
        return torch.cat(chunks).permute(1, 2, 0)  # [N, d, d]
