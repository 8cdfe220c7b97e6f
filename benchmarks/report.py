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
    bandwidth = result["copy_bytes_per_second"]
    lines = [_heading(result), ""]
    columns = ["case", "contender", "median ms", "quartiles ms", "time / ours", "peak MB", "of memory limit"]
    lines += ["| " + " | ".join(columns) + " |", "|---|---|---:|---:|---:|---:|---:|"]
    failures = []
    for name, case in result["cases"].items():
        if case["rounds"] < minimum_rounds:
            rounds = case["rounds"]
            raise ValueError(f"{name}: {rounds} rounds, a reported result needs at least {minimum_rounds}")
        ours = case["contenders"].get(OURS, {}).get("seconds")
        ours = quartiles(ours)[1] if ours else None
        limit = case["bytes_moved"] / bandwidth if case["bytes_moved"] else None
        for contender, record in case["contenders"].items():
            cells = [f"{name} {case['title']}", contender, *_cells(record, ours, limit)]
            lines.append("| " + " | ".join(cells) + " |")
            if "failed" in record:
                failures.append(f"{name}, {contender}: {record['failed']}")
    notes = [f"{name}: {case['traffic']}" for name, case in result["cases"].items() if case["traffic"]]
    if notes:
        lines += ["", "Bytes that must move, over the copy bandwidth, make the memory limit:", ""]
        lines += [f"- {note}" for note in notes]
    if failures:
        lines += ["", "Failed, so not timed:", "", *[f"- {failure}" for failure in failures]]
    return "\n".join(lines)


def _cells(record, ours, limit):
    if "failed" in record:
        return ["failed", "", "", "", ""]
    lower, median, upper = quartiles(record["seconds"])
    peak = record.get("peak_bytes")
    return [
        _digits(median * 1e3),
        f"{_digits(lower * 1e3)} to {_digits(upper * 1e3)}",
        f"{median / ours:.2f}" if ours else "",
        f"{peak / 1e6:.0f}" if peak is not None else "",
        f"{limit / median:.0%}" if limit else "",
    ]


def _heading(result):
    machine = result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']} ({machine['cpu_isa']}), {machine['threads']} threads"
    kernels = "native kernels" if machine["backends"][result["device"]] else "PyTorch twins, no native kernels"
    rounds = sorted({case["rounds"] for case in result["cases"].values()})
    return (
        f"**{result['suite']}, {result['device'].upper()}**: {where}; torch {machine['torch']}, {kernels}, float32, "
        f"medians and quartiles of {' or '.join(map(str, rounds))} interleaved rounds, forward and backward; "
        f"measured copy bandwidth {result['copy_bytes_per_second'] / 1e9:.0f} GB/s; "
        f"allocator: {result['allocator']}; {machine['date']}, commit {machine['commit']}."
    )


def _digits(milliseconds):
    """Three significant digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
