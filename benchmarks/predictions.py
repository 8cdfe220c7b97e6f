"""How long each case should take on a GPU, from the bytes and FLOPs of the committed results, beside what was measured.

    python -m benchmarks.predictions [--results benchmarks/results] [--out benchmarks/results/gpu_predictions.md]

Needs no GPU. Rates are those of the vendor's data sheet for the H200 SXM: 4.8 TB/s, 67 TFLOP/s in float32 outside the
tensor cores (https://www.nvidia.com/en-us/data-center/h200/).
"""

import argparse
from pathlib import Path

from .__main__ import RESULTS
from .report import OURS, load
from .timing import quartiles

BYTES_PER_SECOND = 4.8e12
FLOPS_PER_SECOND = 67e12
OUT = RESULTS / "gpu_predictions.md"
HEAD = ("case", "MB", "GFLOP", "limit", "least time [µs]", "measured, ours [µs]", "of limit")


def rows(results):
    """One row for each case that has a count of bytes or FLOPs; results as :func:`report.load` gives them."""
    measured = {
        name: case["contenders"][OURS]["seconds"]
        for result in results
        if result["device"] == "cuda" and not result.get("tf32")
        for name, case in result["cases"].items()
        if case["contenders"].get(OURS, {}).get("seconds")
    }
    cases = {name: case for result in results for name, case in result["cases"].items()}
    return [_row(name, case, measured.get(name)) for name, case in sorted(cases.items()) if _counted(case)]


def _counted(case):
    return case["bytes_moved"] or case.get("flops")


def _flops(case):
    """Of our own route, or of the cheapest."""
    routes, route = case.get("flops") or {"": 0}, case.get("routes", {}).get(OURS)
    return routes[route] if route else min(routes.values())


def _row(name, case, seconds):
    moved, flops = case["bytes_moved"], _flops(case)
    times = {"memory": (moved or 0) / BYTES_PER_SECOND, "FLOPs": flops / FLOPS_PER_SECOND}
    limit = max(times, key=times.get)
    median = quartiles(seconds)[1] if seconds else None
    return (
        f"{name} {case['title']}",
        f"{moved / 1e6:.0f}" if moved else "",
        f"{flops / 1e9:.3g}" if flops else "",
        limit,
        f"{times[limit] * 1e6:.3g}",
        f"{median * 1e6:.3g}" if median else "not yet run",
        f"{times[limit] / median:.0%}" if median else "",
    )


def render(results):
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *rows(results)]
    return "\n".join(
        [
            "# Least times on an NVIDIA H200, predicted",
            "",
            "Written by `python -m benchmarks.predictions` from the results beside it: bytes that must move over "
            "4.8 TB/s, or multiplications and additions that are needed over 67 TFLOP/s (float32, no "
            "tensor cores), the vendor's rates. Launches are not counted; what fits into the L2 cache can be faster "
            "than the memory's limit. `benchmarks/gpu.sh` measures.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.write_text(render(load(options.results)))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
