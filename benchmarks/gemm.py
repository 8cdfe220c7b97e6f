"""The arithmetic limit: what a plain float32 matrix product reaches on this machine."""

import torch

from .timing import interleave

SIZES = {"cpu": (768, 1536, 2304), "cuda": (4096, 8192)}


def gemm_rate(device, sizes=None, rounds=10):
    """Multiplications plus additions per second, the largest of several square sizes and rounds."""
    best = 0.0
    for size in sizes or SIZES[device.type]:
        a, b = (torch.rand(size, size, device=device) for _ in range(2))
        out = torch.empty_like(a)
        multiply = lambda a, b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        times = interleave({"gemm": multiply}, lambda a=a, b=b: (a, b), rounds, 3, device)["gemm"]
        best = max(best, 2 * size**3 / min(times))
    return best
