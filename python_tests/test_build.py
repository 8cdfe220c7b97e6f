"""What CMake says and does when it is configured; compiling is left to the installation and .ci/abi.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fisherkernels.ops import backends

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")

needs_sources = pytest.mark.skipif(
    CMAKE is None or not (ROOT / "CMakeLists.txt").exists(), reason="needs cmake and the source tree"
)


def configure(build, **environment):
    command = [CMAKE, "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
    switches = ("FISHERKERNELS_CUDA", "FISHERKERNELS_VECTOR_BITS", "TORCH_CUDA_ARCH_LIST")
    clean = {key: value for key, value in os.environ.items() if key not in switches}
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True)


@needs_sources
@pytest.mark.parametrize("reason", ["FISHERKERNELS_CUDA=0", "no working nvcc found"])
def test_cpu_only_in_one_line(tmp_path, reason):
    if reason == "FISHERKERNELS_CUDA=0":
        result = configure(tmp_path, FISHERKERNELS_CUDA="0")
    else:
        result = configure(tmp_path, CUDACXX=str(tmp_path / "no-such-nvcc"))
        if "has no CUDA" in result.stdout:
            pytest.skip("this torch has no CUDA, which is said first")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stdout.splitlines() if "fisherkernels:" in line]
    assert said == [f"-- fisherkernels: building for CPU only ({reason})"]


@needs_sources
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FISHERKERNELS_CUDA": "1", "CUDACXX": "/none"}, "asks for the CUDA kernels, but no working nvcc found"),
        ({"FISHERKERNELS_CUDA": "yes"}, "FISHERKERNELS_CUDA must be 0, 1 or unset, got 'yes'"),
        ({"FISHERKERNELS_VECTOR_BITS": "64"}, "FISHERKERNELS_VECTOR_BITS must be 128, 256, 512 or unset, got '64'"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "expects entries such as 9.0 or 10.0+PTX, got 'Hopper'"),
    ],
)
def test_wrong_requests_are_explained(tmp_path, environment, message):
    result = configure(tmp_path, **environment)
    if "has no CUDA" in result.stdout:
        pytest.skip("this torch has no CUDA, which is said first")
    assert result.returncode != 0
    assert message in " ".join(result.stderr.split())


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_libraries_keep_no_path_of_the_machine_they_were_built_on(name):
    status = backends()[name]
    if not status.active:
        pytest.skip(status.reason)
    dynamic = subprocess.run(["readelf", "-d", status.path], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert "libcudart" not in dynamic
    needed = subprocess.run(["nm", "-DC", "--undefined-only", status.path], capture_output=True, text=True, check=True)
    assert not [line for line in needed.stdout.splitlines() if " at::" in line or " c10::" in line]
