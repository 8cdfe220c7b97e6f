"""The noise covariance N of the metric: a variance shared by all values, one per value, or per sample."""

import torch
from torch import Tensor

from fisherkernels.checks import check_number, check_same, may_read_values, type_name


def as_noise_variance(noise_variance, value: Tensor) -> Tensor:
    """The variances as [1 or N, 1 or D], to be broadcast against the flattened value [N, D]."""
    if not isinstance(noise_variance, Tensor):
        check_number("noise_variance", noise_variance, positive=True)
        return torch.full((1, 1), noise_variance, dtype=value.dtype, device=value.device)
    check_same("noise_variance", noise_variance, "the decoder's output", value)
    rows, trailing, columns = value.shape[0], tuple(value.shape[1:]), value.shape[1:].numel()
    shape = tuple(noise_variance.shape)
    if shape == ():
        variance = noise_variance.reshape(1, 1)
    elif shape in ((columns,), trailing):
        variance = noise_variance.reshape(1, columns)
    elif shape in ((rows, 1), (rows, columns), (rows, *trailing)):
        variance = noise_variance.flatten(1)
    else:
        raise ValueError(
            f"noise_variance: expected a float or a tensor of shape [], [{columns}], {list(trailing)}, or per sample "
            f"[{rows}, 1], [{rows}, {columns}] or {[rows, *trailing]}, received shape {list(shape)}"
        )
    if may_read_values(variance) and not bool((variance > 0).all()):
        raise ValueError(f"noise_variance: expected values > 0, received a smallest value of {variance.min().item()}")
    return variance


def as_noise_pair(noise, num_samples: int, rows: int, columns: int, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal draws, data side [S, N, D] and latent side [S, N, d]: fresh ones, or the caller's checked."""
    shapes = (num_samples, rows, columns), (num_samples, *mean.shape)
    if noise is None:
        return tuple(torch.randn(shape, dtype=mean.dtype, device=mean.device) for shape in shapes)
    if not isinstance(noise, (tuple, list)) or len(noise) != 2:
        raise TypeError(
            f"noise: expected a pair of tensors, data side {list(shapes[0])} and latent side {list(shapes[1])}, "
            f"received {type_name(noise)}"
        )
    checked = []
    for side, draws, shape in zip(("data side", "latent side"), noise, shapes, strict=True):
        if not isinstance(draws, Tensor):
            raise TypeError(f"noise: expected a tensor {list(shape)} on the {side}, received {type_name(draws)}")
        if draws.dim() > 2 and draws.shape[:2] == shape[:2] and draws.shape[2:].numel() == shape[2]:
            draws = draws.reshape(shape)  # data side in the value's own shape
        if draws.shape != shape:
            raise ValueError(f"noise: expected shape {list(shape)} on the {side}, received {list(draws.shape)}")
        check_same("noise", draws, "mean", mean)
        checked.append(draws)
    return tuple(checked)
