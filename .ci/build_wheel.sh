#!/usr/bin/env bash
# Builds a source distribution, and from it the wheel in isolation (CPU and CUDA kernels where nvcc is found), and prints
# the wheel's path.
#   .ci/build_wheel.sh DIRECTORY
set -euo pipefail
out=${1:?usage: .ci/build_wheel.sh DIRECTORY}
cd "$(dirname "$0")/.."
make --quiet install >&2
mkdir -p "$out"
.venv/bin/python -m build --sdist --no-isolation --outdir "$out/sdist" . >"$out/sdist.log" || { cat "$out/sdist.log" >&2; exit 1; }
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir "$out/wheel" "$out"/sdist/*.tar.gz >&2
echo "$out"/wheel/*.whl
