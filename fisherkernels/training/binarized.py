"""Statically binarised MNIST, and the same with zeros in the majority."""

import torch
from torch import Tensor

from fisherkernels.training.batches import ImageDataset
from fisherkernels.training.data import MNISTDataModule

BINARIZATION_SEED = 2011


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel 1 with the probability that its grey value 0..255 stands for, else 0; uint8."""
    return (torch.rand(images.shape, generator=generator) * 255 < images).to(torch.uint8)


class BinarizedMNISTDataModule(MNISTDataModule):
    """MNIST with every pixel drawn once, 1 with its grey value as the probability (Larochelle and Murray, AISTATS
    2011).

    The draws have a fixed seed of their own: the binary images are the same in every run. The original order is kept:
    the first 50,000 images train, the last 10,000 of the 60,000 validate, 10,000 test.

    Args:
        root, batch_size, download, seed: see :class:`MNISTDataModule`.
        val_size: validation images, the last ones of the training part.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 10_000,
        download: bool = False,
        seed: int = 0,
    ):
        super().__init__(root, batch_size, val_size, download, seed=seed)

    def read(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(BINARIZATION_SEED)
        return tuple((binarize(images, generator), labels) for images, labels in super().read())

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        (images, labels), test = self.read()
        chosen = self._training_images(labels)
        others = torch.ones(len(images), dtype=torch.bool)
        others[chosen] = False
        others[: len(images) - self.val_size] = False
        test_set = ImageDataset(*test, 1)
        val_set = ImageDataset(images[others], labels[others], 1) if self.val_size else test_set
        return ImageDataset(images[chosen], labels[chosen], 1), val_set, test_set

    def _training_images(self, labels: Tensor) -> Tensor:
        """Indices into the training part."""
        return torch.arange(len(labels) - self.val_size)


class ReversedMNISTDataModule(BinarizedMNISTDataModule):
    """Binarised MNIST whose training set is mostly zeros (Zheng et al., "Understanding VAEs in Fisher-Shannon Plane",
    section 5.1): the first 5,800 images of the digit 0 and the first 100 of every other digit, of all 60,000.

    Test images are those of :class:`BinarizedMNISTDataModule`. So are the validation images, but for the zeros among
    them that train: only 4,932 of MNIST's 5,923 zeros are before the last 10,000 images.

    Args:
        root, batch_size, val_size, download, seed: see :class:`BinarizedMNISTDataModule`.
        zeros: training images of the digit 0.
        others: training images of each other digit.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 10_000,
        download: bool = False,
        zeros: int = 5800,
        others: int = 100,
        seed: int = 0,
    ):
        super().__init__(root, batch_size, val_size, download, seed)
        for name, value in (("zeros", zeros), ("others", others)):
            if value < 0:
                raise ValueError(f"{name}: expected an int >= 0, received {value}")
        self.zeros = zeros
        self.others = others

    def _training_images(self, labels: Tensor) -> Tensor:
        chosen = []
        for digit in range(10):
            name, count = ("zeros", self.zeros) if digit == 0 else ("others", self.others)
            found = (labels == digit).nonzero().flatten()
            if count > len(found):
                raise ValueError(
                    f"{name}: expected at most {len(found)}, the images of the digit {digit}, received {count}"
                )
            chosen.append(found[:count])
        return torch.cat(chosen)
