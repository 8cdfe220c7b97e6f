"""Images held in memory, and the loader that cuts them into batches."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fisherkernels.training import seeds

Position = Callable[[], tuple[int, int]]


def unpack(batch) -> tuple[Tensor, Tensor | None]:
    """(x, labels) of a batch: x alone, or x first and labels, if there are any, second.

    Raises TypeError for a batch of another form.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 else None
    received = f"a {type(batch).__name__}"
    if isinstance(batch, dict):
        received += f" of {', '.join(map(str, batch))}"
    raise TypeError(f"batch: expected x [N, ...], or a tuple or list that starts with it, received {received}")


class ImageDataset(Dataset):
    """Images [N, C, H, W] stored as integers 0..``max_value`` and read as float32 in [0, 1], with labels [N].

    ``dataset[i]`` takes an int, a slice or a tensor of indices; ``dataset[:]`` is the whole set.
    """

    def __init__(self, images: Tensor, labels: Tensor, max_value: int):
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                "images must be [N, C, H, W] with one label each; "
                f"got images {list(images.shape)} and labels {list(labels.shape)}"
            )
        self.raw = images
        self.labels = labels
        self.max_value = max_value

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        return self.raw[index].to(torch.float32) / self.max_value, self.labels[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.raw.shape[1:])


class BatchLoader:
    """Batches of a data set in memory, tuples as its items are, in an order that is a function of (seed, epoch).

    Args:
        dataset: with a length, and giving (x, labels), or (x,), for a tensor of indices, as :class:`ImageDataset` does.
        batch_size: samples per batch and rank.
        shuffle: draw a new permutation each epoch; incomplete batches are then left out, so that every training batch
            has the same size on every rank. Without it: index order, the last batch may be short.
        rank, world_size: this loader yields every ``world_size``-th sample of the order, starting at ``rank``.
        position: called when the first batch of an iteration is asked for; returns (epoch, number of batches of that
            epoch already used): so a run that was killed continues in mid-epoch. Without it, epochs are counted here.
        noise_std: of Gaussian noise added to x, with ``shuffle`` a function of (seed, epoch, batch, rank), without it
            the same in every epoch and for every seed.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
        noise_std: float = 0.0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected an int >= 1, received {batch_size}")
        if shuffle and len(dataset) // world_size < batch_size:
            raise ValueError(
                f"batch_size {batch_size} is more than the {len(dataset) // world_size} training samples of one rank"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.noise_std = noise_std
        self._position = position
        self._epoch = 0

    def __len__(self) -> int:
        if self.shuffle:
            return len(self.dataset) // self.world_size // self.batch_size
        return math.ceil(len(range(self.rank, len(self.dataset), self.world_size)) / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The sample indices of this rank in the given epoch."""
        n = len(self.dataset)
        indices = torch.arange(n)
        if self.shuffle:
            indices = torch.randperm(n, generator=seeds.generator(seeds.ORDER, self.seed, epoch))
        return indices[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self._position is None:
            epoch, start = self._epoch, 0
            self._epoch += 1
        else:
            epoch, start = self._position()
        order = self.order(epoch)
        for batch in range(start, len(self)):
            x, *labels = self.dataset[order[batch * self.batch_size : (batch + 1) * self.batch_size]]
            if self.noise_std:
                x = x + self.noise_std * self._noise(x, epoch, batch)
            yield x, *labels

    def _noise(self, x: Tensor, epoch: int, batch: int) -> Tensor:
        seed, epoch = (self.seed, epoch) if self.shuffle else (0, 0)
        stream = seeds.DATA_NOISE, int(self.shuffle), seed, epoch, batch, self.rank
        return torch.randn(x.shape, generator=seeds.generator(*stream))

    def state_dict(self) -> dict[str, int]:
        """What the order depends on. Where to continue is not stored here: ``position`` knows."""
        return {"seed": self.seed, "batch_size": self.batch_size, "world_size": self.world_size,
                "samples": len(self.dataset)}  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ValueError when the batches of this loader are not those of the run being resumed."""
        for name, value in self.state_dict().items():
            if state[name] != value:
                raise ValueError(
                    f"cannot resume: the checkpoint was trained with {name}={state[name]}, this run has {name}={value}"
                )
