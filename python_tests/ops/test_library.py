"""Loading of the native libraries, and the machine code in them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fisherkernels import ops

ONLY_FULL_PRECISION = [
    "activate",
    "activate_backward",
    "activation_tangents_items",
    "activation_tangents_backward_items",
    "cg_update_rows",
    "factor_solve_samples",
    "metric_solve_chunks",
    "metric_solve_samples",
    "multiply",
    "multiply_rows",
    "pointwise",
]
KERNELS = [
    *ONLY_FULL_PRECISION,
    "gaussian_information_rows",
    "gaussian_information_backward_rows",
    "gaussian_score_rows",
    "gaussian_score_backward_chunks",
    "half_squared_norm_rows",
    "half_squared_norm_backward_rows",
    "posterior_residual_rows",
    "posterior_residual_backward_chunks",
    "score_moments_rows",
    "score_moments_backward_rows",
    "stability_cotangent_rows",
    "stability_cotangent_backward_rows",
]


def run(code, **environment):
    """Standard output and error of Python code in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return process.stdout + process.stderr


@pytest.fixture
def reload(monkeypatch):
    """reload(VARIABLE=value, ...): the CPU backend's status when the libraries are looked for anew."""

    def reload(**environment):
        for name in ("FISHERKERNELS_BACKEND", "FISHERKERNELS_LIBRARY_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ops.load_libraries()
        return ops.backends()["cpu"]

    yield reload
    monkeypatch.undo()
    ops.load_libraries()


def test_twins_run_where_no_library_is_loaded():
    out = run(
        "import torch; from fisherkernels import ops\n"
        "print(ops.half_squared_norm(torch.ones(2, 3)).tolist(), ops.backends()['cpu'].active)",
        FISHERKERNELS_BACKEND="torch",
    )
    assert "[1.5, 1.5] False" in out


def test_missing_broken_and_unwanted_libraries_are_reported(reload, tmp_path):
    status = reload(FISHERKERNELS_LIBRARY_DIR=str(tmp_path))
    assert not status.active and status.path.startswith(str(tmp_path)) and status.reason == "no such file"
    (tmp_path / "libfisherkernels_cpu.so").write_bytes(b"not a library")
    assert "cannot be loaded" in reload(FISHERKERNELS_LIBRARY_DIR=str(tmp_path)).reason
    assert reload(FISHERKERNELS_BACKEND="torch").reason == "FISHERKERNELS_BACKEND=torch"
    with pytest.raises(ValueError, match="FISHERKERNELS_BACKEND: expected 'torch' or 'native', got 'numpy'"):
        reload(FISHERKERNELS_BACKEND="numpy")


def native_library():
    status = ops.backends()["cpu"]
    if not status.active:
        if os.environ.get("FISHERKERNELS_REQUIRE_NATIVE") == "1":
            pytest.fail(f"no native cpu library at {status.path}: {status.reason}")
        pytest.skip("no native CPU library")
    return Path(status.path)


def test_twins_can_be_chosen_for_a_while():
    native_library()
    t = torch.randn(3, 1001)
    native = ops.half_squared_norm(t)
    with ops.use_twins():
        assert torch.equal(ops.half_squared_norm(t), t.square().sum(1) / 2)
    assert torch.equal(ops.half_squared_norm(t), native)


def test_outputs_without_the_cache_of_buffers():
    """The switch for the cache of large buffers leaves the results as they are."""
    native_library()
    code = "import torch; from fisherkernels import ops; x = torch.ones(1024, 1024)\n"
    code += "for _ in range(3): r = ops.gaussian_score(x, 3 * x, 1.0)[1]\n"
    code += "print(r.sum().item(), r.untyped_storage().resizable())"
    assert f"{-2.0 * 2**20} True" in run(code, FISHERKERNELS_CPU_CACHE_MB="0")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_every_clone_uses_its_vectors():
    """Packed arithmetic in 256-bit registers in each AVX2 clone, in 512-bit registers in each AVX-512 clone."""
    library = native_library()
    assembly = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    packed = r"\bv(?:fn?m(?:add|sub)|mul|add|sub)\w*p[sd]\s[^\n]*%"
    counts = {}
    for function in assembly.split("\n\n"):
        header = re.match(r"\s*[0-9a-f]+ <(.*)>:", function)
        clone = header and re.search(r"(\w+)\(.*\[clone \.arch_x86_64_(v[34])\]", header[1])
        if clone and clone[1] in KERNELS:
            register = "ymm" if clone[2] == "v3" else "zmm"
            counts.setdefault((clone[1], clone[2]), []).append(len(re.findall(packed + register, function)))
    from fisherkernels import _native

    bits = _native.build_facts()["vector_bits"]
    levels = [level for level, needed in (("v3", 256), ("v4", 512)) if bits >= needed]
    assert {level for _, level in counts} == set(levels)
    for kernel in KERNELS:
        for level in levels:
            dtypes = 2 if kernel in ONLY_FULL_PRECISION else 3
            assert len(counts[kernel, level]) == dtypes, f"{kernel} {level}: a clone for each of {dtypes} dtypes"
            assert min(counts[kernel, level]) > 0, f"{kernel} {level}: no packed arithmetic"
