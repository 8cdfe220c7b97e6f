"""Street View House Numbers as a data module."""

from pathlib import Path

import torch

from fisherkernels.training import splits
from fisherkernels.training.batches import ImageDataset
from fisherkernels.training.data import ImageDataModule


class SVHNDataModule(ImageDataModule):
    """SVHN (Netzer et al., 2011) through torchvision: colour images [3, 32, 32]; 73,257 for training, 26,032 for test,
    ``val_size`` of the 531,131 additional ones for validation, chosen by a fixed permutation.

    Args:
        root: folder that holds ``train_32x32.mat``, ``test_32x32.mat`` and, for ``val_size`` > 0, ``extra_32x32.mat``.
        val_size: validation images; 0 validates on the test set and needs no additional images.
        download: fetch missing files (needs the network).
        batch_size, seed, noise_std: see :class:`InMemoryDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 20_000,
        download: bool = False,
        noise_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, noise_std)
        if val_size < 0:
            raise ValueError(f"val_size: expected an int >= 0, received {val_size}")
        self.root = root
        self.val_size = val_size
        self.download = download

    def prepare_data(self) -> None:
        if self.download:
            for split in ("train", "test", *(("extra",) if self.val_size else ())):
                self._dataset(split, download=True)

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        train_set, test_set = self._images("train"), self._images("test")
        return train_set, self._images("extra", self.val_size) if self.val_size else test_set, test_set

    def _images(self, split: str, count: int | None = None) -> ImageDataset:
        dataset = self._dataset(split)
        images, labels = torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels)
        if count is None:
            return ImageDataset(images.contiguous(), labels, 255)
        if count > len(images):
            raise ValueError(f"val_size: expected at most {len(images)}, the additional images, received {count}")
        chosen, _ = splits.split(len(images), len(images) - count)
        return ImageDataset(images[chosen], labels[chosen], 255)

    def _dataset(self, split: str, **kwargs):
        import torchvision

        try:
            return torchvision.datasets.SVHN(self.root, split, **kwargs)
        except RuntimeError as error:
            path = Path(self.root) / torchvision.datasets.SVHN.split_list[split][1]
            raise FileNotFoundError(
                f"SVHN is not under root={self.root!r}: {path} is missing or damaged ({error}). Put it there, or give "
                "another --data.root, or --data.download true"
            ) from error
