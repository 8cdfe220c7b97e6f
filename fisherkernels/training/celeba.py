"""CelebA as a data module."""

import os
from pathlib import Path

import numpy as np
import torch

from fisherkernels.training.batches import ImageDataset
from fisherkernels.training.data import ImageDataModule
from fisherkernels.training.decoding import decode_into, square

SPLITS = ("train", "valid", "test")
FACE = 148  # side of the square cut from the middle of the 178 x 218 images


class CelebADataModule(ImageDataModule):
    """CelebA (Liu et al., ICCV 2015) through torchvision: colour images [3, S, S], the data set's own three parts.

    The middle 148 x 148 pixels, resized. The first run writes them to ``root/celeba/SPLIT_S.npy`` (2.5 GB for S = 64),
    from where every run maps them into memory. Labels are 0 and 1, of one attribute.

    Args:
        root: folder that holds ``celeba/`` with ``img_align_celeba/`` and the annotation files.
        image_size: S.
        attribute: name of the attribute that gives the labels.
        download: fetch missing files (needs the network and gdown).
        batch_size, seed, noise_std: see :class:`InMemoryDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        image_size: int = 64,
        attribute: str = "Smiling",
        download: bool = False,
        noise_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, noise_std)
        if image_size < 1:
            raise ValueError(f"image_size: expected an int >= 1, received {image_size}")
        self.root = root
        self.image_size = image_size
        self.attribute = attribute
        self.download = download

    def prepare_data(self) -> None:
        for split in SPLITS:
            if not self._resized(split).is_file():
                self._resize(self._dataset(split, download=self.download), self._resized(split))

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        return tuple(self._load(split) for split in SPLITS)

    def _load(self, split: str) -> ImageDataset:
        dataset = self._dataset(split)
        if self.attribute not in dataset.attr_names:
            names = ", ".join(name for name in dataset.attr_names if name)
            raise ValueError(f"attribute: expected one of {names}, received {self.attribute!r}")
        if not self._resized(split).is_file():
            self.prepare_data()
        # Copy-on-write: torch accepts no read-only array.
        images = torch.from_numpy(np.load(self._resized(split), mmap_mode="c"))
        return ImageDataset(images, dataset.attr[:, dataset.attr_names.index(self.attribute)], 255)

    def _resized(self, split: str) -> Path:
        return Path(self.root) / "celeba" / f"{split}_{self.image_size}.npy"

    def _dataset(self, split: str, **kwargs):
        import torchvision

        transform = square(self.image_size, FACE)
        try:
            return torchvision.datasets.CelebA(self.root, split, transform=transform, **kwargs)
        except RuntimeError as error:
            folder = Path(self.root) / "celeba"
            raise FileNotFoundError(
                f"CelebA is not under root={self.root!r}: expected {folder}/img_align_celeba/ and the files "
                f"identity_CelebA.txt, list_attr_celeba.txt, list_bbox_celeba.txt, list_eval_partition.txt and "
                f"list_landmarks_align_celeba.txt ({error}). Put them there, or give another --data.root, or "
                "--data.download true"
            ) from error

    def _resize(self, dataset, path: Path) -> None:
        """Writes the images [N, 3, S, S]; they take the name ``path`` when they are complete."""
        temporary = path.with_suffix(".npy.tmp")
        shape = (len(dataset), 3, self.image_size, self.image_size)
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        decode_into(images, lambda index: dataset[index][0])
        images.flush()
        os.replace(temporary, path)
