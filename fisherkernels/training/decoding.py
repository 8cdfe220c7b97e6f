"""Image files decoded into an array, by several threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor


def decode_into(images: np.ndarray, load: Callable[[int], Tensor]) -> None:
    """images[i] = load(i), uint8 [N, C, H, W]; ``load`` is called by several threads."""

    def write(index: int) -> None:
        images[index] = load(index).numpy()

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter
        for _ in pool.map(write, range(len(images))):
            pass


def square(size: int, crop: int | None = None) -> Callable[[object], Tensor]:
    """A picture's middle ``crop`` x ``crop`` pixels (its largest square without it), resized: uint8 [C, size, size]."""
    from torchvision.transforms.v2 import functional as F

    def transform(picture) -> Tensor:
        image = F.pil_to_tensor(picture)
        image = F.center_crop(image, [crop or min(image.shape[-2:])] * 2)
        return F.resize(image, [size, size], antialias=True)

    return transform
