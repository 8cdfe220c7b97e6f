"""Measures one case: builds its contenders, checks them, times those that passed, then their peak memory."""

import time

import torch

from . import correctness, memory, timing
from .case import draw

ABSENT = {"failed", "not installed"}  # why a record has no timings


def measure(case, device, rounds, warm_up=3, sets=1, seed=None, with_memory=True, say=print):
    """Returns the case's record: per contender either timings or why there are none."""
    seed = time.time_ns() % 2**31 if seed is None else seed
    records = {contender.name: {"relative_rms_error": {}} for contender in case.contenders}
    runners = {}
    for contender in case.contenders:
        if missing := contender.missing():
            records[contender.name]["not installed"] = missing
            advice = f"; to measure it install {contender.install}" if contender.install else ""
            say(f"  {contender.name}: not installed ({missing}){advice}", flush=True)
    for dtype in sorted(case.tolerances, key=lambda dtype: -dtype.itemsize):  # float32 last: that one is timed
        torch._dynamo.reset()
        gate = correctness.Gate(case, device, dtype, seed)
        for contender in case.contenders:
            record = records[contender.name]
            if not ABSENT & record.keys():
                started = time.perf_counter()
                runners[contender.name] = _prepare(gate, contender, device, dtype, record)
                verdict = f"FAILED: {record['failed']}" if "failed" in record else "ok"
                spent = f"{time.perf_counter() - started:.1f} s"
                say(f"  {contender.name}, {_name(dtype)}: built, checked in {spent}: {verdict}", flush=True)
    runners = {name: run for name, run in runners.items() if run is not None}

    generator = torch.Generator().manual_seed(seed - 1)
    samples = timing.interleave(
        runners, lambda: draw(case, generator, device, torch.float32), rounds, warm_up, device, sets
    )
    for name, seconds in samples.items():
        records[name]["seconds"] = seconds
        if with_memory:
            records[name]["peak_bytes"] = _peak(case, case.contender(name), runners[name], device, generator)
        lower, median, upper = timing.quartiles(seconds)
        say(f"  {name}: {median * 1e3:.2f} ms ({lower * 1e3:.2f} to {upper * 1e3:.2f})", flush=True)
    return {
        "title": case.title,
        "bytes_moved": case.bytes_moved,
        "traffic": case.traffic,
        "flops": case.flops() if case.flops else None,
        "routes": {contender.name: contender.route for contender in case.contenders if contender.route},
        "facts": case.facts() if case.facts else {},
        "rounds": rounds,
        "sets_per_round": sets,
        "seed": seed,
        "contenders": records,
    }


def _prepare(gate, contender, device, dtype, record):
    """The function to time; None where the contender failed: it raised, or its result is wrong."""
    try:
        run = contender.build(device, dtype)
        errors = gate.check(contender, run)
    except Exception as error:  # whatever a contender raises is its result
        record["failed"] = _first_line(error)
        return None
    record["relative_rms_error"][_name(dtype)] = errors
    return run


def _peak(case, contender, run, device, generator):
    if device.type == "cpu":
        return memory.peak_on_cpu(case.name, contender.name)
    return None if contender.own_allocator else memory.peak_on_cuda(run, draw(case, generator, device, torch.float32))


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _name(dtype):
    return str(dtype).removeprefix("torch.")
