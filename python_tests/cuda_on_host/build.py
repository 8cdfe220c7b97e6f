"""Compiles csrc/cuda for the host, as a CPU library: see cuda_runtime.h beside this file."""

import re
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent


def _closing(text, start):
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError("unbalanced brackets")


def for_the_host(text):
    """kernel<<<grid, block, 0, stream>>>(arguments) becomes a call; the operators register for the CPU."""
    launch = re.compile(r"(\w+(?:<[^<>;]*>)?)\s*<<<((?:[^<>]|<\w+>)*?), 0, launch\.stream>>>(?=\()")
    while match := launch.search(text):
        end = _closing(text, match.end())
        call = f"host::launch({match[2]}, [&] {{ {match[1]}{text[match.end() : end]}; }})"
        text = text[: match.start()] + call + text[end:]
    text = text.replace("STD_CUDA_KERNEL_LAUNCH_CHECK();", "")
    text = text.replace("LIBRARY_IMPL(fisherkernels, CUDA, m)", "LIBRARY_IMPL(fisherkernels, CPU, m)")
    return re.sub(r"struct Launch \{.*?\n\};", "struct Launch { explicit Launch(const Tensor&) {} };", text, flags=re.S)


def build(directory):
    """Leaves libfisherkernels_cpu.so, made of the CUDA sources, in `directory`."""
    sources = directory / "csrc"
    shutil.copytree(CSRC / "math", sources / "math")
    (sources / "cuda").mkdir()
    for path in (CSRC / "cuda").iterdir():
        (sources / "cuda" / path.name).write_text(for_the_host(path.read_text()))
    everything = directory / "everything.cpp"
    everything.write_text("".join(f'#include "cuda/{path.name}"\n' for path in sorted((CSRC / "cuda").glob("*.cu"))))
    command = ["c++", "-shared", "-fPIC", "-O1", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [f"-I{HERE}", f"-I{sources}", "-isystem", str(TORCH / "include"), str(everything)]
    command += ["-o", str(directory / "libfisherkernels_cpu.so"), str(TORCH / "lib" / "libtorch_cpu.so")]
    subprocess.run(command, check=True)
