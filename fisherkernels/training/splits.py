"""Which samples train, validate and test."""

import torch
from torch import Tensor

SPLIT_SEED = 2021


def split(n: int, *sizes: int) -> list[Tensor]:
    """Indices 0..n-1 in a fixed random order, cut into parts of the given sizes after a first that takes the rest."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return list(order.split([n - sum(sizes), *sizes]))


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, received {value}")
    if val_fraction + test_fraction >= 1:
        total = val_fraction + test_fraction
        raise ValueError(f"test_fraction: expected val_fraction + test_fraction < 1, received {total}")


def split_fractions(n: int, val_fraction: float, test_fraction: float) -> list[Tensor]:
    """Indices of the training, validation and test samples; every part has at least one."""
    sizes = [max(1, round(n * fraction)) for fraction in (val_fraction, test_fraction)]
    if sum(sizes) >= n:
        raise ValueError(f"data: expected enough samples for training, validation and test, received {n}")
    return split(n, *sizes)
