import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs ucontext")
def test_cuda_kernels_pass_the_operator_tests_on_the_host(tmp_path):
    spec = importlib.util.spec_from_file_location("cuda_on_host_build", HERE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"FISHERKERNELS_LIBRARY_DIR": str(tmp_path), "FISHERKERNELS_REQUIRE_NATIVE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE.parent / "ops")]
    command += ["-k", "native-cpu and not compile"]
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
