"""Measures (run) and writes the tables of README.md (report)."""

import argparse
import json
import os
import sys
from pathlib import Path

from . import report, suites

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure, and write one JSON file per suite and device")
    run.add_argument("--suite", choices=list(suites.SUITES), help="default: all")
    run.add_argument("--case", help="only this case; the suite's file is then not written")
    run.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    run.add_argument("--rounds", type=int, default=25, help="timed rounds; report wants at least 15")
    run.add_argument("--threads", type=int, help="default: torch's own choice")
    run.add_argument("--allocator", choices=["keep", "default"], default="keep", help="keep: reuse freed memory")
    run.add_argument("--tf32", action="store_true", help="float32 products in TF32, on GPUs that have it")
    run.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    run.add_argument("--data-root", help="folder with MNIST/raw/ for the fisher_net suite's nets (default: data)")
    run.add_argument("--out", type=Path, default=RESULTS)

    table = commands.add_parser("report", help="write the tables between README.md's markers")
    table.add_argument("--results", type=Path, default=RESULTS)
    table.add_argument("--readme", type=Path, default=README)

    peak = commands.add_parser("memory", help="peak memory of one contender, as JSON (run calls this)")
    peak.add_argument("case")
    peak.add_argument("contender")

    options = parser.parse_args(arguments)
    return {"run": _run, "report": _report, "memory": _memory}[options.command](options)


def _run(options):
    import torch

    from . import bandwidth, gemm, machine, memory
    from .case import with_tf32
    from .fisher_net.images import DATA_ROOT
    from .runner import measure

    if options.rounds < 1:
        raise SystemExit(f"--rounds must be at least 1, got {options.rounds}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    if options.tf32 and options.device != "cuda":
        raise SystemExit("--tf32 needs --device cuda")
    if options.data_root:
        os.environ[DATA_ROOT] = os.path.abspath(options.data_root)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    # Unless asked for, float32 means float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    allocator = "torch"
    if device.type == "cpu":
        kept = options.allocator == "keep" and memory.keep_freed_memory()
        allocator = "freed memory kept" if kept else "default"
    for suite in [options.suite] if options.suite else list(suites.SUITES):
        cases = [c for c in suites.cases(suite) if options.case in (None, c.name) and device.type in c.devices]
        if not cases:
            continue
        result = {"suite": suite, "device": device.type, "allocator": allocator, "tf32": options.tf32}
        result["machine"] = machine.facts(device)
        before = bandwidth.copy_bandwidth(device), gemm.gemm_rate(device)
        result["cases"] = {}
        suffix = "-default-allocator" if allocator == "default" else "-tf32" if options.tf32 else ""
        path = options.out / f"{suite}-{device.type}{suffix}.json"
        options.out.mkdir(parents=True, exist_ok=True)
        for case in cases:
            print(f"{case.name}: {case.title}", flush=True)
            sets = {"cpu": 2, "cuda": 8} if suite == "ops" else {"cpu": 1, "cuda": 4}
            sets = sets[device.type]
            checked = with_tf32(case) if options.tf32 else case
            record = measure(checked, device, options.rounds, sets=sets, with_memory=options.memory)
            result["cases"][case.name] = record
            if options.case is None:  # what a run that is stopped has measured
                path.with_suffix(".partial").write_text(json.dumps(result, indent=1) + "\n")
        result["copy_bytes_per_second"] = max(before[0], bandwidth.copy_bandwidth(device))
        result["gemm_flops_per_second"] = max(before[1], gemm.gemm_rate(device))
        print(report.table(result))
        if options.case is None:
            path.write_text(json.dumps(result, indent=1) + "\n")
            path.with_suffix(".partial").unlink(missing_ok=True)
            print(f"wrote {path}")


def _report(options):
    changed = report.write(options.results, options.readme)
    print(f"{options.readme}: {'written' if changed else 'already up to date'}")


def _memory(options):
    from .memory import peak_in_this_process

    case = suites.case(options.case)
    print(json.dumps({"peak_bytes": peak_in_this_process(case, case.contender(options.contender))}))


if __name__ == "__main__":
    sys.exit(main())
