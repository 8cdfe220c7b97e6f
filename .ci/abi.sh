#!/usr/bin/env bash
# Proves that one wheel serves every torch from 2.10 on, and that both kinds of build work:
#   1. builds a source distribution, and from it the wheel in isolation (CPU and CUDA kernels where nvcc is found);
#   2. runs the operators' tests from the installed wheel, outside the source tree, under the torch it was built with;
#   3. the same under torch 2.13.0's CPU build;
#   4. runs the package with its libraries removed: everything on the PyTorch twins;
#   5. builds and installs for CPU only, against torch 2.13.0, with the kernels for any x86-64 processor alone, then with
#      those for AVX2 too, and runs the operators' tests.
# Needs 15 GB of disk while it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet install
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
unset FISHERKERNELS_LIBRARY_DIR FISHERKERNELS_BACKEND PYTHONPATH

say() { printf -- '--- %s (%s)\n' "$1" "$(date -u +%H:%M:%S)"; }

environment() { # DIRECTORY PACKAGE...
    "$python" -m venv "$1"
    "$1/bin/pip" install --quiet numpy pytest pytest-xdist hypothesis "${@:2}"
}

# Which backends must be active follows from what was built and from what torch supports.
assert_native() { # ENVIRONMENT
    (cd "$work" && "$1/bin/python" - "$1" <<'PY')
import sys
import torch
from fisherkernels import _native, info
from fisherkernels.ops import backends

print(info.render())
expected = {"cpu"} | ({"cuda"} & set(_native.build_facts()["libraries"]) if torch.version.cuda else set())
active = {name for name, status in backends().items() if status.active}
outside = [status.path for name, status in backends().items() if name in active and sys.argv[1] not in status.path]
if active != expected or outside:
    raise SystemExit(f"expected {expected} to be active from {sys.argv[1]}, got {backends()}")
PY
}

op_tests() { # ENVIRONMENT
    rm -rf "$work/tests"
    mkdir "$work/tests"
    cp -r python_tests/ops python_tests/conftest.py "$work/tests"
    (cd "$work/tests" && FISHERKERNELS_REQUIRE_NATIVE=1 "$1/bin/python" -m pytest -q -n 2 -p no:cacheprovider ops)
}

say "wheel, built in isolation"
wheel=$(.ci/build_wheel.sh "$work/build")
libraries=$("$python" -m zipfile --list "$wheel" | grep -E '\.so ')
echo "$libraries"
if command -v nvcc >/dev/null && [[ $libraries != *libfisherkernels_cuda* ]]; then
    echo ".ci/abi.sh: nvcc was found, yet the wheel has no CUDA library" >&2
    exit 1
fi
built_with=$("$python" - "$wheel" "$work" <<'PY'
import glob, importlib.util, sys, zipfile
zipfile.ZipFile(sys.argv[1]).extractall(f"{sys.argv[2]}/unpacked")
spec = importlib.util.spec_from_file_location("_native", glob.glob(f"{sys.argv[2]}/unpacked/fisherkernels/_native*")[0])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
print(native.build_facts()["torch"])
PY
)

say "torch $built_with, with which it was built"
environment "$work/same" "torch==$built_with" "$wheel"
assert_native "$work/same"
op_tests "$work/same"
rm -rf "$work/same"

say "torch 2.13.0, CPU build"
environment "$work/older" torch==2.13.0 "$wheel" cmake ninja pybind11 setuptools wheel
assert_native "$work/older"
op_tests "$work/older"

say "no library at all"
package=$(cd "$work" && "$work/older/bin/python" -c 'import fisherkernels; print(fisherkernels.__path__[0])')
rm -rf "$package/lib" "$package"/_native*
(cd "$work" && "$work/older/bin/python" - <<'PY')
import torch
import fisherkernels as fk
from fisherkernels import info, ops

print(info.render())
if any(status.active for status in ops.backends().values()):
    raise SystemExit(f"expected no active backend, got {ops.backends()}")
x, mean = torch.randn(3, 5), torch.randn(6, 5, requires_grad=True)
value, residual = ops.gaussian_score(x, mean, 0.5)
value.sum().backward()
torch.testing.assert_close(mean.grad, -residual / 0.5)
PY

for bits in 128 256; do
    say "CPU only, vectors of at most $bits bits, on request"
    FISHERKERNELS_CUDA=0 FISHERKERNELS_VECTOR_BITS=$bits \
        "$work/older/bin/pip" install --verbose --force-reinstall --no-deps --no-build-isolation . \
        >"$work/cpu.log" 2>&1 || { cat "$work/cpu.log"; exit 1; }
    grep 'building for CPU only' "$work/cpu.log"
    assert_native "$work/older"
    if compgen -G "$package/lib/*cuda*" >/dev/null; then
        echo ".ci/abi.sh: FISHERKERNELS_CUDA=0 installed a CUDA library" >&2
        exit 1
    fi
    op_tests "$work/older"
done
say "the ABI holds"
