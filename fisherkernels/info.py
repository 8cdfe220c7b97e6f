"""What this installation is: versions, backends, architectures. Shown by ``fisherkernels info``."""

from __future__ import annotations

import platform
from typing import Any

import torch

import fisherkernels
from fisherkernels.ops._library import backends

try:
    from fisherkernels import _native
except ImportError:  # a source tree that was never built
    _native = None


def info() -> dict[str, Any]:
    """Facts about this installation and this machine.

    Returns:
        A dictionary with the keys

        - ``versions``: ``fisherkernels``, ``python``, ``torch``, ``torch_cuda`` (the CUDA version torch was built
          with, or None), and, where ``fisherkernels._native`` was built, ``built_with_torch``, ``compiler`` and
          ``cuda_toolkit`` (None in a CPU-only build);
        - ``backends``: name (``cpu``, ``cuda``) -> ``active``, ``path`` and, when inactive, the ``reason``; an
          inactive backend's operators run on their PyTorch twins;
        - ``cuda_archs``: the compute capabilities the CUDA kernels were compiled for, as ``TORCH_CUDA_ARCH_LIST``
          writes them;
        - ``devices``: for each CUDA device its ``name``, ``capability`` and whether the kernels run there
          (``supported``);
        - ``vector_isa``: the vector instructions the CPU kernels picked when they were loaded (``AVX-512``, ``AVX2``
          or ``baseline``), None when the CPU backend is inactive;
        - ``threads``: threads used by one CPU operator.
    """
    built = _native.build_facts() if _native is not None else {}
    statuses = {
        name: {"active": status.active, "path": str(status.path or "") or None, "reason": status.reason or None}
        for name, status in backends().items()
    }
    if statuses["cuda"]["reason"] == "no such file" and built.get("cuda_missing"):
        statuses["cuda"]["reason"] = f"not built: {built['cuda_missing']}"
    archs = built.get("cuda_archs", [])
    versions = {
        "fisherkernels": fisherkernels.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
    }
    if built:
        versions["built_with_torch"] = built["torch"]
        versions["compiler"] = built["compiler"]
        versions["cuda_toolkit"] = built["cuda_toolkit"] or None
    return {
        "versions": versions,
        "backends": statuses,
        "cuda_archs": archs,
        "devices": _devices(archs),
        "vector_isa": _native.vector_isa() if _native is not None and statuses["cpu"]["active"] else None,
        "threads": torch.get_num_threads(),
    }


def _devices(archs: list[str]) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        found.append(
            {
                "name": torch.cuda.get_device_name(index),
                "capability": f"{capability[0]}.{capability[1]}",
                "supported": any(runs_on(arch, capability) for arch in archs),
            }
        )
    return found


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for ``arch`` runs on a device of this compute capability.

    Machine code for X.Y runs on X.Z with Z >= Y; ``+PTX`` runs on everything from X.Y on; an architecture-specific
    entry such as ``9.0a`` runs on 9.0 alone.
    """
    version, _, ptx = arch.partition("+")
    major, minor = version.split(".")
    if not minor.isdigit():
        return (int(major), int(minor[:-1])) == capability
    built_for = (int(major), int(minor))
    same_major = built_for[0] == capability[0] and built_for[1] <= capability[1]
    return same_major or (bool(ptx) and built_for <= capability)


def render(facts: dict[str, Any] | None = None) -> str:
    """The facts of :func:`info` as aligned lines of text."""
    facts = info() if facts is None else facts
    versions = facts["versions"]
    rows = [
        ("fisherkernels", versions["fisherkernels"]),
        ("Python", versions["python"]),
        ("torch", f"{versions['torch']} ({_with_cuda(versions['torch_cuda'])})"),
    ]
    if "compiler" in versions:
        rows.append(("built with", f"torch {versions['built_with_torch']}, {versions['compiler']}"))
    else:
        rows.append(("built with", "nothing: fisherkernels._native is missing"))
    rows.append(("CUDA toolkit", versions.get("cuda_toolkit") or "none"))
    rows.append(("CUDA archs", ", ".join(facts["cuda_archs"]) or "none"))
    for name, status in facts["backends"].items():
        if status["active"]:
            rows.append((f"backend {name}", f"active: {status['path']}"))
        else:
            rows.append((f"backend {name}", f"PyTorch twin: {status['reason']}"))
    for device in facts["devices"]:
        support = "supported" if device["supported"] else "no kernels for it in this build"
        rows.append(("device", f"{device['name']}, compute capability {device['capability']}, {support}"))
    if facts["cuda_archs"] and not facts["devices"]:
        rows.append(("device", "no CUDA device"))
    rows.append(("vector ISA", facts["vector_isa"] or "torch's own"))
    rows.append(("threads", str(facts["threads"])))
    return "\n".join(f"{key:<14} {value}" for key, value in rows)


def _with_cuda(version: str | None) -> str:
    return f"CUDA {version}" if version else "no CUDA"
