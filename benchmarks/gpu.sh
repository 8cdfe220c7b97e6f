#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: runs the tests marked gpu, then the benchmarks, and leaves everything in OUT_DIR.
#   benchmarks/gpu.sh OUT_DIR [ROUNDS]
# FISHERKERNELS_LIBRARY_DIR names libraries already built (CMake's build/.../lib); where it is unset, or they do not
# load, they are built here for this GPU. FISHERKERNELS_BENCHMARK_DATA names a folder with MNIST/raw/ for the nets of the
# fisher_net suite; without it they are trained on scikit-learn's digits. The laplacian suite runs with TF32 off and on.
# Last, compute-sanitizer (memcheck, racecheck) runs every kernel's tests on a few examples each, where it is installed;
# SANITIZE=0 leaves it out. Peers that do not import are left out; those written in JAX need one with CUDA
# (`jax[cuda13]`). PYTHON names an interpreter with torch, pytest, hypothesis, cmake, pybind11.
set -euo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT_DIR [ROUNDS]}
rounds=${2:-25}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [[ -n ${FISHERKERNELS_LIBRARY_DIR:-} ]]; then
    export FISHERKERNELS_LIBRARY_DIR=$(realpath "$FISHERKERNELS_LIBRARY_DIR")
fi
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" - <<'EOF'
import torch
if not torch.cuda.is_available():
    raise SystemExit("benchmarks/gpu.sh: torch sees no CUDA device here")
print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
EOF

cuda_is_active() {
    "$python" -c 'from fisherkernels.ops import backends; s = backends()["cuda"]; raise SystemExit(not s.active)'
}

if [[ -z ${FISHERKERNELS_LIBRARY_DIR:-} ]] || ! cuda_is_active; then
    archs=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
    FISHERKERNELS_CUDA=1 TORCH_CUDA_ARCH_LIST=$archs cmake -S . -B build/gpu -G Ninja \
        -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" >"$out/build.log"
    cmake --build build/gpu >>"$out/build.log"
    export FISHERKERNELS_LIBRARY_DIR=$PWD/build/gpu/lib
fi
cuda_is_active || { echo "benchmarks/gpu.sh: the CUDA library does not load" >&2; exit 1; }

tests=0
"$python" -m pytest python_tests -m gpu -p no:cacheprovider 2>&1 | tee "$out/tests.log" || tests=$?
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false} # JAX takes most of the memory otherwise
{
    "$python" -m benchmarks run --device cuda --rounds "$rounds" --out "$out"
    "$python" -m benchmarks run --device cuda --rounds "$rounds" --out "$out" --suite laplacian --tf32
} 2>&1 | tee "$out/benchmarks.log"
if [[ ${SANITIZE:-1} != 0 ]] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest python_tests/ops -m gpu -k native-cuda \
            --hypothesis-profile few -p no:cacheprovider -q 2>&1 | tee "$out/$tool.log" || tests=$?
    done
fi
if ((tests != 0)); then
    echo "benchmarks/gpu.sh: tests failed, see $out/tests.log; do not report the timings" >&2
fi
exit "$tests"
