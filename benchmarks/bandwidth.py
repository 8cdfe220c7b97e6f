"""The memory limit: what a plain copy reaches on this machine."""

import torch

from .timing import interleave

MEBIBYTE = 1 << 20
SIZES = {"cpu": (64, 128, 256), "cuda": (256, 512, 1024)}  # MiB, beyond the caches


def copy_bandwidth(device, sizes=None, rounds=10):
    """Bytes read plus bytes written per second, the largest of several sizes (in MiB) and rounds."""
    best = 0.0
    for size in sizes or SIZES[device.type]:
        size *= MEBIBYTE
        source = torch.rand(size // 4, device=device)
        target = torch.empty_like(source)
        times = interleave({"copy": target.copy_}, lambda source=source: (source,), rounds, 3, device)["copy"]
        best = max(best, 2 * size / min(times))
    return best
