"""Registers, spills and load widths of the built CUDA kernels, read from their machine code. Needs no GPU.

    python -m benchmarks.cuda_table [LIBRARY] [--out benchmarks/results/cuda_kernels.md]

Uses the toolkit's cuobjdump, or the one that comes with triton, and c++filt.
"""

import argparse
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "fisherkernels" / "lib" / "libfisherkernels_cuda.so"
OUT = ROOT / "benchmarks" / "results" / "cuda_kernels.md"

DTYPES = {"c10::BFloat16": "bfloat16", "float": "float32", "double": "float64"}
# The template arguments between the width and the type of the sums.
VARIANTS = {
    "false": "one variance",
    "true": "a variance per column",
    "(Prior)0": "standard normal",
    "(Prior)1": "polynomial",
    "(Prior)2": "score given",
    "(GramTile)2": "tiles of 32 by 32",
    "(GramTile)4": "tiles of 64 by 64",
    "1": "1 access per thread",
    "2": "2 accesses per thread",
    "4": "4 accesses per thread",
}
WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "ENL2.256": 256}


def cuobjdump():
    found = shutil.which("cuobjdump")
    if found is None:
        import triton

        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(found)


def dump(option, library):
    """cuobjdump's lines; the names of functions demangled."""
    text = subprocess.run([cuobjdump(), option, str(library)], check=True, capture_output=True, text=True).stdout
    return subprocess.run(["c++filt"], check=True, input=text, capture_output=True, text=True).stdout.splitlines()


def functions(lines):
    """(architecture, function, line) for every line below a function's name."""
    arch = function = None
    for line in lines:
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function\s*:?\s*(?:void )?(\w+<.*?>)\(", _plain(line)):
            function = match[1]
        elif function:
            yield arch, function, line


def _plain(line):
    return line.replace("(anonymous namespace)::", "").replace("fisherkernels::cuda::", "")


def read_kernels(library):
    """{function: {arch: facts}} with registers, stack, shared, spills (instructions) and load (bits)."""
    kernels = defaultdict(lambda: defaultdict(lambda: {"spills": 0, "load": 0}))
    for arch, function, line in functions(dump("--dump-resource-usage", library)):
        if usage := dict(re.findall(r"(REG|STACK|SHARED):(\d+)", line)):
            facts = kernels[function][arch]
            facts.update(registers=int(usage["REG"]), stack=int(usage["STACK"]), shared=int(usage["SHARED"]))
    for arch, function, line in functions(dump("-sass", library)):
        facts = kernels[function][arch]
        if re.search(r"\b(STL|LDL)\b", line):
            facts["spills"] += 1
        if load := re.search(r"\bLDG\.E((?:\.\w+)*)", line):
            facts["load"] = max(facts["load"], _bits(load[1]))
    return kernels


def _bits(suffixes):
    return next((bits for name, bits in WIDTHS.items() if f".{name}." in f"{suffixes}."), 32)


def describe(function):
    """(kernel, dtype, elements per access, variant)."""
    name, arguments = re.match(r"(\w+)<(.*)>$", function).groups()
    arguments = [argument.strip() for argument in arguments.split(",")]
    dtype = DTYPES[arguments[0]]
    if len(arguments) == 1:
        return name, dtype, "1", ""
    return name, dtype, arguments[1], ", ".join(VARIANTS[argument] for argument in arguments[2:-1])


def table(kernels):
    archs = sorted({arch for by_arch in kernels.values() for arch in by_arch}, key=lambda arch: int(arch[3:]))
    head = ["kernel", "dtype", "elements per access", "variant"]
    head += [f"registers {arch}" for arch in archs]
    head += ["spill instructions", "stack [B]", "shared memory [B]", "widest load [bit]"]
    rows = []
    for function, by_arch in kernels.items():
        name, dtype, width, variant = describe(function)
        row = [f"`{name}`", dtype, width, variant]
        row += [str(by_arch[arch]["registers"]) for arch in archs]
        row += [_range(by_arch, archs, key) for key in ("spills", "stack", "shared", "load")]
        rows.append(row)
    rows.sort()
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _range(by_arch, archs, key):
    """One number where all architectures agree, else one for each."""
    values = [str(by_arch[arch][key]) for arch in archs]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    kernels = read_kernels(args.library)
    from fisherkernels import _native

    facts = _native.build_facts()
    spilled = [function for function, by_arch in kernels.items() if any(f["spills"] for f in by_arch.values())]
    text = [
        "# CUDA kernels, as compiled",
        "",
        f"Written by `python -m benchmarks.cuda_table` from the library's machine code: nvcc {facts['cuda_toolkit']}, "
        f"compute capabilities {', '.join(facts['cuda_archs'])}. Blocks have 256 threads. Where the architectures "
        "differ, a cell holds one number for each, in the order of the register columns. `elements per access` is 1 "
        "for rows that do not start on 16-byte boundaries. From sm_90 on, shared memory includes the 1,024 bytes that "
        "CUDA keeps for itself.",
        "",
        f"{len(kernels)} kernels, {len(spilled)} with spills.",
        "",
        table(kernels),
        "",
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(text))
    print(f"{args.out}: {len(kernels)} kernels, {len(spilled)} with spills")


if __name__ == "__main__":
    main()
