"""What every loss returns: the reduced loss and its terms per sample."""

from typing import NamedTuple

import torch
from torch import nn


class LossOutput(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        loss: 0-d for ``reduction="mean"`` and ``"sum"``, ``[N]`` for ``"none"``.
        terms: name -> ``[N]``, in the graph, weights included: their sum is the unreduced loss. Each term is
            a sum over pixels or latent coordinates and a mean over the Monte-Carlo samples, per data point.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


def sample_mean(values: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Mean over the samples of sample-major rows, [L*N] -> [N]."""
    return values if num_samples == 1 else values.view(num_samples, -1).mean(0)


def reduce_terms(terms: dict[str, torch.Tensor], reduction: str) -> LossOutput:
    """Add the terms up and reduce over the batch; the mean of an empty batch is 0."""
    per_sample = sum(list(terms.values())[1:], start=next(iter(terms.values())))  # [N]
    if reduction == "none":
        return LossOutput(per_sample, terms)
    mean = reduction == "mean" and per_sample.shape[0] > 0
    return LossOutput(per_sample.mean() if mean else per_sample.sum(), terms)


def empty_output(names, reduction: str, x: torch.Tensor, *sources) -> LossOutput:
    """The loss of an empty batch: 0 (or ``[0]``), with zero gradients for every parameter of `sources`.

    The networks are not run, so that train-mode BatchNorm does not divide by zero.
    """
    tensors = [x]
    for source in sources:
        if isinstance(source, nn.Module):
            tensors.extend(source.parameters())
        elif isinstance(source, torch.Tensor):
            tensors.append(source)
    anchor = x.new_zeros(())
    for tensor in tensors:
        if tensor.requires_grad:
            anchor = anchor + tensor.reshape(-1)[:0].sum().to(anchor)
    return reduce_terms({name: anchor.expand(0) for name in names}, reduction)
