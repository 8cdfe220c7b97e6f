import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bandwidth, gemm
from benchmarks.case import Contender
from benchmarks.runner import measure
from benchmarks.timing import interleave, quartiles

from .dummies import CASE

CPU = torch.device("cpu")


def test_only_contenders_that_passed_are_timed():
    record = measure(CASE, CPU, rounds=3, with_memory=False, say=lambda *_, **__: None)
    contenders = record["contenders"]
    assert {name for name, r in contenders.items() if "seconds" in r} == {"ours", "rounded", "other"}
    assert all(len(r["seconds"]) == 3 for r in contenders.values() if "seconds" in r)
    assert "allowed 1e-05" in contenders["wrong"]["failed"]
    assert "error nan" in contenders["nan"]["failed"]
    assert contenders["raises"]["failed"] == "RuntimeError: graph break"


def test_a_peer_that_is_not_installed_is_recorded_and_never_built():
    def build(device, dtype):
        raise AssertionError("built")

    absent = tuple(Contender(name, build, requires=(name,)) for name in ("no_such_package", "json.no_such_module"))
    said = []
    record = measure(
        replace(CASE, contenders=(*absent, Contender("ours", CASE.contender("ours").build, requires=("json",)))),
        CPU,
        rounds=1,
        with_memory=False,
        say=lambda text, **_: said.append(text),
    )
    assert record["contenders"]["no_such_package"]["not installed"] == "no_such_package"
    assert record["contenders"]["json.no_such_module"]["not installed"] == "json.no_such_module"
    assert len(record["contenders"]["ours"]["seconds"]) == 1
    assert "  no_such_package: not installed (no_such_package)" in said


def test_gemm_rate_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(gemm, "interleave", lambda *_, **__: {"gemm": [2.0, 0.5]})
    assert gemm.gemm_rate(CPU, sizes=(3, 1)) == 2 * 3**3 / 0.5


def test_rounds_are_interleaved_in_changing_order_and_share_fresh_inputs():
    seen = []
    runners = {name: lambda x, name=name: seen.append((name, x)) for name in "abc"}
    counter = iter(range(100))
    samples = interleave(runners, lambda: (next(counter),), rounds=7, warm_up=1, device=CPU, sets=2)
    rounds = ["".join(name for name, _ in seen[first : first + 6]) for first in range(0, 48, 6)]
    assert all(sorted(order) == list("aabbcc") and order[::2] == order[1::2] for order in rounds)
    assert len(set(rounds)) > 3  # not a cycle, in which each always runs behind the same one
    assert [x for _, x in seen] == [x for first in range(0, 16, 2) for x in [first, first + 1] * 3]
    assert {name: len(times) for name, times in samples.items()} == {"a": 7, "b": 7, "c": 7}


def test_copy_bandwidth_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(bandwidth, "interleave", lambda *_, **__: {"copy": [2.0, 0.5]})
    assert bandwidth.copy_bandwidth(CPU, sizes=(3, 1)) == 2 * 3 * 2**20 / 0.5


def test_quartiles():
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)


def test_peak_memory_counts_what_a_call_needs():
    """Run in a process of its own, as the harness does: the system's counters are per process."""
    script = (
        "import torch\n"
        "from benchmarks.case import Contender\n"
        "from benchmarks.memory import peak_in_this_process\n"
        "from python_tests.benchmarks.dummies import CASE\n"
        "hungry = Contender('hungry', lambda device, dtype: lambda x, y: torch.ones(25, 1 << 20).sum())\n"
        "print(peak_in_this_process(CASE, hungry))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    if done.stdout.strip() == "None":
        pytest.skip("this system does not reset the high-water mark")
    assert 95e6 < int(done.stdout) < 130e6  # 104.9 MB
