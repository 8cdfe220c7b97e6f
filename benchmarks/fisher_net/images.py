"""Images to train the benchmark's nets on."""

import os
from pathlib import Path

import torch
from torch.nn import functional as F

DATA_ROOT = "FISHERKERNELS_BENCHMARK_DATA"  # an environment variable, so that child processes see it too
SIDE = 28


def source():
    """ "MNIST" where torchvision's files are under the data root, else "scikit-learn's digits, upscaled"."""
    raw = _root() / "MNIST" / "raw"
    return "MNIST" if (raw / "train-images-idx3-ubyte").is_file() else "scikit-learn's digits, upscaled"


def load():
    """[n, 784], float32 in [0, 1]."""
    if source() == "MNIST":
        from torchvision.datasets import MNIST

        return MNIST(_root(), train=True).data.float().div_(255).flatten(1)
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images).float().div_(16)[:, None]  # [n, 1, 8, 8]
    return F.interpolate(small, (SIDE, SIDE), mode="bilinear").flatten(1)


def _root():
    return Path(os.environ.get(DATA_ROOT, "data"))
