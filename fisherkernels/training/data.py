"""Data modules. Images are float32 in [0, 1], shape [N, C, H, W]; batches are (images, labels).

After ``setup()`` each has ``train_set``, ``val_set`` and ``test_set``. The split does not depend on the seed.
"""

import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from fisherkernels.training import splits
from fisherkernels.training.batches import BatchLoader, ImageDataset


class InMemoryDataModule(pl.LightningDataModule):
    """Training, validation and test batches of three data sets held in memory; subclasses define ``load``.

    Args:
        batch_size: samples per batch and process.
        seed: the batch order of an epoch is a function of (seed, epoch).
        noise_std: standard deviation of Gaussian noise added to every value of x, drawn anew for every training batch
            as a function of (seed, epoch, batch); the noise of validation and test batches is always the same.
    """

    class_names: dict[int, str] = {}  # label -> name, where a label is not its own name

    def __init__(self, batch_size: int = 128, seed: int = 0, noise_std: float = 0.0):
        super().__init__()
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std: expected a finite number >= 0, received {noise_std}")
        self.batch_size = batch_size
        self.seed = seed
        self.noise_std = noise_std
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None
        self.test_set: Dataset | None = None

    def load(self) -> tuple[Dataset, Dataset, Dataset]:
        """The training, validation and test sets."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is None:
            self.train_set, self.val_set, self.test_set = self.load()

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _position(self) -> tuple[int, int]:
        loop = self.trainer.fit_loop
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready

    def train_dataloader(self) -> BatchLoader:
        position = None if self.trainer is None else self._position
        return BatchLoader(
            self.train_set,
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            position=position,
            noise_std=self.noise_std,
            **self._ranks(),
        )

    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self.val_set, self.batch_size, noise_std=self.noise_std, **self._ranks())

    def test_dataloader(self) -> BatchLoader:
        return BatchLoader(self.test_set, self.batch_size, noise_std=self.noise_std, **self._ranks())

    def predict_dataloader(self) -> BatchLoader:
        return self.test_dataloader()


class ImageDataModule(InMemoryDataModule):
    """Batches of three :class:`ImageDataset`; arguments as for :class:`InMemoryDataModule`."""


def _split(images: Tensor, labels: Tensor, max_value: int, *sizes: int) -> list[ImageDataset]:
    """Cuts a fixed random permutation into sets of the given sizes; the first takes the rest."""
    return [ImageDataset(images[part], labels[part], max_value) for part in splits.split(len(images), *sizes)]


class DigitsDataModule(ImageDataModule):
    """scikit-learn's bundled handwritten digits (UCI): 1,797 images [1, 8, 8], 16 grey levels; no file is needed.

    Fixed split: 1,297 training, 200 validation, 300 test images.
    """

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
        return tuple(_split(images, torch.from_numpy(digits.target), 16, 200, 300))


class MNISTDataModule(ImageDataModule):
    """MNIST through torchvision: images [1, 28, 28]; 60,000 for training less ``val_size`` held out; 10,000 for test.

    ``image_size=32, noise_std=0.1`` gives the images of Wenliang, "On the failure of variational score matching for VAE
    models", section B.2: zeros around them, noise on every pixel (some then lie outside [0, 1]).

    Args:
        root: folder that holds ``MNIST/raw/`` with the four uncompressed IDX files.
        val_size: validation images, cut from the training images by a fixed permutation. 0 leaves all of them for
            training and validates on the test set: for curves of the test error; ``best.ckpt`` has then seen it.
        download: fetch missing files (needs the network).
        image_size: height and width, >= 28: zeros are added on all sides.
        noise_std: of the noise added to every pixel, see :class:`InMemoryDataModule`.
    """

    dataset_name = "MNIST"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 5000,
        download: bool = False,
        image_size: int = 28,
        noise_std: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed, noise_std)
        if val_size < 0:
            raise ValueError(f"val_size: expected an int >= 0, received {val_size}")
        if image_size < 28:
            raise ValueError(f"image_size: expected an int >= 28, received {image_size}")
        self.root = root
        self.val_size = val_size
        self.download = download
        self.image_size = image_size

    @property
    def files(self) -> list[Path]:
        """The files torchvision reads."""
        folder = Path(self.root) / self.dataset_name / "raw"
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return [folder / f"{part}-{kind}" for part in ("train", "t10k") for kind in kinds]

    def prepare_data(self) -> None:
        if self.download:
            self._dataset(train=True, download=True)

    def _dataset(self, **kwargs):
        import torchvision

        return getattr(torchvision.datasets, self.dataset_name)(self.root, **kwargs)

    def read(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Images [N, 1, S, S] of 0..255 and labels [N], of the training and of the test part."""
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.dataset_name} is not under root={self.root!r}: missing {', '.join(missing)} (uncompressed IDX"
                " files). Put them there, or give another --data.root, or --data.download true"
            )
        parts = (self._dataset(train=True), self._dataset(train=False))
        if self.val_size >= len(parts[0].data):
            limit = f"{len(parts[0].data)}, the number of training images"
            raise ValueError(f"val_size: expected an int below {limit}, received {self.val_size}")
        return tuple((self._pad(part.data[:, None]), part.targets) for part in parts)

    def _pad(self, images: Tensor) -> Tensor:
        extra = self.image_size - images.shape[-1]
        before, after = extra // 2, extra - extra // 2
        return F.pad(images, (before, after, before, after))

    def load(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        (images, labels), test = self.read()
        train_set, val_set = _split(images, labels, 255, self.val_size)
        test_set = ImageDataset(*test, 255)
        return train_set, val_set if self.val_size else test_set, test_set


class FashionMNISTDataModule(MNISTDataModule):
    """FashionMNIST; everything as in :class:`MNISTDataModule`, in ``root/FashionMNIST/raw/``."""

    dataset_name = "FashionMNIST"
    class_names = dict(
        enumerate(
            ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
        )
    )
