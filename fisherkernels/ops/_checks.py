"""Argument checks of the operators: every message names the argument, what was expected and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.bfloat16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are kept: float32 for bfloat16, otherwise the dtype itself."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def check_tensor(op: str, name: str, value: object, like: Tensor | None = None, *, wide: bool = False) -> None:
    """A floating tensor of the device and dtype of `like`; with `wide`, float32 may go with bfloat16."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if like is None:
        if value.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name} must be float32, float64 or bfloat16, got {value.dtype}")
        return
    if value.dtype is not like.dtype and not (wide and value.dtype is accumulate_dtype(like.dtype)):
        raise TypeError(f"{op}: {name} must have dtype {like.dtype} like the other arguments, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} like the other arguments, got {value.device}")


def check_full_precision(
    op: str,
    name: str,
    value: object,
    reason: str = "half precision does not resolve the condition numbers of a metric",
) -> None:
    """A float32 or float64 tensor, for operators that half precision is not enough for."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: {name} must be float32 or float64, got {value.dtype}; {reason}")


def check_matrix(op: str, name: str, value: Tensor) -> None:
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must have two dimensions [rows, columns], got shape {list(value.shape)}")


def check_layers(op: str, like: Tensor, width: int, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    """Weights [h_l, h_(l-1)], the first on `width` inputs, and biases [h_l] or None."""
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_tensor(op, f"weights[{i}]", weight, like)
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(f"{op}: weights[{i}] must have shape [any, {width}], got {list(weight.shape)}")
        width = weight.shape[0]
        if bias is not None:
            check_tensor(op, f"biases[{i}]", bias, like)
            if bias.shape != (width,):
                raise ValueError(f"{op}: biases[{i}] must have shape [{width}], got {list(bias.shape)}")


def check_activations(op: str, activations: Sequence[str], known: Sequence[str]) -> None:
    for i, activation in enumerate(activations):
        if activation not in known:
            raise ValueError(f"{op}: activations[{i}] must be one of {', '.join(known)}, got {activation!r}")


def check_same_shape(op: str, name: str, value: Tensor, other: str, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise ValueError(
            f"{op}: {name} must have the shape of {other}, {list(expected.shape)}, got {list(value.shape)}"
        )


def check_paired(op: str, name: str, value: Tensor, other: str, rows: Tensor) -> None:
    """`value` [M, D] must pair with `rows` [R, D], R a multiple of M."""
    if value.dim() != 2 or value.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{op}: {name} must have shape [rows, {rows.shape[1]}] beside {other}, got {list(value.shape)}"
        )
    count, total = value.shape[0], rows.shape[0]
    if count == total:
        return
    if count == 0 or total % count != 0:
        raise ValueError(f"{op}: {other}'s {total} rows must be a multiple of {name}'s rows, got {count}")


def samples_per_row(paired: Tensor, rows: Tensor) -> int:
    """L in R = L * M (1 for empty arguments)."""
    return rows.shape[0] // paired.shape[0] if paired.shape[0] else 1
