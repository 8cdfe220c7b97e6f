"""Checks of what the metric is given."""

import torch
from torch import Tensor

from fisherkernels.checks import check_same, type_name


def check_mean(mean) -> None:
    if not isinstance(mean, Tensor):
        raise TypeError(f"mean: expected a tensor [N, d], received {type_name(mean)}")
    if mean.dtype not in (torch.float32, torch.float64):
        reason = ""
        if mean.is_floating_point():
            reason = (
                ": the metric's condition number reaches hundreds, more than the 8 to 11 bits of half precision "
                "resolve; run the metric outside autocast, in float32"
            )
        raise TypeError(f"mean: expected float32 or float64, received {mean.dtype}{reason}")
    if mean.dim() != 2:
        raise ValueError(f"mean: expected shape [N, d], received {list(mean.shape)}")


def check_stack(name: str, given, mean: Tensor) -> bool:
    """Whether ``given`` is one [N, d] rather than a stack [K, N, d]."""
    rows, width = mean.shape
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor [{rows}, {width}], received {type_name(given)}")
    if given.shape != mean.shape and (given.dim() != 3 or given.shape[1:] != mean.shape):
        raise ValueError(
            f"{name}: expected shape [{rows}, {width}] or a stack [K, {rows}, {width}], received {list(given.shape)}"
        )
    check_same(name, given, "mean", mean)
    return given.dim() == 2
