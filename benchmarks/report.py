"""The tables of README.md, made from the committed JSON files alone."""

import json
import re
from pathlib import Path

from .suites import SUITES
from .timing import quartiles

OURS = "ours"
MARKERS = ("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->")
MINIMUM_ROUNDS = 15
NOT_RUN = "CUDA: compiled, not yet run. No timing on a GPU is reported because none was taken."


def write(results, readme):
    """Puts the report between the markers of `readme`; returns whether the file changed."""
    text = Path(readme).read_text()
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{readme}: expected one {begin} followed by one {end}")
    body = render(load(results))
    changed = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL)
    Path(readme).write_text(changed)
    return changed != text


def load(results):
    return [json.loads(path.read_text()) for path in sorted(Path(results).glob("*-*.json"))]


def render(results):
    """Markdown for all results; what was not measured is said, not left out."""
    parts = []
    for device in ("cpu", "cuda"):
        found = [result for result in results if result["device"] == device]
        parts += [table(result, minimum_rounds=MINIMUM_ROUNDS) for result in found]
        missing = [suite for suite in SUITES if suite not in {result["suite"] for result in found}]
        if device == "cuda" and not found:
            parts.append(NOT_RUN)
        elif missing:
            parts.append(f"{device.upper()}: no result is committed for {' and '.join(missing)}.")
    return "\n\n".join(parts)


def table(result, minimum_rounds=1):
    """One table per result file; raises ValueError where a case has fewer than `minimum_rounds` timings."""
    cases = result["cases"]
    of_flops = any(case.get("flops") for case in cases.values())
    with_residual = any(_residual(record) for case in cases.values() for record in case["contenders"].values())
    columns = ["case", "contender", "median ms", "quartiles ms", "time / ours", "peak MB"]
    columns += ["worst residual"] * with_residual + ["of FLOP limit" if of_flops else "of memory limit"]
    lines = [_heading(result), "", "| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for name, case in cases.items():
        if case["rounds"] < minimum_rounds:
            rounds = case["rounds"]
            raise ValueError(f"{name}: {rounds} rounds, a reported result needs at least {minimum_rounds}")
        ours = case["contenders"].get(OURS, {}).get("seconds")
        ours = quartiles(ours)[1] if ours else None
        for contender, record in case["contenders"].items():
            cells = _cells(record, ours, _limit(result, case, contender))
            if with_residual:
                cells.insert(-1, _residual(record))
            lines.append("| " + " | ".join([f"{name} {case['title']}", contender, *cells]) + " |")
    return "\n".join(lines + _notes(cases))


def _limit(result, case, contender):
    """Seconds that the contender cannot beat on this machine, or None."""
    if case["bytes_moved"]:
        return case["bytes_moved"] / result["copy_bytes_per_second"]
    if case.get("flops"):
        route = case["routes"].get(contender)
        flops = case["flops"][route] if route else min(case["flops"].values())
        return flops / result["gemm_flops_per_second"]
    return None


def _notes(cases):
    traffic = [f"{name}: {case['traffic']}" for name, case in cases.items() if case["traffic"]]
    flops = [f"{name}: {_gigaflops(case['flops'])}" for name, case in cases.items() if case.get("flops")]
    facts = [f"{name}: {_listed(case['facts'])}" for name, case in cases.items() if case.get("facts")]
    failures = [
        f"{name}, {contender}: {record['failed']}"
        for name, case in cases.items()
        for contender, record in case["contenders"].items()
        if "failed" in record
    ]
    listed = {
        "Bytes that must move, over the copy bandwidth, make the memory limit:": traffic,
        "FLOPs that a route needs at least, over the rate of a matrix product, make the FLOP limit:": flops,
        "The inputs:": facts,
        "Failed, so not timed:": failures,
    }
    lines = []
    for title, notes in listed.items():
        if notes:
            lines += ["", title, "", *[f"- {note}" for note in notes]]
    return lines


def _cells(record, ours, limit):
    for reason in ("failed", "not installed"):
        if reason in record:
            return [reason, "", "", "", ""]
    lower, median, upper = quartiles(record["seconds"])
    peak = record.get("peak_bytes")
    return [
        _digits(median * 1e3),
        f"{_digits(lower * 1e3)} to {_digits(upper * 1e3)}",
        f"{median / ours:.2f}" if ours else "",
        f"{peak / 1e6:.0f}" if peak is not None else "",
        f"{limit / median:.0%}" if limit else "",
    ]


def _residual(record):
    worst = record["relative_rms_error"].get("float32", {}).get("worst residual")
    return "" if worst is None else f"{worst:.0e}"


def _gigaflops(flops):
    return ", ".join(f"{route} {count / 1e9:.3g} GFLOP" for route, count in flops.items())


def _listed(facts):
    return ", ".join(f"{name} {v if isinstance(v, str) else format(v, '.3g')}" for name, v in facts.items())


def _heading(result):
    machine = result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']} ({machine['cpu_isa']}), {machine['threads']} threads"
    kernels = "native kernels" if machine["backends"][result["device"]] else "PyTorch twins, no native kernels"
    with_backward = result["suite"] in ("ops", "steps", "cycles")  # the other suites' cases say so themselves
    passes = ", forward and backward" if with_backward else ""
    precision = "float32, products in TF32" if result.get("tf32") else "float32"
    rounds = sorted({case["rounds"] for case in result["cases"].values()})
    return (
        f"**{result['suite']}, {result['device'].upper()}**: {where}; torch {machine['torch']}, {kernels}, "
        f"{precision}, medians and quartiles of {' or '.join(map(str, rounds))} interleaved rounds{passes}; "
        f"measured copy bandwidth {result['copy_bytes_per_second'] / 1e9:.0f} GB/s{_gemm(result)}; "
        f"allocator: {result['allocator']}; {machine['date']}, commit {machine['commit']}."
    )


def _gemm(result):
    rate = result.get("gemm_flops_per_second")  # older results have none
    return f", matrix product {rate / 1e9:.0f} GFLOP/s" if rate else ""


def _digits(milliseconds):
    """Three significant digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
