"""An array of the user's as a data module."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fisherkernels.training import splits
from fisherkernels.training.batches import ImageDataset
from fisherkernels.training.data import InMemoryDataModule


class ArrayDataModule(InMemoryDataModule):
    """Your own array x [N, ...], whatever its rows are: ``val_fraction`` and ``test_fraction`` of them, chosen by a
    fixed permutation, validate and test.

    Floating-point values are taken as they are, as float32; uint8 images [N, C, H, W] are divided by 255.

    Args:
        array: path of a ``.npy`` file, or a tensor.
        labels: the same, [N]; without them every label is 0.
        val_fraction, test_fraction: of the rows.
        batch_size, seed, noise_std: see :class:`InMemoryDataModule`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: fewer than three rows, another number of labels, NaN or infinity (the row is named).
        TypeError: values neither floating-point nor uint8 images.
    """

    def __init__(
        self,
        array: str | Tensor,
        labels: str | Tensor | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        noise_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, noise_std)
        splits.check_fractions(val_fraction, test_fraction)
        self.array = array
        self.labels = labels
        self.fractions = (val_fraction, test_fraction)

    def load(self) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
        x = read("array", self.array)
        is_images = x.dtype == torch.uint8 and x.ndim == 4
        if not (is_images or x.is_floating_point()) or x.ndim < 2:
            expected = "array: expected floating-point values [N, ...] or uint8 images [N, C, H, W]"
            raise TypeError(f"{expected}, received {x.dtype} {list(x.shape)}")
        labels = torch.zeros(len(x), dtype=torch.long) if self.labels is None else read("labels", self.labels)
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels: expected shape [{len(x)}], received {list(labels.shape)}")
        finite = x.isfinite().flatten(1).all(1)  # [N]
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise ValueError(f"array: expected finite values, received NaN or infinity in row {row}")
        parts = splits.split_fractions(len(x), *self.fractions)
        if is_images:
            return tuple(ImageDataset(x[part], labels[part], 255) for part in parts)
        return tuple(TensorDataset(x[part].float(), labels[part]) for part in parts)


def read(name: str, source: str | Tensor) -> Tensor:
    """The tensor itself, or that of a .npy file."""
    if isinstance(source, Tensor):
        return source.detach().cpu()
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected a tensor or the path of a .npy file, received {str(source)!r}")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: {path} holds no array of numbers in .npy format: {error}") from error
