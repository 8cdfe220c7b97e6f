#!/usr/bin/env bash
# Runs all of python_tests from an installed wheel, outside the source tree, under each torch version named.
#   .ci/wheel_tests.sh 2.10.0 2.15.0
# Brings each torch with the torchvision made for it. WHEEL: one that is built already. WITH: further requirements; torch
# 2.10 wants "numpy<2.4", for Triton 3.6's interpreter. Needs 15 GB of disk.
set -euo pipefail
(($#)) || { echo "usage: .ci/wheel_tests.sh TORCH_VERSION..." >&2; exit 2; }
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset FISHERKERNELS_LIBRARY_DIR FISHERKERNELS_BACKEND PYTHONPATH

wheel=$(realpath "${WHEEL:-$(.ci/build_wheel.sh "$work/build")}")
mkdir "$work/tree"
git ls-files -z | grep -zv '^fisherkernels/' | xargs -0 cp --parents -t "$work/tree"
for version; do
    printf -- '--- torch %s (%s)\n' "$version" "$(date -u +%H:%M:%S)"
    .venv/bin/python -m venv "$work/env"
    "$work/env/bin/pip" install --quiet "torch==$version" torchvision "$wheel[train,flow,mkde]" \
        pytest pytest-xdist hypothesis cmake ninja pybind11 ${WITH:+"$WITH"}
    (
        cd "$work/tree"
        "$work/env/bin/python" -P -c "import fisherkernels, torch; print(torch.__version__, fisherkernels.__path__[0])"
        FISHERKERNELS_REQUIRE_NATIVE=1 "$work/env/bin/python" -m pytest python_tests -n 2 -q -p no:cacheprovider
    )
    rm -rf "$work/env"
done
