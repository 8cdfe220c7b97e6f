"""Peak memory of one call: what it needs beyond inputs and parameters.

Timings are taken with freed memory kept for the next call, peaks with freed memory given back at once: so for all
contenders alike, our kernels' own cache of outputs included.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from .case import draw

ROOT = Path(__file__).resolve().parents[1]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def keep_freed_memory():
    """glibc keeps freed blocks for the next call instead of giving them back; True if it could be asked to.

    By default a large block is unmapped when freed and faulted in page by page when asked for again, at a tenth
    of the memory's bandwidth: page faults would be timed.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))


def peak_on_cuda(run, arguments):
    run(*arguments)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(*arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(case, contender):
    """Bytes, measured in a fresh process, or None where the system does not say."""
    command = [sys.executable, "-m", "benchmarks", "memory", case, contender]
    environment = os.environ | {"FISHERKERNELS_CPU_CACHE_MB": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def peak_in_this_process(case, contender, calls=2):
    """The high-water mark of resident memory during `calls` calls, less what was resident before them."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # blocks above 64 KiB go back to the system when freed
    device = torch.device("cpu")
    run = contender.build(device, torch.float32)
    arguments = draw(case, torch.Generator().manual_seed(0), device, torch.float32)
    for _ in range(2):  # compiles, and lets libraries take their scratch memory
        run(*arguments)
    gc.collect()
    if libc is not None:
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmRSS")
        for _ in range(calls):
            run(*arguments)
        return max(_status("VmHWM") - before, 0)
    except OSError:
        return None


def _status(field):
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024


def _glibc():
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
