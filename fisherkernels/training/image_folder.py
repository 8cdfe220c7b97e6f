"""A folder of image files as a data module."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fisherkernels.checks import check_choice
from fisherkernels.training import splits
from fisherkernels.training.batches import ImageDataset
from fisherkernels.training.data import ImageDataModule
from fisherkernels.training.decoding import decode_into, square

PARTS = ("train", "val", "test")
MODES = {1: "L", 3: "RGB"}
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolderDataModule(ImageDataModule):
    """Your own image files, of any sizes: [C, S, S], the largest square in the middle of each, resized.

    Where ``root`` holds folders ``train``, ``val`` and ``test``, these are the parts; else ``val_fraction`` and
    ``test_fraction`` of all images, chosen by a fixed permutation, validate and test. Images directly in a part have
    the label 0; those below its subfolders have the subfolder's number, in alphabetical order. Files are read whenever
    a run starts, by several threads, and kept as uint8: S = 64 in colour takes 12 kB each.

    Args:
        root: the folder; files in folders below it are found too.
        image_size: S.
        channels: C, 3 (colour) or 1 (grey levels).
        val_fraction, test_fraction: of the images, without folders for the parts.
        batch_size, seed, noise_std: see :class:`InMemoryDataModule`.

    Raises:
        FileNotFoundError: no such folder, no images, or some parts' folders without the others.
        OSError: a file that is no readable image, by name.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        image_size: int = 64,
        channels: int = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        noise_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, noise_std)
        if image_size < 1:
            raise ValueError(f"image_size: expected an int >= 1, received {image_size}")
        check_choice("channels", channels, tuple(MODES))
        splits.check_fractions(val_fraction, test_fraction)
        self.root = root
        self.image_size = image_size
        self.channels = channels
        self.fractions = (val_fraction, test_fraction)

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"root: expected a folder of images, received {self.root!r}, which is none")
        folders = [root / part for part in PARTS]
        there = [folder.is_dir() for folder in folders]
        if any(there) and not all(there):
            missing = ", ".join(part for part, found in zip(PARTS, there, strict=True) if not found)
            raise FileNotFoundError(f"root: expected train, val and test in {self.root!r}, or none; missing {missing}")
        found = [self._find(folder) for folder in (folders if all(there) else [root])]
        names = sorted({name for _, labels in found for name in labels if name})
        self.class_names = dict(enumerate(names))
        sets = [
            ImageDataset(self._decode(paths), torch.tensor([names.index(name) if name else 0 for name in labels]), 255)
            for paths, labels in found
        ]
        if all(there):
            return tuple(sets)
        parts = splits.split_fractions(len(sets[0]), *self.fractions)
        return tuple(ImageDataset(sets[0].raw[part], sets[0].labels[part], 255) for part in parts)

    def _find(self, folder: Path) -> tuple[list[Path], list[str | None]]:
        """The image files under a folder, sorted, and the subfolder that each is in."""
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not paths:
            raise FileNotFoundError(f"root: expected images ({', '.join(SUFFIXES)}) in {folder}, found none")
        below = [path.relative_to(folder).parts for path in paths]
        return paths, [parts[0] if len(parts) > 1 else None for parts in below]

    def _decode(self, paths: list[Path]) -> Tensor:
        from PIL import Image

        transform, mode = square(self.image_size), MODES[self.channels]

        def load(index: int) -> Tensor:
            try:
                with Image.open(paths[index]) as picture:
                    return transform(picture.convert(mode))
            except OSError as error:
                raise OSError(f"{paths[index]} is no readable image: {error}") from error

        images = np.empty((len(paths), self.channels, self.image_size, self.image_size), np.uint8)
        decode_into(images, load)
        return torch.from_numpy(images)
